//! `--filter`, with Docker's meaning: `id` and `name` (beginnings) and `names` (whole) widen, everything else narrows.

use std::collections::HashMap;
use std::str::FromStr;

/// One `key=value` of `--filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    key: String,
    value: String,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) =
            text.split_once('=').ok_or("a filter is written key=value, for example name=db")?;
        Ok(Self { key: key.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
    }
}

/// What filters look at.
pub(crate) struct Subject<'a> {
    /// The object's id.
    pub(crate) id: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
    /// Its labels, if its kind has some.
    pub(crate) labels: Option<&'a HashMap<String, String>>,
    /// What else may be compared, whole and regardless of case.
    pub(crate) others: &'a [(&'static str, &'a str)],
}

impl Filter {
    /// Refuses a key that the listed objects do not have.
    pub(crate) fn check(filters: &[Self], known: &[&str]) -> Result<(), String> {
        match filters.iter().find(|f| !known.contains(&f.key.as_str())) {
            None => Ok(()),
            Some(filter) => {
                Err(format!("invalid filter '{}'; known here are {}", filter.key, known.join(", ")))
            }
        }
    }

    /// Whether `subject` passes all of them together.
    pub(crate) fn admit(filters: &[Self], subject: &Subject<'_>) -> bool {
        let mut naming = filters.iter().filter(|f| f.is_naming()).peekable();
        let named = naming.peek().is_none() || naming.any(|f| f.names(subject));
        named && filters.iter().filter(|f| !f.is_naming()).all(|f| f.narrows_to(subject, filters))
    }

    fn is_naming(&self) -> bool {
        matches!(self.key.as_str(), "id" | "name" | "names")
    }

    fn names(&self, subject: &Subject<'_>) -> bool {
        match self.key.as_str() {
            "id" => subject.id.starts_with(&self.value),
            "name" => subject.name.starts_with(&self.value),
            _ => subject.name == self.value,
        }
    }

    fn narrows_to(&self, subject: &Subject<'_>, all: &[Self]) -> bool {
        if self.key == "label" || self.key == "node.label" {
            let (key, wanted) = match self.value.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (self.value.as_str(), None),
            };
            let found = subject.labels.and_then(|labels| labels.get(key));
            return found.is_some_and(|value| wanted.is_none_or(|wanted| wanted == value));
        }
        // Values of one key widen, as `-f node=a -f node=b` says "on a or b".
        let mut alike = all.iter().filter(|f| f.key == self.key);
        alike.any(|filter| {
            subject
                .others
                .iter()
                .any(|(key, value)| *key == filter.key && value.eq_ignore_ascii_case(&filter.value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(filters: &[&str]) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|f| f.parse().unwrap()).collect();
        let labels = HashMap::from([("env".into(), "prod".into()), ("bare".into(), "".into())]);
        Filter::admit(
            &filters,
            &Subject {
                id: "abc123",
                name: "db_password",
                labels: Some(&labels),
                others: &[("node", "alpha")],
            },
        )
    }

    #[test]
    fn names_and_ids_widen() {
        assert!(admits(&[]));
        assert!(admits(&["name=db"]));
        assert!(admits(&["id=abc"]));
        assert!(admits(&["name=zzz", "id=abc"]));
        assert!(admits(&["names=db_password"]));
        assert!(!admits(&["names=db"]));
        assert!(!admits(&["name=password"]));
        assert!(!admits(&["name=DB"]));
    }

    #[test]
    fn labels_narrow() {
        assert!(admits(&["label=env"]));
        assert!(admits(&["label=env=prod", "label=bare"]));
        assert!(!admits(&["label=env=prod", "label=none"]));
        assert!(!admits(&["name=db", "label=env=dev"]));
        assert!(admits(&["label=bare="]));
    }

    #[test]
    fn other_keys_widen_among_themselves() {
        assert!(admits(&["node=beta", "node=ALPHA"]));
        assert!(!admits(&["node=beta"]));
    }

    #[test]
    fn unknown_keys_and_bad_forms_are_named() {
        let filters = ["colour=red".parse().unwrap()];
        let error = Filter::check(&filters, &["id", "name"]).unwrap_err();
        assert_eq!(error, "invalid filter 'colour'; known here are id, name");
        assert!("name".parse::<Filter>().is_err());
    }
}
