//! Scopes: which secrets and services an operator may touch and see, by their names.
//!
//! Invariant: what is out of a scope is not there for who has it: it is in no list, has no name that resolves and is in
//! no count, so that nobody learns of it by asking.

use std::fmt;
use std::str::FromStr;

use keyhole_domain::{SecretId, SecretName, ServiceName};

use crate::resolve::by_prefix;
use crate::{Rejected, Secret, Service, State};

/// A scope has at most so many patterns of each kind.
const MAX_PATTERNS: usize = 64;
/// No name is longer.
const MAX_PATTERN_BYTES: usize = 64;

/// Why a text is no pattern, or patterns make no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// It could match no name, or is no pattern of names.
    #[error(
        "invalid pattern {text:?}: write 1 to {MAX_PATTERN_BYTES} characters of [a-zA-Z0-9-_.], with * for any \
         characters and ? for one"
    )]
    Pattern {
        /// The text, cut at 80 characters.
        text: String,
    },
    /// Too many patterns.
    #[error("{count} patterns given; a scope has at most {MAX_PATTERNS} of each kind")]
    TooMany {
        /// Patterns given.
        count: usize,
    },
}

/// A pattern of names: `*` stands for any characters, also none, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether a name is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut of) = (0, 0);
        // The last star, and up to where of the name it reaches; longer is tried when the rest does not match.
        let mut star: Option<(usize, usize)> = None;
        while of < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, of));
                    at += 1;
                }
                Some(byte) if *byte == b'?' || name.get(of) == Some(byte) => {
                    at += 1;
                    of += 1;
                }
                _ => match &mut star {
                    Some((place, reach)) => {
                        *reach += 1;
                        (at, of) = (*place + 1, *reach);
                    }
                    None => return false,
                },
            }
        }
        pattern.iter().skip(at).all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*?".contains(&byte);
        match (1..=MAX_PATTERN_BYTES).contains(&text.len()) && text.bytes().all(known) {
            true => Ok(Self(text.to_owned())),
            false => Err(ScopeError::Pattern { text: text.chars().take(80).collect() }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names; no pattern of a kind means all of that kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    secrets: Vec<Pattern>,
    services: Vec<Pattern>,
}

impl Scope {
    /// Everything.
    pub const ALL: Self = Self { secrets: Vec::new(), services: Vec::new() };

    /// Checks and takes patterns.
    pub fn new(secrets: &[String], services: &[String]) -> Result<Self, ScopeError> {
        Ok(Self { secrets: patterns(secrets)?, services: patterns(services)? })
    }

    /// Whether something is out of it.
    pub fn is_limited(&self) -> bool {
        !self.secrets.is_empty() || !self.services.is_empty()
    }

    /// The patterns of secret names.
    pub fn secrets(&self) -> &[Pattern] {
        &self.secrets
    }

    /// The patterns of service names.
    pub fn services(&self) -> &[Pattern] {
        &self.services
    }

    /// Whether a secret of that name is in it.
    pub fn has_secret(&self, name: &SecretName) -> bool {
        has(&self.secrets, name.as_str())
    }

    /// Whether a service of that name is in it.
    pub fn has_service(&self, name: &ServiceName) -> bool {
        has(&self.services, name.as_str())
    }
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>, ScopeError> {
    match texts.len() > MAX_PATTERNS {
        true => Err(ScopeError::TooMany { count: texts.len() }),
        false => texts.iter().map(|text| text.parse()).collect(),
    }
}

fn has(patterns: &[Pattern], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
}

static ALL: Scope = Scope::ALL;

/// The state as far as a scope shows it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What is for everybody: nodes, the cluster.
    pub state: &'a State,
    scope: &'a Scope,
}

impl State {
    /// The state, all of it.
    pub(crate) fn seen_whole(&self) -> Seen<'_> {
        self.seen_by(&ALL)
    }

    /// The state as far as `scope` shows it.
    pub fn seen_by<'a>(&'a self, scope: &'a Scope) -> Seen<'a> {
        Seen { state: self, scope }
    }
}

impl<'a> Seen<'a> {
    /// The secrets, in the order of their ids.
    pub fn secrets(self) -> impl Iterator<Item = &'a Secret> {
        self.state.secrets.values().filter(move |secret| self.scope.has_secret(&secret.name))
    }

    /// The services, in the order of their ids.
    pub fn services(self) -> impl Iterator<Item = &'a Service> {
        self.state.services.values().filter(move |service| self.scope.has_service(&service.name))
    }

    /// A secret by its id.
    pub fn secret(self, id: SecretId) -> Option<&'a Secret> {
        self.state.secrets.get(&id).filter(|secret| self.scope.has_secret(&secret.name))
    }

    /// A service by its id.
    pub fn service(self, id: keyhole_domain::ServiceId) -> Option<&'a Service> {
        self.state.services.get(&id).filter(|service| self.scope.has_service(&service.name))
    }

    /// The secret that `text` means: the full id, then the name, then a unique beginning of the id.
    pub fn find_secret(self, text: &str) -> Result<&'a Secret, Rejected> {
        if let Some(secret) = text.parse().ok().and_then(|id| self.secret(id)) {
            return Ok(secret);
        }
        let named = text.parse().ok().and_then(|name| self.state.secret_names.get(&name));
        match named.and_then(|id| self.secret(*id)) {
            Some(secret) => Ok(secret),
            None => by_prefix("secret", text, self.secrets().map(|s| (s.id.as_str(), s))),
        }
    }

    /// The service that `text` means, likewise.
    pub fn find_service(self, text: &str) -> Result<&'a Service, Rejected> {
        if let Some(service) = text.parse().ok().and_then(|id| self.service(id)) {
            return Ok(service);
        }
        let named = text.parse().ok().and_then(|name| self.state.service_names.get(&name));
        match named.and_then(|id| self.service(*id)) {
            Some(service) => Ok(service),
            None => by_prefix("service", text, self.services().map(|s| (s.id.as_str(), s))),
        }
    }

    /// The services whose spec, or spec before, grants a secret, by name.
    pub fn users_of(self, secret: SecretId) -> Vec<String> {
        let users = self.state.services_using(secret);
        users.into_iter().filter(|name| self.has_service_named(name)).collect()
    }

    pub(crate) fn has_service_named(self, name: &str) -> bool {
        has(&self.scope.services, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn stars_and_question_marks_match_as_in_a_shell() {
        for (text, yes, no) in [
            ("web-*", &["web-", "web-a", "web-a-b"][..], &["web", "aweb-", "Web-a"][..]),
            ("*", &["", "a"], &[]),
            ("a?c", &["abc", "a.c"], &["ac", "abbc"]),
            ("*-key", &["-key", "a-key", "a-key-key"], &["a-key-", "key"]),
            ("a*b*c", &["abc", "axbxbxc"], &["ab", "acb"]),
            ("a.b", &["a.b"], &["aXb"]),
        ] {
            yes.iter().for_each(|name| assert!(pattern(text).matches(name), "{text} {name}"));
            no.iter().for_each(|name| assert!(!pattern(text).matches(name), "{text} {name}"));
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "a b", "[a]", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
        let many = vec!["a".to_owned(); 65];
        assert_eq!(Scope::new(&[], &many), Err(ScopeError::TooMany { count: 65 }));
    }

    /// Slow, and plainly right.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                naive(&pattern[1..], name) || (!name.is_empty() && naive(pattern, &name[1..]))
            }
            (Some(b'?'), Some(_)) => naive(&pattern[1..], &name[1..]),
            (Some(a), Some(b)) if a == b => naive(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_the_naive_one_says(text in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(pattern(&text).matches(&name), naive(text.as_bytes(), name.as_bytes()));
        }
    }
}
