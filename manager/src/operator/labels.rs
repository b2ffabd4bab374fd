//! Changing labels: removals first, then additions, as Docker does.

use std::collections::HashMap;

use keyhole_domain::Labels;
use tonic::Status;

use crate::status::invalid;

pub(super) fn parse(labels: HashMap<String, String>) -> Result<Labels, Status> {
    Labels::new(labels.into_iter().collect()).map_err(invalid)
}

pub(super) fn out(labels: &Labels) -> HashMap<String, String> {
    labels.as_map().clone().into_iter().collect()
}

/// The labels after the change; removing what is not there is a mistake worth naming.
pub(super) fn changed(
    before: &Labels,
    remove: &[String],
    add: &HashMap<String, String>,
) -> Result<Labels, Status> {
    let mut labels = before.as_map().clone();
    for key in remove {
        if labels.remove(key).is_none() {
            return Err(Status::not_found(format!("label {key:?} not found")));
        }
    }
    labels.extend(add.clone());
    Labels::new(labels).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_come_first_and_unknown_ones_are_named() {
        let pair = |k: &str, v: &str| HashMap::from([(k.to_owned(), v.to_owned())]);
        let before = parse(pair("a", "1")).unwrap();
        let after = changed(&before, &["a".into()], &pair("a", "2")).unwrap();
        assert_eq!(after.value("a"), Some("2"));
        let error = changed(&before, &["b".into()], &pair("a", "2")).unwrap_err();
        assert!(error.message().contains("\"b\""), "{error}");
    }
}
