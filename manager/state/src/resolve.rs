//! Which object an operator means: the full id, then the name, then a unique prefix of the id (docker-secrets,
//! section 1).

use crate::{Node, Rejected, Secret, Service, State};

/// The one entry whose id begins with `text`.
pub(crate) fn by_prefix<'a, V>(
    kind: &'static str,
    text: &str,
    entries: impl Iterator<Item = (&'a str, &'a V)>,
) -> Result<&'a V, Rejected> {
    let mut matches = entries.filter(|(id, _)| id.starts_with(text));
    match (matches.next(), matches.count()) {
        (Some((_, found)), 0) if !text.is_empty() => Ok(found),
        (Some(_), more) if !text.is_empty() => {
            Err(Rejected::Ambiguous { kind, name: text.to_owned(), count: more + 1 })
        }
        // Nothing at all is a variable that was not set, more often than not.
        _ if text.is_empty() => Err(Rejected::NotFound { kind, name: "''".to_owned() }),
        _ => Err(Rejected::NotFound { kind, name: text.chars().take(80).collect() }),
    }
}

impl State {
    /// The secret that `text` means.
    pub fn find_secret(&self, text: &str) -> Result<&Secret, Rejected> {
        self.seen_whole().find_secret(text)
    }

    /// The service that `text` means.
    pub fn find_service(&self, text: &str) -> Result<&Service, Rejected> {
        self.seen_whole().find_service(text)
    }

    /// The node that `text` means; several machines may have one host name, which is then ambiguous.
    pub fn find_node(&self, text: &str) -> Result<&Node, Rejected> {
        if let Some(node) = text.parse().ok().and_then(|id| self.nodes.get(&id)) {
            return Ok(node);
        }
        let mut named = self.nodes.values().filter(|node| node.hostname == text);
        match (named.next(), named.count()) {
            (Some(node), 0) => Ok(node),
            (Some(_), more) => {
                Err(Rejected::Ambiguous { kind: "node", name: text.to_owned(), count: more + 1 })
            }
            (None, _) => {
                by_prefix("node", text, self.nodes.iter().map(|(id, node)| (id.as_str(), node)))
            }
        }
    }
}
