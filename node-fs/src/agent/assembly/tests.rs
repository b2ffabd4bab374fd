//! Parts that are whole, late, mixed up or forged.

use keyhole_domain::{ClusterId, SecretId, Version};
use keyhole_secmem::{SecretBytes, SecretFd};
use keyhole_view::ShownValue;
use keyhole_wire::seal::{Protocol, StreamSealer};

use super::*;
use crate::value_memory;

/// A manager's end of a stream and the node's.
struct Stream {
    sealer: StreamSealer,
    enc: Vec<u8>,
    assembly: Assembly,
    values: Values,
}

fn revision(index: u64) -> Revision {
    Revision { incarnation: 1, index }
}

fn key(secret: u8, version: u64) -> ValueKey {
    let version = Version::new(version).unwrap();
    ValueKey { secret: SecretId::from_entropy([secret; 16]), version }
}

fn task_id(n: u8) -> TaskId {
    TaskId::from_entropy([n; 16])
}

fn task(n: u8, values: &[(ValueKey, u32)]) -> v1::AssignedTaskRecord {
    let grant = |(id, (key, size)): (usize, &(ValueKey, u32))| v1::AssignedGrantRecord {
        id: id as u64,
        value: Some(records::value_ref(*key)),
        size: *size,
        name: "pw".to_owned(),
        target: format!("pw{id}"),
        uid: 0,
        gid: 0,
        mode: 0o444,
    };
    v1::AssignedTaskRecord {
        id: task_id(n).to_string(),
        service: "web".to_owned(),
        grants: values.iter().enumerate().map(grant).collect(),
        rejected: String::new(),
    }
}

fn part(applies_to: u64, results_in: u64) -> v1::AssignmentPart {
    let applies_to = (applies_to > 0).then(|| records::revision_ref(revision(applies_to)));
    v1::AssignmentPart {
        applies_to,
        results_in: Some(records::revision_ref(revision(results_in))),
        ..v1::AssignmentPart::default()
    }
}

impl Stream {
    fn new(seen: Revision) -> Self {
        let info = |id: &str| {
            Info::new(Protocol::ManagerToNode, &ClusterId::from_entropy([1; 16]), "m", id)
                .exporter(&[7; 32])
        };
        let keys = EdgeKeyPair::generate().unwrap();
        let (sealer, enc) = StreamSealer::new(&keys.public(), &info("n")).unwrap();
        let assembly = Assembly::new(keys, info("n"), seen);
        let values =
            Values::open_in(&SecretFd::create().unwrap(), value_memory::memfd(), []).unwrap();
        Self { sealer, enc, assembly, values }
    }

    /// A value sealed for one name and revision, labelled with another name.
    fn mislabelled(
        &mut self,
        sealed_as: ValueKey,
        at: Revision,
        named: ValueKey,
        bytes: &[u8],
    ) -> v1::ValueRecord {
        let aad = Aad::new()
            .text(sealed_as.secret.as_str())
            .number(sealed_as.version.get())
            .number(at.incarnation)
            .number(at.index);
        let plain = SecretBytes::copy_from(&mut bytes.to_vec()).unwrap();
        v1::ValueRecord {
            key: Some(records::value_ref(named)),
            ciphertext: self.sealer.seal(&aad, &plain).unwrap().into(),
        }
    }

    fn value(&mut self, key: ValueKey, at: u64, bytes: &[u8]) -> v1::ValueRecord {
        self.mislabelled(key, revision(at), key, bytes)
    }

    fn take(&mut self, mut part: v1::AssignmentPart) -> Result<Option<Change>, StreamError> {
        part.enc = std::mem::take(&mut self.enc).into();
        self.assembly.take(part, &self.values)
    }

    fn read(&self, change: Change, key: ValueKey) -> Vec<u8> {
        let shown = |key| ShownValue { incarnation: 1, key };
        for (key, sealed) in change.values {
            self.values.insert_sealed(shown(key), sealed);
        }
        self.values.open(&shown(key)).unwrap().part(0, u32::MAX).to_vec()
    }
}

#[test]
fn a_change_in_several_parts_counts_when_the_last_is_there() {
    let mut stream = Stream::new(Revision::default());
    let (one, two) = (key(1, 1), key(2, 5));
    let mut first = part(0, 3);
    first.tasks = vec![task(1, &[(one, 3), (two, 4)])];
    first.values = vec![stream.value(one, 3, b"abc")];
    first.more = true;
    assert_eq!(stream.take(first).unwrap(), None);
    let mut second = part(0, 3);
    second.values = vec![stream.value(two, 3, b"defg")];
    let change = stream.take(second).unwrap().unwrap();
    assert_eq!(change.assignment.revision, revision(3));
    assert_eq!(change.assignment.values(), [one, two].into());
    assert_eq!(stream.read(change, two), b"defg");
}

#[test]
fn a_delta_changes_what_it_names_and_nothing_else() {
    let mut stream = Stream::new(Revision::default());
    let (one, two) = (key(1, 1), key(1, 2));
    let mut first = part(0, 3);
    first.tasks = vec![task(1, &[(one, 3)]), task(2, &[(one, 3)]), task(3, &[])];
    first.values = vec![stream.value(one, 3, b"abc")];
    stream.take(first).unwrap().unwrap();
    let mut delta = part(3, 4);
    delta.tasks = vec![task(2, &[(two, 2)])];
    delta.removed_tasks = vec![task_id(3).to_string()];
    delta.values = vec![stream.value(two, 4, b"xy")];
    let change = stream.take(delta).unwrap().unwrap();
    let tasks: Vec<_> = change.assignment.tasks.iter().map(|task| task.id).collect();
    assert_eq!(tasks, [task_id(1), task_id(2)]);
    assert_eq!(change.assignment.values(), [one, two].into());
    assert_eq!(change.values.len(), 1);
    let mut rotated = part(4, 5);
    let three = key(1, 3);
    let grants = task(1, &[(three, 5)]).grants.to_vec();
    rotated.changed_grants = vec![v1::ChangedGrantsRecord { task: task_id(1).to_string(), grants }];
    let error = stream.take(rotated.clone()).unwrap_err();
    assert!(matches!(error, StreamError::Missing { .. }), "{error}");
    rotated.values = vec![stream.value(three, 5, b"later")];
    let change = stream.take(rotated).unwrap().unwrap();
    assert_eq!(change.assignment.values(), [three, two].into());
    // A value that went with its last grant must come again.
    let mut back = part(5, 6);
    back.tasks = vec![task(1, &[(one, 3)])];
    let error = stream.take(back).unwrap_err();
    assert!(matches!(error, StreamError::Missing { .. }), "{error}");
}

#[test]
fn a_gap_in_the_chain_ends_the_stream() {
    let mut stream = Stream::new(Revision::default());
    let error = stream.take(part(2, 3)).unwrap_err();
    let gap = |error: &StreamError| matches!(error, StreamError::Delta(DeltaError::Gap { .. }));
    assert!(gap(&error), "a delta before anything complete: {error}");
    let mut stream = Stream::new(Revision::default());
    stream.take(part(0, 3)).unwrap().unwrap();
    stream.take(part(3, 5)).unwrap().unwrap();
    let error = stream.take(part(6, 7)).unwrap_err();
    let StreamError::Delta(DeltaError::Gap { applies_to, have }) = error else { panic!("{error}") };
    assert_eq!((applies_to, have), (revision(6), revision(5)));
}

#[test]
fn going_back_is_refused_within_an_incarnation_and_across() {
    for (offered, refused) in [
        ((1, 9), true),
        ((1, 10), false),
        ((1, 11), false),
        ((0, 99), true),
        ((2, 1), false),
        ((0, 0), true),
    ] {
        let mut stream = Stream::new(revision(10));
        let results_in = Revision { incarnation: offered.0, index: offered.1 };
        let mut part = part(0, 1);
        part.results_in = Some(records::revision_ref(results_in));
        let result = stream.take(part);
        assert_eq!(matches!(result, Err(StreamError::WentBack { .. })), refused, "{offered:?}");
    }
    let mut stream = Stream::new(Revision::default());
    stream.take(part(0, 10)).unwrap();
    let error = stream.take(part(0, 9)).unwrap_err();
    assert!(matches!(error, StreamError::WentBack { .. }), "{error}");
}

#[test]
fn a_value_under_another_name_or_revision_is_refused() {
    let (one, two) = (key(1, 1), key(1, 2));
    for (sealed_as, at) in [(two, 3), (key(2, 1), 3), (one, 2)] {
        let mut stream = Stream::new(Revision::default());
        let mut first = part(0, 3);
        first.tasks = vec![task(1, &[(one, 3)])];
        first.values = vec![stream.mislabelled(sealed_as, revision(at), one, b"abc")];
        let error = stream.take(first).unwrap_err();
        assert!(matches!(error, StreamError::Seal { .. }), "{error}");
    }
}

#[test]
fn values_out_of_order_are_refused() {
    let mut stream = Stream::new(Revision::default());
    let (one, two) = (key(1, 1), key(2, 1));
    let mut values = vec![stream.value(one, 3, b"abc"), stream.value(two, 3, b"abc")];
    values.reverse();
    let error = stream.take(v1::AssignmentPart { values, ..part(0, 3) }).unwrap_err();
    assert!(matches!(error, StreamError::Seal { .. }), "{error}");
}

#[test]
fn a_grant_without_its_value_is_refused_rather_than_missing() {
    let mut stream = Stream::new(Revision::default());
    let mut first = part(0, 3);
    first.tasks = vec![task(1, &[(key(1, 1), 3)])];
    let error = stream.take(first).unwrap_err();
    assert!(matches!(error, StreamError::Missing { .. }), "{error}");
}

#[test]
fn a_value_of_another_length_than_its_grant_is_refused() {
    let mut stream = Stream::new(Revision::default());
    let mut first = part(0, 3);
    first.tasks = vec![task(1, &[(key(1, 1), 4)])];
    first.values = vec![stream.value(key(1, 1), 3, b"abc")];
    let error = stream.take(first).unwrap_err();
    assert!(matches!(error, StreamError::Length { found: 3, expected: 4, .. }), "{error}");
}

#[test]
fn parts_of_two_changes_are_not_mixed() {
    let mut stream = Stream::new(Revision::default());
    let first = v1::AssignmentPart { more: true, ..part(0, 3) };
    stream.take(first).unwrap();
    let error = stream.take(part(0, 4)).unwrap_err();
    assert!(matches!(error, StreamError::Mixed { .. }), "{error}");
}

#[test]
fn the_key_comes_once_and_first() {
    let mut stream = Stream::new(Revision::default());
    let enc = std::mem::take(&mut stream.enc);
    assert!(matches!(stream.take(part(0, 3)), Err(StreamError::Key(_))));
    stream.enc = enc.clone();
    stream.take(part(0, 3)).unwrap();
    stream.enc = enc;
    assert!(matches!(stream.take(part(0, 4)), Err(StreamError::Key(_))));
}
