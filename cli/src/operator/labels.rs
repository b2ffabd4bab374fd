//! `KEY=VALUE` on the command line; `KEY` alone has an empty value, as with Docker.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use keyhole_domain::Labels;

use crate::failure::Failure;

/// One label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    key: String,
    value: String,
}

impl FromStr for Label {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// Checks labels by the rules that the manager has too; the last one of a key counts.
pub(crate) fn checked(labels: &[Label]) -> Result<HashMap<String, String>, Failure> {
    let entries = labels.iter().map(|l| (l.key.clone(), l.value.clone()));
    let map: BTreeMap<String, String> = entries.collect();
    let labels = Labels::new(map).map_err(Failure::new)?;
    Ok(labels.as_map().clone().into_iter().collect())
}

/// `a=1,b=2`, in the order of keys, for tables.
pub(crate) fn joined(labels: &HashMap<String, String>) -> String {
    pairs(labels).join(",")
}

/// `a=1` for each, in the order of keys.
pub(crate) fn pairs(labels: &HashMap<String, String>) -> Vec<String> {
    let mut pairs: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.sort();
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(texts: &[&str]) -> Result<HashMap<String, String>, String> {
        let labels: Vec<Label> = texts.iter().map(|t| t.parse().unwrap()).collect();
        checked(&labels).map_err(|failure| failure.to_string())
    }

    #[test]
    fn labels_may_lack_a_value() {
        let labels = check(&["b=2=3", "a", "b=4"]).unwrap();
        assert_eq!(pairs(&labels), ["a=", "b=4"]);
        assert_eq!(joined(&labels), "a=,b=4");
    }

    #[test]
    fn bad_keys_are_named() {
        for text in ["a b=c", "=x", ""] {
            assert!(check(&[text]).is_err(), "{text:?}");
        }
        assert!(check(&["a b=c"]).unwrap_err().contains("a b"));
    }
}
