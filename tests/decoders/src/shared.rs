//! What both sides read: certificates, seals, keys, and all that people and configurations spell.

use std::fmt::{Debug, Display};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::str::FromStr;
use std::sync::LazyLock;

use keyhole_domain::{
    ClusterId, Constraint, FileMode, GrantSpec, SecretId, SecretName, Target, Version,
};
use keyhole_manager::keys::Kek;
use keyhole_manager::seal::open_value;
use keyhole_manager::store::StoreIdentity;
use keyhole_secmem::{Key32, SecretBytes};
use keyhole_state::SealedValue;
use keyhole_wire::seal::{Aad, EdgeKeyPair, EdgePublicKey, Info, Protocol};
use keyhole_wire::tls::certificate::csr_public_key;
use keyhole_wire::tls::{Identity, LiveTls, PeerIdentity, key_id};
use keyhole_wire::token::JoinToken;
use keyhole_wire::unlock_key::{parse_unlock_key, unlock_key_text};
use tempfile::TempDir;

use crate::pieces;

/// A certificate, a request for one, and a chain with its key.
pub(crate) fn certificate(bytes: &[u8]) {
    let _ = PeerIdentity::from_der(bytes, 1_800_000_000);
    let _ = (csr_public_key(bytes), key_id(bytes));
    let _ = LiveTls::new(None, vec![bytes.to_vec()]);
    let mut chain: Vec<_> = pieces(bytes).map(<[u8]>::to_vec).collect();
    if let Some(mut key) = chain.pop() {
        let key = SecretBytes::copy_from(&mut key).expect("there is memory");
        let _ = Identity::new(chain, key);
    }
}

/// A seal's two halves, a value at rest, and a wrapped key of a store; none of them opens with a key that it was not made for.
pub(crate) fn seal(bytes: &[u8]) {
    let key = || Key32::from_bytes(&mut [7; 32]).expect("there is memory");
    let cluster = ClusterId::from_entropy([1; 16]);
    let mut parts = pieces(bytes);
    let (enc, ciphertext) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let info = Info::new(Protocol::CliToManager, &cluster, "operator", "m");
    let pair = EdgeKeyPair::from_secret(key());
    assert!(
        pair.open_one(enc, &info, &Aad::new().text("x"), ciphertext).is_err(),
        "a forged seal opens"
    );
    let _ = EdgePublicKey::try_from(enc);
    let of = (SecretId::from_entropy([2; 16]), Version::FIRST);
    let sealed = SealedValue { epoch: 1, salt: [3; 32], ciphertext: ciphertext.to_vec() };
    assert!(open_value(&key(), &cluster, of, &sealed).is_err(), "a forged value opens");
    let kek = Kek::from_key(key(), "the fuzzer's");
    assert!(kek.unwrap(bytes, &identity()).is_err(), "a forged key opens");
}

/// Where a key's file is.
static FOLDER: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a tmpfs"));

/// The file of a manager's key, and an unlock key as it was typed.
pub(crate) fn key(bytes: &[u8]) {
    let file = FOLDER.path().join("kek");
    fs::write(&file, bytes).expect("the folder is ours");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("it is ours");
    if let Ok(kek) = Kek::open(&file) {
        let (dek, identity) = (Key32::generate().expect("there is memory"), identity());
        let wrapped = kek.wrap(&dek, &identity).expect("there is memory");
        assert!(kek.unwrap(&wrapped, &identity).is_ok_and(|key| key == dek));
    }
    if let Ok(key) = parse_unlock_key(bytes) {
        let shown = unlock_key_text(&key).expect("there is memory");
        assert_eq!(shown.as_slice(), bytes.trim_ascii());
    }
}

fn identity() -> StoreIdentity {
    StoreIdentity { cluster: "c".into(), manager: "m".into(), member: 1 }
}

/// A join token, names, targets, modes, grants and constraints.
pub(crate) fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = JoinToken::parse(text) {
        let shown = token.reveal();
        let again = JoinToken::parse(&shown).expect("what is shown is a token");
        assert!(again.verify(&token.hash()), "another token is shown");
    }
    same_when_shown::<SecretName>(text);
    same_when_shown::<Target>(text);
    same_when_shown::<FileMode>(text);
    same_when_shown::<Version>(text);
    same_when_shown::<SecretId>(text);
    same_when_shown::<Constraint>(text);
    let _ = GrantSpec::from_str(text);
}

fn same_when_shown<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(parsed) = text.parse::<T>() {
        assert_eq!(parsed.to_string().parse::<T>().as_ref().ok(), Some(&parsed), "{text:?}");
    }
}
