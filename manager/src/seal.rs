//! Sealing: values at rest, the keys that only members open, and the two edges that a value crosses.
//!
//! Depends on state, wire and secmem. Invariant: a value's plaintext is only ever in [`SecretBytes`], for the moment
//! between two seals.

mod keyring;
mod value;

pub use keyring::{Keyring, KeyringError, MemberKey, Purpose, seal_key_for_members, seal_keys_for};
pub use value::{ValueError, open_value, seal_value};

use keyhole_domain::ClusterId;
use keyhole_proto::v1;
use keyhole_secmem::SecretBytes;
use keyhole_wire::seal::{Aad, EdgeKeyPair, Info, Protocol, SealError};

/// What an operator's value is for; part of its associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFor {
    /// The first version of a new secret.
    Create,
    /// The next version of a secret.
    Rotate,
    /// The passphrase of a backup.
    Backup,
    /// The unlock key of a locked manager.
    Unlock,
    /// The key of a root CA.
    RotateCa,
}

impl InputFor {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Rotate => "rotate",
            Self::Backup => "backup",
            Self::Unlock => "unlock",
            Self::RotateCa => "rotate-ca",
        }
    }
}

/// Who sends on the CLI's edge, in HPKE's info.
const OPERATOR: &str = "operator";

/// What the CLI binds a value to on its way to a manager: over TLS, to that connection too.
#[must_use]
pub fn input_info(cluster: &ClusterId, manager: &str, exporter: Option<&[u8; 32]>) -> Info {
    let info = Info::new(Protocol::CliToManager, cluster, OPERATOR, manager);
    match exporter {
        Some(exporter) => info.exporter(exporter),
        None => info,
    }
}

/// What the CLI binds a value to: the operation, and the secret as the operator typed it.
#[must_use]
pub fn input_aad(operation: InputFor, typed: &str) -> Aad {
    Aad::new().text(operation.word()).text(typed)
}

/// Opens a value that an operator's CLI sealed to this process's key.
pub fn open_input(
    key: &EdgeKeyPair,
    info: &Info,
    aad: &Aad,
    sealed: &v1::SealedInput,
) -> Result<SecretBytes, SealError> {
    key.open_one(&sealed.enc, info, aad, &sealed.ciphertext)
}

/// What a manager binds the values of one stream to.
#[must_use]
pub fn stream_info(cluster: &ClusterId, manager: &str, node: &str, exporter: &[u8]) -> Info {
    Info::new(Protocol::ManagerToNode, cluster, manager, node).exporter(exporter)
}

/// What a manager binds one value of a stream to: the record, and the revision that it comes with.
#[must_use]
pub fn stream_aad(key: &keyhole_domain::ValueKey, revision: keyhole_domain::Revision) -> Aad {
    Aad::new()
        .text(key.secret.as_str())
        .number(key.version.get())
        .number(revision.incarnation)
        .number(revision.index)
}
