//! Both pure crates together: commands -> state -> assignment -> view, against one naive definition:
//! **a task sees exactly its grants**, and whoever is no task sees nothing.
//!
//! [`Books`] is that definition. It keeps its own plain books of what the accepted commands said and asks neither crate
//! anything. After every command each node's view is walked by every caller there is (own tasks, tasks of other nodes,
//! ended ones, nobody), through names, listings, inodes and open handles. Two replicas are fed one log and must be equal
//! byte for byte. A node is told of a change only when the command's outcome names it, as the manager does.

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{
    Constraint, FileMode, Labels, NodeId, SecretId, ServiceId, TaskId, Timestamp, Version,
};
use keyhole_manager::codec::encode_row;
use keyhole_state::*;
use keyhole_view::{Denied, Ino, Kind, MountFacts, Refusal, View};
use proptest::prelude::*;
use prost::Message;

const SECRETS: u8 = 4;
const SERVICES: u8 = 3;
const NODES: u8 = 2;
const TASKS: u8 = 5;
const TARGETS: [&str; 6] = ["a", "b", "a/b", "tls/key", "tls/cert", "x/y/z"];
/// Every component of a target, and names that nobody has.
const NAMES: [&str; 11] =
    ["a", "b", "tls", "key", "cert", "x", "y", "z", ".hidden", "s0", "nothing"];
const FACTS: MountFacts = MountFacts { mounted: Timestamp(5) };

fn secret(n: u8) -> SecretId {
    SecretId::from_entropy([n; 16])
}
fn service(n: u8) -> ServiceId {
    ServiceId::from_entropy([n; 16])
}
fn node(n: u8) -> NodeId {
    NodeId::from_entropy([n; 16])
}
fn task(n: u8) -> TaskId {
    TaskId::from_entropy([n; 16])
}

/// What happens, in numbers; resolved against the state of that moment.
#[derive(Debug, Clone)]
enum Step {
    Create(u8, u16),
    /// Secrets, and whether each is sealed for the right version.
    Rotate(Vec<(u8, bool, u16)>),
    Rollback(u8, Option<u64>),
    RemoveSecret(u8),
    CreateService(u8, Vec<Granted>, Vec<Zone>),
    /// The last one: whether the service is still as the operator saw it.
    UpdateService(u8, Vec<Granted>, Vec<Zone>, bool),
    RollbackService(u8),
    RemoveService(u8),
    Claim(u8, u8, u8),
    End(u8, u8),
    Sync(u8, Vec<u8>),
    Join(u8),
    Change(u8, Option<u8>, Option<Availability>),
    RemoveNode(u8),
    Deny(bool),
    /// A caller opens one of its files and keeps it open.
    Hold(u8, usize),
    /// All open files of a node are closed.
    Release(u8),
}

/// A grant: secret, target, uid, pinned version.
type Granted = (u8, usize, u32, Option<u64>);
/// A constraint on label `zone`: its number, `==` or `!=`.
type Zone = (u8, bool);

fn granted() -> impl Strategy<Value = Granted> {
    let pinned = prop::option::weighted(0.25, 1..4u64);
    (0..SECRETS, 0..TARGETS.len(), 0..2u32, pinned)
}

fn steps() -> impl Strategy<Value = Step> {
    let grants = || prop::collection::vec(granted(), 0..4);
    let zones = || prop::collection::vec((0..2u8, any::<bool>()), 0..2);
    let often = || prop::bool::weighted(0.9);
    let availability =
        prop::sample::select(vec![Availability::Active, Availability::Pause, Availability::Drain]);
    let rotation = (0..SECRETS, often(), 1..500u16);
    prop_oneof![
        4 => (0..SECRETS, 0..500u16).prop_map(|(n, len)| Step::Create(n, len)),
        8 => prop::collection::vec(rotation, 1..3).prop_map(Step::Rotate),
        2 => (0..SECRETS, prop::option::of(1..5u64)).prop_map(|(n, to)| Step::Rollback(n, to)),
        1 => (0..SECRETS).prop_map(Step::RemoveSecret),
        4 => (0..SERVICES, grants(), zones()).prop_map(|(n, g, z)| Step::CreateService(n, g, z)),
        5 => (0..SERVICES, grants(), zones(), often())
            .prop_map(|(n, g, z, fresh)| Step::UpdateService(n, g, z, fresh)),
        1 => (0..SERVICES).prop_map(Step::RollbackService),
        1 => (0..SERVICES).prop_map(Step::RemoveService),
        6 => (0..TASKS, 0..SERVICES, 0..NODES).prop_map(|(n, of, on)| Step::Claim(n, of, on)),
        1 => (0..TASKS, 0..NODES).prop_map(|(n, on)| Step::End(n, on)),
        1 => (0..NODES, prop::collection::vec(0..TASKS, 0..4)).prop_map(|(n, t)| Step::Sync(n, t)),
        3 => (0..NODES).prop_map(Step::Join),
        2 => (0..NODES, prop::option::of(0..2u8), prop::option::of(availability))
            .prop_map(|(n, zone, availability)| Step::Change(n, zone, availability)),
        1 => (0..NODES).prop_map(Step::RemoveNode),
        1 => prop::bool::weighted(0.3).prop_map(Step::Deny),
        4 => (0..TASKS, any::<usize>()).prop_map(|(n, at)| Step::Hold(n, at)),
        1 => (0..NODES).prop_map(Step::Release),
    ]
}

fn sealed(len: u16) -> SealedValue {
    SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; usize::from(len) + 16] }
}

fn requests(grants: &[Granted]) -> Vec<GrantRequest> {
    let request = |(n, target, uid, pinned): &Granted| GrantRequest {
        secret: secret(*n),
        target: TARGETS[*target].parse().unwrap(),
        uid: *uid,
        gid: 7,
        mode: FileMode::DEFAULT,
        pinned: pinned.and_then(Version::new),
    };
    grants.iter().map(request).collect()
}

fn constraints(zones: &[Zone]) -> Vec<Constraint> {
    let text = |(zone, equal): &Zone| {
        format!("node.labels.zone{}z{zone}", if *equal { "==" } else { "!=" })
    };
    zones.iter().map(|zone| text(zone).parse().unwrap()).collect()
}

/// The command of a step; none for what callers do.
fn command(step: &Step, state: &State) -> Option<Command> {
    let name = |kind: &str, n: u8| format!("{kind}{n}");
    Some(match step {
        Step::Create(n, len) => Command::CreateSecret {
            id: secret(*n),
            name: name("s", *n).parse().unwrap(),
            labels: Labels::default(),
            value: sealed(*len),
        },
        Step::Rotate(items) => Command::RotateSecrets {
            items: items.iter().map(|item| rotation(item, state)).collect(),
        },
        Step::Rollback(n, to) => {
            Command::RollbackSecret { id: secret(*n), to: to.and_then(Version::new) }
        }
        Step::RemoveSecret(n) => Command::RemoveSecret { id: secret(*n) },
        Step::CreateService(n, grants, zones) => Command::CreateService {
            id: service(*n),
            name: name("v", *n).parse().unwrap(),
            labels: Labels::default(),
            grants: requests(grants),
            constraints: constraints(zones),
        },
        Step::UpdateService(n, grants, zones, fresh) => {
            let index = state.services().get(&service(*n)).map_or(0, |service| service.index);
            Command::UpdateService {
                id: service(*n),
                expected: index + u64::from(!fresh),
                labels: Labels::default(),
                grants: requests(grants),
                constraints: constraints(zones),
            }
        }
        Step::RollbackService(n) => Command::RollbackService { id: service(*n) },
        Step::RemoveService(n) => Command::RemoveService { id: service(*n) },
        Step::Claim(n, of, on) => Command::ClaimTask {
            id: task(*n),
            service: service(*of),
            node: node(*on),
            cgroup: "/x".into(),
        },
        Step::End(n, on) => {
            Command::EndTask { id: task(*n), node: node(*on), reason: "over".into() }
        }
        Step::Sync(on, live) => {
            let live = live.iter().map(|n| task(*n)).collect();
            Command::SyncTasks { node: node(*on), live, ca_number: 0 }
        }
        Step::Join(n) => Command::JoinNode { id: node(*n), hostname: name("h", *n) },
        Step::Change(n, zone, availability) => Command::ChangeNode {
            id: node(*n),
            change: NodeChange {
                labels: zone.map(|zone| {
                    Labels::new([("zone".to_owned(), format!("z{zone}"))].into()).unwrap()
                }),
                availability: *availability,
                ..NodeChange::default()
            },
        },
        Step::RemoveNode(n) => Command::RemoveNode { id: node(*n) },
        Step::Deny(deny) => Command::ChangeCluster(ClusterChange {
            unconstrained: Some(if *deny { Unconstrained::Deny } else { Unconstrained::Allow }),
            ..ClusterChange::default()
        }),
        Step::Hold(..) | Step::Release(_) => return None,
    })
}

fn rotation((n, right, len): &(u8, bool, u16), state: &State) -> RotateItem {
    let last = state.secrets().get(&secret(*n)).map(|secret| secret.last);
    let next = last.map_or(Version::FIRST, Version::next);
    let version = if *right { next } else { next.next() };
    RotateItem { id: secret(*n), version, value: sealed(*len) }
}

/// What a file is: which bytes, for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    secret: u8,
    version: u64,
    size: u16,
    uid: u32,
}

#[derive(Debug, Clone, Default)]
struct Spec {
    grants: Vec<Granted>,
    zones: Vec<Zone>,
}

#[derive(Debug, Default)]
struct BookedSecret {
    current: u64,
    sizes: BTreeMap<u64, u16>,
    /// As `rollback` without a number means it: the highest kept version below the current one.
    last: u64,
}

#[derive(Debug)]
struct BookedNode {
    zone: Option<u8>,
    availability: Availability,
}

/// The naive books: what accepted commands said.
#[derive(Debug, Default)]
struct Books {
    deny: bool,
    secrets: BTreeMap<u8, BookedSecret>,
    services: BTreeMap<u8, (Spec, Option<Spec>)>,
    nodes: BTreeMap<u8, BookedNode>,
    /// Task: service, node. Live ones only.
    tasks: BTreeMap<u8, (u8, u8)>,
}

impl Books {
    /// Notes an accepted command.
    fn note(&mut self, step: &Step, applied: &Applied) {
        match step {
            Step::Create(n, len) => {
                let sizes = [(1, *len)].into();
                self.secrets.insert(*n, BookedSecret { current: 1, sizes, last: 1 });
            }
            Step::Rotate(items) => {
                for (n, _, len) in items {
                    let booked = self.secrets.get_mut(n).unwrap();
                    booked.last += 1;
                    booked.current = booked.last;
                    booked.sizes.insert(booked.last, *len);
                }
            }
            Step::Rollback(n, _) => {
                // Which one it went to is the answer that the operator gets.
                let Outcome::Secrets(now) = &applied.outcome else { panic!("{applied:?}") };
                assert_eq!(now.len(), 1);
                self.secrets.get_mut(n).unwrap().current = now[0].1.get();
            }
            Step::RemoveSecret(n) => {
                self.secrets.remove(n);
            }
            Step::CreateService(n, grants, zones) => {
                let spec = Spec { grants: grants.clone(), zones: zones.clone() };
                self.services.insert(*n, (spec, None));
            }
            Step::UpdateService(n, grants, zones, _) => {
                let spec = Spec { grants: grants.clone(), zones: zones.clone() };
                let (now, before) = self.services.get_mut(n).unwrap();
                *before = Some(std::mem::replace(now, spec));
            }
            Step::RollbackService(n) => {
                let (now, before) = self.services.get_mut(n).unwrap();
                std::mem::swap(now, before.as_mut().unwrap());
            }
            Step::RemoveService(n) => {
                self.services.remove(n);
                self.tasks.retain(|_, (of, _)| of != n);
            }
            Step::Claim(n, of, on) => {
                if matches!(&applied.outcome, Outcome::Claimed { rejected: None }) {
                    self.tasks.insert(*n, (*of, *on));
                }
            }
            Step::End(n, on) => self.tasks.retain(|task, (_, node)| (task, &*node) != (n, on)),
            Step::Sync(on, live) => {
                self.tasks.retain(|task, (_, node)| node != on || live.contains(task));
            }
            Step::Join(n) => {
                let fresh = BookedNode { zone: None, availability: Availability::Active };
                self.nodes.insert(*n, fresh);
            }
            Step::Change(n, zone, availability) => {
                let booked = self.nodes.get_mut(n).unwrap();
                booked.zone = zone.or(booked.zone);
                booked.availability = availability.unwrap_or(booked.availability);
            }
            Step::RemoveNode(n) => {
                self.nodes.remove(n);
                self.tasks.retain(|_, (_, on)| on != n);
            }
            Step::Deny(deny) => self.deny = *deny,
            Step::Hold(..) | Step::Release(_) => {}
        }
    }

    /// What one task sees: path, and what is there.
    fn sees(&self, n: u8) -> BTreeMap<String, File> {
        let Some((of, on)) = self.tasks.get(&n) else { return BTreeMap::new() };
        let (spec, _) = &self.services[of];
        let node = &self.nodes[on];
        let fits = |(zone, equal): &Zone| (node.zone == Some(*zone)) == *equal;
        let admitted = node.availability != Availability::Drain
            && spec.zones.iter().all(fits)
            && !(self.deny && spec.zones.is_empty());
        let file = |(secret, target, uid, pinned): &Granted| {
            let booked = &self.secrets[secret];
            let version = pinned.unwrap_or(booked.current);
            let size = booked.sizes[&version];
            let file = File { secret: *secret, version, size, uid: *uid };
            (TARGETS[*target].to_owned(), file)
        };
        let grants = spec.grants.iter().filter(|_| admitted);
        grants.map(file).collect()
    }
}

/// An open file: what it was when it was opened.
struct Held {
    by: u8,
    ino: Ino,
    path: String,
    file: File,
}

/// A node: the assignment it was last told, the view of it, and its open files.
struct Machine {
    number: u8,
    view: View,
    held: Vec<Held>,
    /// Every inode that was ever seen here: whose, and which file.
    seen: BTreeMap<Ino, (u8, File)>,
}

impl Machine {
    fn new(number: u8) -> Self {
        Self { number, view: View::empty(FACTS), held: Vec::new(), seen: BTreeMap::new() }
    }

    /// Takes the assignment over. Every claimed task is alive here; the one who says otherwise is the state.
    fn told(&mut self, state: &State) {
        let assignment = state.assignment(node(self.number));
        let live: BTreeSet<TaskId> = (0..TASKS).map(task).collect();
        let held: BTreeSet<Ino> = self.held.iter().map(|held| held.ino).collect();
        let now = Timestamp(state.index());
        let (next, _) = self.view.next(&assignment, &live, now, |ino| held.contains(&ino));
        self.view = next;
        self.sweep();
        for (task, refusal) in self.view.refusals() {
            let of_manager = matches!(refusal, Refusal::ByManager { .. });
            assert!(of_manager, "the state assigned what the view refuses: {task} {refusal}");
        }
    }

    fn sweep(&mut self) {
        let held: BTreeSet<Ino> = self.held.iter().map(|held| held.ino).collect();
        if let Some((view, _)) = self.view.sweep(|ino| held.contains(&ino)) {
            self.view = view;
        }
    }

    fn hold(&mut self, books: &Books, by: u8, at: usize) {
        let files = books.sees(by);
        if files.is_empty() || books.tasks[&by].1 != self.number {
            return;
        }
        let (path, file) = files.iter().nth(at % files.len()).unwrap();
        let ino = self.resolve(Some(task(by)), path).unwrap();
        assert!(self.view.open(Some(task(by)), ino, 0, || None).is_ok());
        self.held.push(Held { by, ino, path: path.clone(), file: *file });
    }

    fn resolve(&self, caller: Option<TaskId>, path: &str) -> Option<Ino> {
        path.split('/').try_fold(Ino::ROOT, |dir, name| {
            self.view.lookup(caller, dir, name.as_bytes()).ok().map(|entry| entry.attr.ino)
        })
    }

    /// Everything that anyone can ask.
    fn check(&mut self, books: &Books) {
        for n in 0..TASKS {
            let here = books.tasks.get(&n).is_some_and(|(_, on)| *on == self.number);
            let expected = if here { books.sees(n) } else { BTreeMap::new() };
            self.check_names(Some(n), &expected);
        }
        self.check_names(Some(TASKS + 9), &BTreeMap::new());
        self.check_names(None, &BTreeMap::new());
        self.check_inodes(books);
        self.check_held(books);
    }

    fn check_names(&mut self, number: Option<u8>, expected: &BTreeMap<String, File>) {
        let caller = number.map(task);
        let mut found = BTreeMap::new();
        let mut dirs = vec![(String::new(), Ino::ROOT)];
        while let Some((prefix, dir)) = dirs.pop() {
            assert_eq!(self.view.opendir(caller, dir), Ok(()));
            let listed: BTreeMap<String, (Ino, Kind)> = self
                .view
                .readdir(caller, dir, 0)
                .filter(|entry| !matches!(entry.name, "." | ".."))
                .map(|entry| (entry.name.to_owned(), (entry.ino, entry.kind)))
                .collect();
            for name in NAMES {
                let looked = self.view.lookup(caller, dir, name.as_bytes());
                match (listed.get(name), looked) {
                    (Some((ino, kind)), Ok(entry)) => {
                        assert_eq!((entry.attr.ino, entry.attr.kind), (*ino, *kind));
                        assert!(entry.name_ttl.is_zero(), "a name of the shared root was cached");
                    }
                    (None, Err(Denied::NoEntry)) => {}
                    (listed, looked) => panic!("{prefix}{name}: {listed:?} {looked:?}"),
                }
            }
            for (name, (ino, kind)) in listed {
                match kind {
                    Kind::Directory => dirs.push((format!("{prefix}{name}/"), ino)),
                    Kind::File => assert!(found.insert(format!("{prefix}{name}"), ino).is_none()),
                }
            }
        }
        let paths: Vec<&String> = found.keys().collect();
        assert_eq!(paths, expected.keys().collect::<Vec<_>>(), "task {number:?} sees its grants");
        for (path, ino) in found {
            self.check_file(number.unwrap(), ino, expected[&path]);
        }
    }

    fn check_file(&mut self, owner: u8, ino: Ino, file: File) {
        let opened = self.view.open(Some(task(owner)), ino, 0, || None).unwrap();
        let value = self.view.readable(ino).unwrap().key;
        assert_eq!(value, opened.value);
        assert_eq!((value.secret, value.version.get()), (secret(file.secret), file.version));
        let attr = self.view.attr(ino).unwrap();
        assert_eq!((attr.size, attr.uid, attr.gid), (u64::from(file.size), file.uid, 7));
        assert_eq!((attr.mode, attr.nlink), (0o444, 1));
        let before = self.seen.insert(ino, (owner, file));
        assert!(before.is_none_or(|before| before == (owner, file)), "one inode, one file");
    }

    /// Through inodes that were seen once, by everybody.
    fn check_inodes(&self, books: &Books) {
        for (ino, (owner, file)) in &self.seen {
            let callers = (0..TASKS).filter(|n| n != owner).map(|n| Some(task(n)));
            for caller in callers.chain([None]) {
                assert!(self.view.open(caller, *ino, 0, || None).is_err(), "another task's file");
                assert!(self.view.getxattr(caller, *ino, b"user.keyhole.secret", 0).is_err());
            }
            if !self.still_sees(books, *owner, *file) {
                assert!(
                    self.view.open(Some(task(*owner)), *ino, 0, || None).is_err(),
                    "{file:?} is past"
                );
            }
        }
    }

    fn still_sees(&self, books: &Books, owner: u8, file: File) -> bool {
        books.tasks.get(&owner).is_some_and(|(_, on)| *on == self.number)
            && books.sees(owner).values().any(|now| *now == file)
    }

    /// An open file keeps its bytes, or is refused; it never has other bytes, and nothing after its secret was taken
    /// away from the task.
    fn check_held(&self, books: &Books) {
        for held in &self.held {
            let Held { by, ino, path, file } = held;
            let here = books.tasks.get(by).is_some_and(|(_, on)| *on == self.number);
            let sees = if here { books.sees(*by) } else { BTreeMap::new() };
            match self.view.readable(*ino) {
                Ok(value) => {
                    let bytes = (value.key.secret, value.key.version.get());
                    assert_eq!(bytes, (secret(file.secret), file.version), "other bytes: {path}");
                    let entitled = sees.values().any(|now| now.secret == file.secret);
                    assert!(entitled, "{path} is readable after it was taken away");
                }
                Err(_) => assert_ne!(sees.get(path), Some(file), "{path} is not readable"),
            }
        }
    }
}

fn init() -> Command {
    let seal = KeySeal { enc: vec![1], ciphertext: vec![2] };
    let key = SealedKey { seals: [(1, seal)].into() };
    let token = TokenRecord { hash: [0; 32], salt: [0; 32], epoch: 1 };
    Command::Init(Box::new(InitCluster {
        id: keyhole_domain::ClusterId::from_entropy([0; 16]),
        ca_certificate: vec![],
        ca_key: key.clone(),
        value_key: key,
        worker_token: token.clone(),
        manager_token: token,
        certificate_seconds: 86_400,
        member: Member {
            id: 1,
            node: node(200),
            hostname: String::new(),
            address: "a:1".into(),
            seal_key: [0; 32],
            voter: true,
        },
    }))
}

fn envelope(command: Command) -> Envelope {
    let actor = Actor::Local { uid: 0, gid: 0, pid: 1 };
    Envelope { at: Timestamp(1), actor, via: 1, command }
}

/// The state as the store and a snapshot have it.
fn bytes(state: &State) -> Vec<Vec<u8>> {
    let rows = state.row_keys().into_iter().filter_map(|key| state.row(key));
    rows.map(|row| encode_row(&row).encode_to_vec()).collect()
}

/// Two replicas, the books, and the nodes.
struct World {
    one: State,
    two: State,
    books: Books,
    machines: Vec<Machine>,
}

impl World {
    fn new() -> Self {
        let (one, two) = (State::default(), State::default());
        let machines = (0..NODES).map(Machine::new).collect();
        let mut world = Self { one, two, books: Books::default(), machines };
        world.apply(&envelope(init())).unwrap();
        for n in 0..NODES {
            world.run(&Step::Join(n));
        }
        world
    }

    fn apply(&mut self, envelope: &Envelope) -> Result<Applied, Rejected> {
        let index = self.one.index() + 1;
        let result = self.one.apply(index, envelope);
        assert_eq!(result, self.two.apply(index, envelope), "two replicas answer differently");
        assert_eq!(self.one.invariants(), Ok(()));
        assert_eq!(self.one, self.two, "two replicas of one log differ");
        assert_eq!(bytes(&self.one), bytes(&self.two), "two replicas differ in their bytes");
        result
    }

    fn run(&mut self, step: &Step) {
        match (command(step, &self.one), step) {
            (Some(command), _) => {
                if let Ok(applied) = self.apply(&envelope(command)) {
                    self.books.note(step, &applied);
                    for machine in &mut self.machines {
                        if applied.nodes.contains(&node(machine.number)) {
                            machine.told(&self.one);
                        }
                    }
                }
            }
            (None, Step::Hold(by, at)) => {
                for machine in &mut self.machines {
                    machine.hold(&self.books, *by, *at);
                }
            }
            (None, Step::Release(n)) => {
                let machine = &mut self.machines[usize::from(*n)];
                machine.held.clear();
                machine.sweep();
            }
            (None, step) => unreachable!("{step:?} is a command"),
        }
        for machine in &mut self.machines {
            machine.check(&self.books);
        }
    }
}

/// More with `KEYHOLE_SOAK=1`.
fn cases() -> u32 {
    if std::env::var_os("KEYHOLE_SOAK").is_some() { 20_000 } else { 200 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_task_sees_exactly_its_grants(steps in prop::collection::vec(steps(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
    }
}
