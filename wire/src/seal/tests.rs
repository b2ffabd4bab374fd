//! Seals that open for their receiver, in their order, and for nothing else.

use super::*;
use keyhole_domain::ClusterId;

fn cluster(n: u8) -> ClusterId {
    ClusterId::from_entropy([n; 16])
}

fn info() -> Info {
    Info::new(Protocol::CliToManager, &cluster(1), "operator", "manager")
}

fn aad() -> Aad {
    Aad::new().text("db").number(3)
}

fn secret(text: &[u8]) -> SecretBytes {
    SecretBytes::copy_from(&mut text.to_vec()).unwrap()
}

#[test]
fn a_seal_opens_for_its_receiver_and_hides_the_value() {
    let pair = EdgeKeyPair::generate().unwrap();
    for value in [b"".as_slice(), b"x", b"hunter2-hunter2-hunter2"] {
        let sealed = seal_one(&pair.public(), &info(), &aad(), &secret(value)).unwrap();
        assert_eq!(sealed.ciphertext.len(), value.len() + TAG_LEN);
        assert!(value.len() < 2 || !sealed.ciphertext.windows(value.len()).any(|w| w == value));
        let opened = pair.open_one(&sealed.enc, &info(), &aad(), &sealed.ciphertext).unwrap();
        assert_eq!(opened.as_slice(), value);
    }
}

#[test]
fn two_seals_of_one_value_differ() {
    let pair = EdgeKeyPair::generate().unwrap();
    let seal = || seal_one(&pair.public(), &info(), &aad(), &secret(b"hunter2")).unwrap();
    let (one, other) = (seal(), seal());
    assert_ne!(one.enc, other.enc);
    assert_ne!(one.ciphertext, other.ciphertext);
}

#[test]
fn a_seal_opens_for_nobody_and_nothing_else() {
    let pair = EdgeKeyPair::generate().unwrap();
    let sealed = seal_one(&pair.public(), &info(), &aad(), &secret(b"hunter2")).unwrap();
    let refused = |pair: &EdgeKeyPair, enc: &[u8], info: &Info, aad: &Aad, text: &[u8]| {
        assert!(matches!(pair.open_one(enc, info, aad, text), Err(SealError::NotAuthentic)));
    };
    let (enc, text) = (&sealed.enc, &sealed.ciphertext);
    refused(&EdgeKeyPair::generate().unwrap(), enc, &info(), &aad(), text);
    for other in [
        Info::new(Protocol::ManagerToNode, &cluster(1), "operator", "manager"),
        Info::new(Protocol::CliToManager, &cluster(2), "operator", "manager"),
        Info::new(Protocol::CliToManager, &cluster(1), "operator2", "manager"),
        Info::new(Protocol::CliToManager, &cluster(1), "operator", "manager2"),
        info().exporter(&[1; 32]),
    ] {
        refused(&pair, enc, &other, &aad(), text);
    }
    for other in [Aad::new(), Aad::new().text("db").number(4), aad().number(0)] {
        refused(&pair, enc, &info(), &other, text);
    }
    for i in 0..text.len() {
        let mut changed = text.clone();
        changed[i] ^= 1;
        refused(&pair, enc, &info(), &aad(), &changed);
    }
    let mut changed = enc.clone();
    changed[0] ^= 1;
    refused(&pair, &changed, &info(), &aad(), text);
}

#[test]
fn fields_cannot_be_shifted_into_each_other() {
    assert_ne!(Aad::new().text("ab").text("c"), Aad::new().text("a").text("bc"));
    // Contents that look like a field of their own.
    assert_ne!(Aad::new().text("aTb"), Aad::new().text("a").text("b"));
    assert_ne!(Aad::new().text("a"), Aad::new().bytes(b"a"));
    assert_ne!(Aad::new().number(1), Aad::new().bytes(&1_u64.to_be_bytes()));
    assert_ne!(Aad::new().text("").text("a"), Aad::new().text("a").text(""));
    let info = |a, b| Info::new(Protocol::MemberKey, &cluster(1), a, b);
    assert_ne!(info("ab", "c"), info("a", "bc"));
}

#[test]
fn a_stream_opens_in_its_order_only() {
    let pair = EdgeKeyPair::generate().unwrap();
    let (mut sealer, enc) = StreamSealer::new(&pair.public(), &info()).unwrap();
    let first = sealer.seal(&aad(), &secret(b"one")).unwrap();
    let second = sealer.seal(&aad(), &secret(b"two")).unwrap();
    let mut opener = pair.stream_opener(&enc, &info()).unwrap();
    assert!(matches!(opener.open(&aad(), &second), Err(SealError::NotAuthentic)));
    assert_eq!(opener.open(&aad(), &first).unwrap().as_slice(), b"one");
    assert!(matches!(opener.open(&aad(), &first), Err(SealError::NotAuthentic)));
    assert_eq!(opener.open(&aad(), &second).unwrap().as_slice(), b"two");
}

#[test]
fn a_kept_secret_makes_the_same_pair() {
    let pair = EdgeKeyPair::generate().unwrap();
    let kept = EdgeKeyPair::from_secret(pair.secret().try_clone().unwrap());
    assert_eq!(pair.public(), kept.public());
    let sealed = seal_one(&pair.public(), &info(), &aad(), &secret(b"hunter2")).unwrap();
    let opened = kept.open_one(&sealed.enc, &info(), &aad(), &sealed.ciphertext).unwrap();
    assert_eq!(opened.as_slice(), b"hunter2");
}

#[test]
fn the_public_key_is_x25519_of_the_secret() {
    // From a ladder written separately after RFC 7748, section 5.
    let public = "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f";
    let mut secret = std::array::from_fn(|i| i as u8);
    let pair = EdgeKeyPair::from_secret(keyhole_secmem::Key32::from_bytes(&mut secret).unwrap());
    let shown: String = pair.public().as_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(shown, public);
}

#[test]
fn unusable_input_is_refused_without_panicking() {
    let pair = EdgeKeyPair::generate().unwrap();
    let zero = EdgePublicKey::from_bytes([0; 32]);
    assert!(matches!(StreamSealer::new(&zero, &info()), Err(SealError::BadKey)));
    assert!(matches!(EdgePublicKey::try_from(&[1_u8; 31][..]), Err(SealError::BadKey)));
    for enc in [&[][..], &[1; 31], &[0; 32], &[1; 33]] {
        assert!(matches!(pair.stream_opener(enc, &info()), Err(SealError::BadKey)));
    }
    let (_, enc) = StreamSealer::new(&pair.public(), &info()).unwrap();
    let short = pair.open_one(&enc, &info(), &aad(), &[0; 15]);
    assert!(matches!(short, Err(SealError::TooShort { len: 15 })));
    let long = Info::new(Protocol::MemberKey, &cluster(1), &"x".repeat(70_000), "b");
    assert!(matches!(StreamSealer::new(&pair.public(), &long), Err(SealError::InfoTooLong { .. })));
}

#[test]
fn debug_shows_no_secret() {
    let pair =
        EdgeKeyPair::from_secret(keyhole_secmem::Key32::from_bytes(&mut [0x41; 32]).unwrap());
    let shown = format!("{pair:?}");
    assert!(!shown.contains("41, 41") && !shown.contains("AAAA") && !shown.contains("4141"));
}
