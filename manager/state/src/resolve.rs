//! Which object an operator means: the full id, then the name, then a unique prefix of the id (docker-secrets,
//! section 1).

use std::collections::BTreeMap;

use crate::{Node, Rejected, Secret, Service, State};

/// The one entry whose id begins with `text`.
fn by_prefix<'a, K: AsRefStr, V>(
    kind: &'static str,
    text: &str,
    table: &'a BTreeMap<K, V>,
) -> Result<&'a V, Rejected> {
    let mut matches = table.iter().filter(|(id, _)| id.text().starts_with(text));
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

trait AsRefStr {
    fn text(&self) -> &str;
}

macro_rules! texts {
    ($($id:ty),*) => {$(impl AsRefStr for $id {
        fn text(&self) -> &str {
            self.as_str()
        }
    })*};
}

texts!(keyhole_domain::SecretId, keyhole_domain::ServiceId, keyhole_domain::NodeId);

impl State {
    /// The secret that `text` means.
    pub fn find_secret(&self, text: &str) -> Result<&Secret, Rejected> {
        if let Some(secret) = text.parse().ok().and_then(|id| self.secrets.get(&id)) {
            return Ok(secret);
        }
        let named = text.parse().ok().and_then(|name| self.secret_names.get(&name));
        match named.and_then(|id| self.secrets.get(id)) {
            Some(secret) => Ok(secret),
            None => by_prefix("secret", text, &self.secrets),
        }
    }

    /// The service that `text` means.
    pub fn find_service(&self, text: &str) -> Result<&Service, Rejected> {
        if let Some(service) = text.parse().ok().and_then(|id| self.services.get(&id)) {
            return Ok(service);
        }
        let named = text.parse().ok().and_then(|name| self.service_names.get(&name));
        match named.and_then(|id| self.services.get(id)) {
            Some(service) => Ok(service),
            None => by_prefix("service", text, &self.services),
        }
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
            (None, _) => by_prefix("node", text, &self.nodes),
        }
    }
}
