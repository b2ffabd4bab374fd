//! Constraints: which nodes may run a service. They are the least privilege of a node.

use std::fmt;
use std::str::FromStr;

use crate::{Labels, NodeId};

/// What a constraint may look at; set at join or by an operator, never reported by the node later.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts<'a> {
    /// The node's id.
    pub id: NodeId,
    /// The node's host name.
    pub hostname: &'a str,
    /// The node's labels.
    pub labels: &'a Labels,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Attribute {
    Id,
    Hostname,
    Label(String),
}

/// `node.id`, `node.hostname` or `node.labels.KEY`, `==` or `!=` a value. A label that is not there has the value "".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Constraint {
    attribute: Attribute,
    equal: bool,
    value: String,
}

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Neither `==` nor `!=`.
    #[error(
        "constraint {text:?} has neither '==' nor '!='; write for example node.labels.zone==eu"
    )]
    NoOperator {
        /// The constraint as given.
        text: String,
    },
    /// Something that nodes do not have.
    #[error(
        "constraint {text:?}: {attribute:?} is unknown; known are node.id, node.hostname and node.labels.KEY"
    )]
    Attribute {
        /// The constraint as given.
        text: String,
        /// What stood left of the operator.
        attribute: String,
    },
    /// An empty or unprintable value.
    #[error("constraint {text:?} compares with an empty or unprintable value")]
    Value {
        /// The constraint as given.
        text: String,
    },
}

impl Constraint {
    /// Whether the node meets it.
    pub fn admits(&self, node: &NodeFacts<'_>) -> bool {
        let actual = match &self.attribute {
            Attribute::Id => node.id.as_str(),
            Attribute::Hostname => node.hostname,
            Attribute::Label(key) => node.labels.value(key).unwrap_or_default(),
        };
        (actual == self.value) == self.equal
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let shown = || text.chars().take(120).collect::<String>();
        // The operator that stands first, so that a value may have the other one in it.
        let split = |operator| text.split_once(operator).map(|(left, right)| (left.len(), right));
        let (equal, at, right) = match (split("=="), split("!=")) {
            (Some((eq, right)), None) => (true, eq, right),
            (None, Some((ne, right))) => (false, ne, right),
            (Some((eq, right)), Some((ne, _))) if eq < ne => (true, eq, right),
            (Some(_), Some((ne, right))) => (false, ne, right),
            (None, None) => return Err(ConstraintError::NoOperator { text: shown() }),
        };
        let left = text[..at].trim();
        let attribute = match (left, left.strip_prefix("node.labels.")) {
            ("node.id", _) => Attribute::Id,
            ("node.hostname", _) => Attribute::Hostname,
            // With half an operator at its end it would be shown as another constraint.
            (_, Some(key))
                if !key.is_empty()
                    && !key.contains(char::is_whitespace)
                    && !key.ends_with(['!', '=']) =>
            {
                Attribute::Label(key.to_owned())
            }
            _ => {
                return Err(ConstraintError::Attribute {
                    text: shown(),
                    attribute: left.to_owned(),
                });
            }
        };
        let value = right.trim();
        if value.is_empty() || value.len() > 1024 || value.contains(char::is_control) {
            return Err(ConstraintError::Value { text: shown() });
        }
        Ok(Self { attribute, equal, value: value.to_owned() })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.attribute {
            Attribute::Id => f.write_str("node.id")?,
            Attribute::Hostname => f.write_str("node.hostname")?,
            Attribute::Label(key) => write!(f, "node.labels.{key}")?,
        }
        write!(f, "{}{}", if self.equal { "==" } else { "!=" }, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn admits(text: &str) -> bool {
        let labels = Labels::new(BTreeMap::from([("zone".into(), "eu".into())])).unwrap();
        let id = NodeId::from_entropy([1; 16]);
        let facts = NodeFacts { id, hostname: "alpha", labels: &labels };
        text.parse::<Constraint>().unwrap().admits(&facts)
    }

    #[test]
    fn equal_and_unequal() {
        assert!(admits("node.labels.zone==eu"));
        assert!(admits("node.labels.zone == eu"));
        assert!(!admits("node.labels.zone!=eu"));
        assert!(!admits("node.labels.zone==us"));
        assert!(admits("node.hostname==alpha"));
        assert!(!admits("node.hostname==ALPHA"));
        assert!(admits(&format!("node.id=={}", NodeId::from_entropy([1; 16]))));
    }

    #[test]
    fn a_missing_label_is_never_equal_and_always_unequal() {
        assert!(!admits("node.labels.gpu==yes"));
        assert!(admits("node.labels.gpu!=yes"));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in [
            "",
            "node.id",
            "node.id=x",
            "node.role==manager",
            "node.labels.==x",
            "node.id==",
            "==x",
        ] {
            assert!(text.parse::<Constraint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn text_round_trips() {
        for text in ["node.labels.zone==eu", "node.id!=x", "node.hostname==a!=b"] {
            assert_eq!(text.parse::<Constraint>().unwrap().to_string(), text);
        }
    }

    /// It would be shown as another constraint than it is.
    #[test]
    fn a_label_does_not_end_in_half_an_operator() {
        for text in ["node.labels.one! == x", "node.labels.one= == x", "node.labels.one= != x"] {
            let refused = text.parse::<Constraint>().unwrap_err();
            assert!(matches!(refused, ConstraintError::Attribute { .. }), "{refused}");
        }
        assert!("node.labels.o!n=e == x".parse::<Constraint>().is_ok());
    }

    /// Every text of up to eight letters after `node.labels.` that can confuse names, operators and values.
    #[test]
    fn what_is_shown_is_the_constraint() {
        let mut texts = vec![String::from("node.labels.")];
        let mut accepted = 0;
        for _ in 0..8 {
            texts = texts
                .iter()
                .flat_map(|text| ['a', '!', '=', ' '].map(|letter| format!("{text}{letter}")))
                .collect();
            for text in &texts {
                let Ok(parsed) = text.parse::<Constraint>() else { continue };
                assert_eq!(parsed.to_string().parse().as_ref(), Ok(&parsed), "{text:?}");
                accepted += 1;
            }
        }
        assert!(accepted > 1_000, "{accepted}");
    }
}
