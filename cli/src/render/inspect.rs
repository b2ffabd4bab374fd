//! `inspect`: Docker's JSON array, one line per object with `--format`, or words with `--pretty`.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use super::datum::Datum;
use super::printable;
use super::template::Template;
use crate::failure::Failure;

/// The options of every `inspect`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct InspectOptions {
    /// Format with fields: 'json' or any text with {{.Spec.Name}}
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "pretty")]
    pub(crate) format: Option<String>,
    /// Print it for people to read
    #[arg(long)]
    pub(crate) pretty: bool,
}

/// An inspection whose options are checked.
pub(crate) enum Inspection {
    /// A JSON array.
    Array,
    /// One line per object.
    Lines(Template),
    /// Words.
    Pretty,
}

impl Inspection {
    /// Checks the options, before anything is asked of anybody.
    pub(crate) fn new(options: &InspectOptions) -> Result<Self, Failure> {
        Ok(match options.format.as_deref() {
            None if options.pretty => Self::Pretty,
            None => Self::Array,
            Some("json") => Self::Lines(Template::parse("{{json .}}").map_err(Failure::usage)?),
            Some(format) => Self::Lines(Template::parse(format).map_err(Failure::usage)?),
        })
    }

    /// The text for these objects; `pretty` says each in words.
    pub(crate) fn show<T>(
        &self,
        objects: &[T],
        datum: impl Fn(&T) -> Datum,
        pretty: impl Fn(&T) -> String,
    ) -> Result<String, Failure> {
        match self {
            Self::Array => Ok(array(objects.iter().map(datum).collect())),
            Self::Lines(template) => {
                let lines = objects.iter().map(|object| template.apply(&datum(object)));
                let lines: Result<Vec<_>, _> = lines.collect();
                let lines = lines.map_err(Failure::usage)?;
                Ok(lines.into_iter().map(|line| line + "\n").collect())
            }
            Self::Pretty => Ok(objects.iter().map(pretty).collect::<Vec<_>>().join("\n")),
        }
    }
}

/// Indented by four blanks, as Docker's.
fn array(objects: Vec<Datum>) -> String {
    let mut bytes = Vec::new();
    let mut serializer =
        Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    // Writing to memory does not fail, and all keys are texts.
    let _ = Datum::List(objects).serialize(&mut serializer);
    bytes.push(b'\n');
    String::from_utf8(bytes).unwrap_or_default()
}

/// Lines of `Name:   value`, the values in one column.
pub(crate) fn pretty_lines(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for (name, value) in lines {
        let name = format!("{name}:");
        let line = format!("{name:width$}{}", printable(value));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A headed list: ` - item` lines; nothing if there are no items.
pub(crate) fn pretty_list(name: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|i| format!(" - {}\n", printable(i))).collect();
    format!("{name}:\n{items}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(options: InspectOptions) -> Result<String, Failure> {
        let datum = |name: &&str| {
            Datum::Record(vec![
                ("Name", (*name).into()),
                ("Labels", Datum::Map(Default::default())),
            ])
        };
        let pretty =
            |name: &&str| pretty_lines(&[("Name", (*name).to_owned()), ("Long", "x".into())]);
        Inspection::new(&options)?.show(&["a", "b"], datum, pretty)
    }

    #[test]
    fn the_default_is_dockers_array() {
        assert_eq!(
            show(InspectOptions::default()).unwrap(),
            "[\n    {\n        \"Name\": \"a\",\n        \"Labels\": {}\n    },\n    {\n        \
             \"Name\": \"b\",\n        \"Labels\": {}\n    }\n]\n"
        );
    }

    #[test]
    fn formats_give_a_line_for_each_object() {
        let format =
            |format: &str| show(InspectOptions { format: Some(format.to_owned()), pretty: false });
        assert_eq!(format("{{.Name}}").unwrap(), "a\nb\n");
        assert_eq!(
            format("json").unwrap(),
            "{\"Name\":\"a\",\"Labels\":{}}\n{\"Name\":\"b\",\"Labels\":{}}\n"
        );
        assert!(format("{{.Value}}").is_err());
    }

    #[test]
    fn pretty_puts_values_in_a_column() {
        let options = InspectOptions { format: None, pretty: true };
        assert_eq!(show(options).unwrap(), "Name:  a\nLong:  x\n\nName:  b\nLong:  x\n");
    }
}
