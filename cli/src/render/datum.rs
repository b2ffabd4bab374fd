//! `Datum`: what a template can look at, and what `json` writes, with fields in the order they were made.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// A value of the command line's answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Datum {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Number(u64),
    /// A text.
    Text(String),
    /// Values in order.
    List(Vec<Datum>),
    /// Values by names that users chose: an unknown name is no mistake.
    Map(BTreeMap<String, Datum>),
    /// Values by names that we chose: an unknown name is a mistake.
    Record(Vec<(&'static str, Datum)>),
    /// Texts looked up as by a function (`{{.Label "key"}}`); never written out.
    Lookup(BTreeMap<String, String>),
}

impl Datum {
    /// A map of labels.
    pub(crate) fn labels(labels: &HashMap<String, String>) -> Self {
        Self::Map(labels.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect())
    }

    /// A list of texts.
    pub(crate) fn texts(texts: &[String]) -> Self {
        Self::List(texts.iter().map(Self::from).collect())
    }

    /// Whether Go's templates take it for true.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Number(number) => *number != 0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(map) => !map.is_empty(),
            Self::Record(_) | Self::Lookup(_) => true,
        }
    }

    /// Compact JSON.
    pub(crate) fn json(&self) -> String {
        // Only a map with keys other than texts could fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// As Go's `fmt` prints it.
impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<no value>"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", items.join(" "))
            }
            Self::Map(map) => {
                let entries: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                write!(f, "map[{}]", entries.join(" "))
            }
            Self::Record(fields) => {
                let values: Vec<_> = fields.iter().map(|(_, v)| v.to_string()).collect();
                write!(f, "{{{}}}", values.join(" "))
            }
            Self::Lookup(_) => Ok(()),
        }
    }
}

impl Serialize for Datum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null | Self::Lookup(_) => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => items.serialize(serializer),
            Self::Map(map) => map.serialize(serializer),
            Self::Record(fields) => {
                let mut map = serializer.serialize_map(None)?;
                for (name, value) in fields {
                    if !matches!(value, Self::Lookup(_)) {
                        map.serialize_entry(name, value)?;
                    }
                }
                map.end()
            }
        }
    }
}

impl From<&str> for Datum {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Datum {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<String> for Datum {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Datum {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Datum {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Datum {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_the_order_of_records_and_hides_lookups() {
        let record = Datum::Record(vec![
            ("Name", "b".into()),
            ("ID", "a\"".into()),
            ("Label", Datum::Lookup(BTreeMap::new())),
            ("None", Datum::Null),
            ("Count", 3_u64.into()),
        ]);
        assert_eq!(record.json(), r#"{"Name":"b","ID":"a\"","None":null,"Count":3}"#);
    }

    #[test]
    fn text_is_printed_as_go_does() {
        let labels = HashMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]);
        assert_eq!(Datum::labels(&labels).to_string(), "map[a:1 b:2]");
        assert_eq!(Datum::texts(&["x".into(), "y".into()]).to_string(), "[x y]");
    }
}
