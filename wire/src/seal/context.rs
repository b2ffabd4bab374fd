//! What a seal is bound to, as bytes. Invariant: two different lists of fields never encode to the
//! same bytes (every field carries its kind and its length).

use keyhole_domain::ClusterId;

/// Which conversation a seal belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// A value on its way from an operator into a manager.
    CliToManager,
    /// Values on their way from a manager to one stream of a node.
    ManagerToNode,
    /// A key of the keyring or the CA, for one member.
    MemberKey,
    /// The unlock key, for the process of an operator who asks for it.
    ManagerToCli,
}

impl Protocol {
    fn label(self) -> &'static str {
        match self {
            Self::CliToManager => "keyhole cli-to-manager v1",
            Self::ManagerToNode => "keyhole manager-to-node v1",
            Self::MemberKey => "keyhole member key v1",
            Self::ManagerToCli => "keyhole manager-to-cli v1",
        }
    }
}

/// The two ends of a seal (HPKE's `info`): protocol, cluster, sender, receiver, and where there is
/// TLS its exporter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info(Fields);

impl Info {
    /// Binds to the protocol and the ends.
    #[must_use]
    pub fn new(protocol: Protocol, cluster: &ClusterId, sender: &str, receiver: &str) -> Self {
        let mut fields = Fields::default();
        fields.text(protocol.label());
        fields.text(cluster.as_str());
        fields.text(sender);
        fields.text(receiver);
        Self(fields)
    }

    /// Binds to one TLS connection too.
    #[must_use]
    pub fn exporter(mut self, exporter: &[u8]) -> Self {
        self.0.bytes(exporter);
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0.encoded
    }
}

/// The record a seal belongs to (the associated data): names, numbers and ids in a fixed order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aad(Fields);

impl Aad {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.0.text(text);
        self
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.bytes(bytes);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.0.number(number);
        self
    }

    /// The encoding, for a cipher other than this module's.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.encoded
    }
}

/// Kind (1 byte), length (8 bytes, big endian), contents; field after field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fields {
    encoded: Vec<u8>,
}

impl Fields {
    fn text(&mut self, text: &str) {
        self.field(b'T', text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.field(b'B', bytes);
    }

    fn number(&mut self, number: u64) {
        self.field(b'N', &number.to_be_bytes());
    }

    fn field(&mut self, kind: u8, contents: &[u8]) {
        self.encoded.push(kind);
        self.encoded.extend_from_slice(&(contents.len() as u64).to_be_bytes());
        self.encoded.extend_from_slice(contents);
    }
}
