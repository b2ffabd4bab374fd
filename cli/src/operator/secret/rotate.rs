//! `keyhole secret rotate`: new values in place, several in one step if need be.

use std::path::PathBuf;

use clap::Args;
use keyhole_proto::v1;

use super::delivery::Wait;
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::operator::Manager;
use crate::value::{self, Operation};

/// `rotate`
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// One secret and its file (- for standard input), or NAME=FILE for each of several
    #[arg(required = true, value_name = "NAME FILE|- or NAME=FILE")]
    what: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

/// A secret and where its new value is.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    name: String,
    source: PathBuf,
}

/// The two ways of writing it; names have no `=`, so the first word decides.
fn items(words: &[String]) -> Result<Vec<Item>, String> {
    let first = words.first().map_or("", String::as_str);
    if !first.contains('=') {
        return match words {
            [name, source] => Ok(vec![Item { name: name.clone(), source: source.into() }]),
            [_] => Err("secret file is required: give a file name, or - for standard input".into()),
            _ => Err("several secrets are written NAME=FILE each".into()),
        };
    }
    let mut items = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some((name, source)) if !name.is_empty() && !source.is_empty() => {
                items.push(Item { name: name.to_owned(), source: source.into() })
            }
            _ => return Err(format!("{word:?} is not NAME=FILE")),
        }
    }
    if items.iter().filter(|item| item.source.as_os_str() == "-").count() > 1 {
        return Err("only one value can come from standard input".into());
    }
    Ok(items)
}

impl Rotate {
    pub(super) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        value::protect_process()?;
        let items = items(&self.what).map_err(Failure::usage)?;
        let mut values = Vec::new();
        for item in &items {
            values.push(value::read(console, &item.name, &item.source)?);
        }
        let mut manager = Manager::connect(global).await?;
        let receiver = manager.receiver().await?;
        let only = match items.as_slice() {
            [item] => Some(item.name.clone()),
            _ => None,
        };
        let mut request = v1::RotateSecretsRequest { items: Vec::new() };
        for (item, value) in items.into_iter().zip(values) {
            let sealed = receiver.seal(Operation::Rotate, &item.name, &value)?;
            request
                .items
                .push(v1::rotate_secrets_request::Item { secret: item.name, value: Some(sealed) });
        }
        let changed = manager.api.rotate_secrets(request).await;
        let changed = changed.map_err(|status| match &only {
            Some(name) => Failure::from(status).about(name),
            None => status.into(),
        })?;
        let changed = changed.into_inner();
        for secret in &changed.secrets {
            console.line(&format!("{}: version {}", secret.name, secret.version))?;
        }
        self.wait.run(&mut manager, console, &changed.secrets).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Vec<(String, String)>, String> {
        let words: Vec<_> = words.iter().map(|w| (*w).to_owned()).collect();
        let pair = |i: Item| (i.name, i.source.display().to_string());
        items(&words).map(|list| list.into_iter().map(pair).collect())
    }

    #[test]
    fn both_ways_of_writing() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(parse(&["db", "-"]), Ok(vec![pair("db", "-")]));
        assert_eq!(parse(&["db", "a=b"]), Ok(vec![pair("db", "a=b")]));
        assert_eq!(parse(&["a=x", "b=y=z"]), Ok(vec![pair("a", "x"), pair("b", "y=z")]));
        assert_eq!(parse(&["a=-", "b=f"]), Ok(vec![pair("a", "-"), pair("b", "f")]));
    }

    #[test]
    fn mistakes_are_told_before_anything_is_read() {
        for (words, word) in [
            (&["db"][..], "secret file is required"),
            (&["a", "b", "c"], "NAME=FILE"),
            (&["a=x", "b"], "\"b\""),
            (&["a="], "a="),
            (&["=x"], "=x"),
            (&["a=-", "b=-"], "one value"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(word), "{words:?}: {error}");
        }
    }
}
