//! Operators: who may do what on which names, also against each other, and that no way around the scope is open (G23).

#![expect(clippy::unwrap_used, reason = "a step that fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{FileMode, Labels, NodeId, SecretId, ServiceId, Timestamp, Version};
use keyhole_state::*;
use proptest::prelude::*;

fn secret(n: u8) -> SecretId {
    SecretId::from_entropy([n; 16])
}
fn service(n: u8) -> ServiceId {
    ServiceId::from_entropy([n; 16])
}
fn operator(n: u8) -> NodeId {
    NodeId::from_entropy([n; 16])
}

const LOCAL: Actor = Actor::Local { uid: 0, gid: 0, pid: 1 };

fn value() -> SealedValue {
    SealedValue { epoch: 1, salt: [0; 32], ciphertext: vec![0; 17] }
}

fn grant(n: u8) -> GrantRequest {
    GrantRequest {
        secret: secret(n),
        target: format!("t{n}").parse().unwrap(),
        uid: 0,
        gid: 0,
        mode: FileMode::DEFAULT,
        pinned: None,
    }
}

fn create(n: u8, name: &str) -> Command {
    let name = name.parse().unwrap();
    Command::CreateSecret { id: secret(n), name, labels: Labels::default(), value: value() }
}

fn serve(n: u8, name: &str, grants: &[u8]) -> Command {
    Command::CreateService {
        id: service(n),
        name: name.parse().unwrap(),
        labels: Labels::default(),
        grants: grants.iter().map(|n| grant(*n)).collect(),
        constraints: vec![],
    }
}

/// Who has a certificate of a former CA is not cut off while he can renew it (G26).
#[test]
fn a_former_ca_is_believed_until_operators_have_renewed() {
    let mut cluster = Cluster::new();
    let late = Timestamp(u64::MAX - 1);
    let holders = cluster.state.cluster().unwrap().ca_key.clone();
    let former = cluster.state.cluster().unwrap().ca_certificate.clone();
    let new = NewCa {
        number: 1,
        certificate: vec![9],
        key: holders,
        former: FormerCa { certificate: former, cross: vec![7], until: Timestamp(u64::MAX) },
    };
    cluster.done(LOCAL, Command::RotateCa(Box::new(new)));
    cluster.done(Actor::Manager(1), Command::NoteCertificate { member: 1, ca_number: 1 });
    let ids: Vec<NodeId> = cluster.state.operators().keys().copied().collect();
    assert_eq!(cluster.state.former_certificates(), ids.len());
    let (first, rest) = ids.split_first().unwrap();
    let renew = |ca_number| Command::RenewOperator { id: *first, not_after: 1 << 40, ca_number };
    cluster.done(Actor::Operator(*first), renew(0));
    assert_eq!(
        cluster.state.former_certificates(),
        ids.len(),
        "the new one may be lost on its way"
    );
    cluster.done(Actor::Operator(*first), renew(1));
    assert_eq!(cluster.state.former_certificates(), ids.len() - 1, "he has it");
    for id in rest {
        assert!(!cluster.state.former_cas_are_done(late));
        cluster.done(LOCAL, Command::RemoveOperator { id: *id });
    }
    assert!(cluster.state.former_cas_are_done(late));
}

struct Cluster {
    state: State,
    index: u64,
}

impl Cluster {
    /// Secrets web-a (1), web-b (2), db (3); services web (1, grants web-a), api (2, grants db); an operator of each
    /// role without a scope (11 to 13), and with one on web* (21 to 23).
    fn new() -> Self {
        let mut cluster = Self { state: State::default(), index: 0 };
        cluster.done(LOCAL, init());
        for (n, name) in [(1, "web-a"), (2, "web-b"), (3, "db")] {
            cluster.done(LOCAL, create(n, name));
        }
        cluster.done(LOCAL, serve(1, "web", &[1]));
        cluster.done(LOCAL, serve(2, "api", &[3]));
        for (n, role) in (11..).zip(Role::ALL) {
            cluster.done(LOCAL, new_operator(n, role, &[]));
            cluster.done(LOCAL, new_operator(n + 10, role, &["web*"]));
        }
        cluster
    }

    fn run(&mut self, actor: Actor, command: Command) -> Result<Applied, Rejected> {
        self.index += 1;
        let envelope = Envelope { at: Timestamp(self.index), actor, via: 1, command };
        let before = self.state.clone();
        let result = self.state.apply(self.index, &envelope);
        self.state.invariants().unwrap();
        if result.is_err() {
            let mut same = before;
            same.skip(self.index);
            assert_eq!(same, self.state, "a refused command changed something");
        }
        result
    }

    #[track_caller]
    fn done(&mut self, actor: Actor, command: Command) {
        self.run(actor, command).unwrap();
    }

    #[track_caller]
    fn refused(&mut self, n: u8, command: Command, words: &str) {
        let refused = self.run(by(n), command).unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
    }

    fn update(&self, n: u8, grants: &[u8], on: &[&str]) -> Command {
        Command::UpdateService {
            id: service(n),
            expected: self.state.services()[&service(n)].index,
            labels: Labels::default(),
            grants: grants.iter().map(|n| grant(*n)).collect(),
            constraints: on.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }
}

fn by(n: u8) -> Actor {
    Actor::Operator(operator(n))
}

fn new_operator(n: u8, role: Role, only: &[&str]) -> Command {
    let only: Vec<String> = only.iter().map(|text| (*text).to_owned()).collect();
    Command::CreateOperator(Box::new(Operator {
        id: operator(n),
        name: format!("op{n}").parse().unwrap(),
        role,
        scope: Scope::new(&only, &only).unwrap(),
        public_key: [n; 32],
        created_at: Timestamp(1),
        seconds: 60,
        not_after: 100,
    }))
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
        certificate_seconds: 60,
        member: Member {
            id: 1,
            node: operator(200),
            hostname: String::new(),
            address: "a:1".into(),
            seal_key: [0; 32],
            voter: true,
        },
    }))
}

fn rotate(n: u8, to: u64) -> Command {
    let version = Version::new(to).unwrap();
    Command::RotateSecrets { items: vec![RotateItem { id: secret(n), version, value: value() }] }
}

/// One of everything that an operator may be refused.
fn commands(cluster: &Cluster) -> Vec<(Act, Command)> {
    let token = TokenRecord { hash: [0; 32], salt: [0; 32], epoch: 1 };
    let node = operator(99);
    vec![
        (Act::CreateSecret, create(9, "web-z")),
        (
            Act::UpdateSecret,
            Command::SetSecretLabels { id: secret(1), expected: 0, labels: Labels::default() },
        ),
        (Act::RotateSecrets, rotate(1, 2)),
        (Act::RollbackSecret, Command::RollbackSecret { id: secret(1), to: None }),
        (Act::RemoveSecret, Command::RemoveSecret { id: secret(2) }),
        (Act::CreateService, serve(9, "web-z", &[1])),
        (Act::UpdateService, cluster.update(1, &[1, 2], &[])),
        (Act::RollbackService, Command::RollbackService { id: service(1) }),
        (Act::RemoveService, Command::RemoveService { id: service(1) }),
        (Act::UpdateNode, Command::ChangeNode { id: node, change: NodeChange::default() }),
        (Act::RemoveNode, Command::RemoveNode { id: node }),
        (Act::DemoteManager, Command::DemoteMember { id: 7, voters: [].into() }),
        (Act::RemoveManager, Command::RemoveMember { id: 7, voters: [].into() }),
        (Act::TransferLeader, Command::TransferLeader { to: 7 }),
        (Act::JoinToken, Command::ShowToken { role: TokenRole::Manager }),
        (Act::JoinToken, Command::RotateToken { role: TokenRole::Worker, token }),
        (Act::UpdateCluster, Command::ChangeCluster(ClusterChange::default())),
        (Act::CreateOperator, new_operator(40, Role::Admin, &[])),
        (Act::RemoveOperator, Command::RemoveOperator { id: operator(13) }),
    ]
}

fn denied(result: &Result<Applied, Rejected>) -> bool {
    result.as_ref().is_err_and(|refused| refused.kind() == Kind::PermissionDenied)
}

/// Names are all in the scope; only the role decides.
#[test]
fn a_role_may_what_the_table_says_and_nothing_else() {
    for (n, role, limited) in
        (0..6).map(|at| (11 + at % 3 + at / 3 * 10, Role::ALL[usize::from(at % 3)], at > 2))
    {
        let count = commands(&Cluster::new()).len();
        for at in 0..count {
            let mut cluster = Cluster::new();
            let (act, command) = commands(&cluster).swap_remove(at);
            let result = cluster.run(by(n), command);
            assert_eq!(
                denied(&result),
                !act.is_allowed(role, limited),
                "{role} {limited} {act:?} {result:?}"
            );
        }
    }
}

#[test]
fn what_no_operator_does_is_refused_to_the_highest() {
    let mut cluster = Cluster::new();
    let address = ClusterChange { address: Some((1, "evil:1".into())), ..Default::default() };
    for command in [
        Command::NoteAuditHead { member: 1, seq: 1, hash: [0; 32] },
        Command::ChangeCluster(address),
        Command::JoinNode { id: operator(98), hostname: "x".into() },
        Command::Reseal { items: vec![] },
        Command::SyncTasks { node: operator(98), live: vec![], ca_number: 0 },
    ] {
        cluster.refused(11, command, "no operator does this");
    }
}

#[test]
fn who_has_a_scope_rules_nothing_that_all_share() {
    let mut cluster = Cluster::new();
    let words = "op21 is an admin with a scope, which may not do this";
    for command in [
        new_operator(60, Role::Admin, &[]),
        Command::RemoveOperator { id: operator(11) },
        Command::ChangeNode { id: operator(99), change: NodeChange::default() },
        Command::ChangeCluster(ClusterChange::default()),
    ] {
        cluster.refused(21, command, words);
    }
    for act in [Act::ClusterStatus, Act::AuditHeads, Act::ListOperators] {
        assert!(!act.is_allowed(Role::Auditor, true) && !act.is_allowed(Role::Writer, false));
    }
}

#[test]
fn names_out_of_the_scope_are_neither_changed_nor_known() {
    let mut cluster = Cluster::new();
    for n in [21, 22] {
        cluster.refused(n, create(8, "db2"), "secret db2 is not in the scope of operator op2");
        cluster.refused(n, serve(8, "api2", &[]), "service api2 is not in the scope");
        // As if it were not there.
        for command in [
            rotate(3, 2),
            Command::RemoveSecret { id: secret(3) },
            Command::RollbackSecret { id: secret(3), to: None },
            Command::SetSecretLabels { id: secret(3), expected: 0, labels: Labels::default() },
            Command::RemoveService { id: service(2) },
            Command::RollbackService { id: service(2) },
            cluster.update(2, &[], &[]),
        ] {
            cluster.refused(n, command, "not found");
        }
        let both = [rotate(1, 2), rotate(3, 2)].map(|command| match command {
            Command::RotateSecrets { mut items } => items.remove(0),
            other => panic!("{other:?}"),
        });
        cluster.refused(n, Command::RotateSecrets { items: both.to_vec() }, "not found");
    }
    let scope = &cluster.state.operators()[&operator(22)].scope;
    let seen = cluster.state.seen_by(scope);
    assert_eq!(seen.secrets().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["web-a", "web-b"]);
    assert_eq!(seen.services().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["web"]);
    for text in ["db", secret(3).as_str(), &secret(3).as_str()[..20]] {
        let unknown = seen.find_secret(text).unwrap_err().to_string();
        assert_eq!(unknown, format!("secret {text} not found"));
    }
    assert!(seen.find_service("api").is_err() && seen.find_service(service(2).as_str()).is_err());
    assert_eq!(seen.find_secret("web-a").unwrap().id, secret(1));
    assert_eq!(seen.find_service(&service(1).as_str()[..20]).unwrap().id, service(1));
}

#[test]
fn what_a_service_grants_before_and_after_has_to_be_in_the_scope() {
    let mut cluster = Cluster::new();
    let words = "a secret that service web grants, or granted before";
    cluster.refused(22, serve(8, "web-x", &[3]), "a secret that service web-x grants");
    let add = cluster.update(1, &[1, 3], &[]);
    cluster.refused(22, add.clone(), words);
    cluster.done(LOCAL, add);
    // Now it grants db: neither its nodes nor its labels are the writer's, nor may he take that away.
    for command in [
        cluster.update(1, &[1, 3], &["node.hostname==mine"]),
        cluster.update(1, &[1, 3], &[]),
        cluster.update(1, &[1], &[]),
        Command::RollbackService { id: service(1) },
        Command::RemoveService { id: service(1) },
    ] {
        cluster.refused(22, command, words);
    }
    let without = cluster.update(1, &[1], &[]);
    cluster.done(LOCAL, without);
    // The spec before has db still.
    cluster.refused(22, Command::RollbackService { id: service(1) }, words);
    cluster.refused(22, Command::RemoveService { id: service(1) }, words);
    let mine = cluster.update(1, &[1, 2], &["node.hostname==mine"]);
    cluster.done(by(22), mine);
    cluster.done(by(22), Command::RollbackService { id: service(1) });
}

#[test]
fn a_refusal_names_nothing_out_of_the_scope() {
    let mut cluster = Cluster::new();
    cluster.done(LOCAL, serve(5, "other", &[2]));
    let refused = cluster.run(by(22), Command::RemoveSecret { id: secret(2) }).unwrap_err();
    assert_eq!(
        refused,
        Rejected::InUse { name: "web-b".into(), services: vec!["1 out of your scope".into()] }
    );
}

#[test]
fn an_operator_that_is_removed_or_made_anew_is_another_one() {
    let mut cluster = Cluster::new();
    cluster.done(by(11), Command::RemoveOperator { id: operator(12) });
    cluster.refused(12, rotate(1, 2), "not known to this cluster");
    let Command::CreateOperator(mut again) = new_operator(50, Role::Writer, &[]) else { return };
    again.name = "op12".parse().unwrap();
    cluster.done(LOCAL, Command::CreateOperator(again.clone()));
    cluster.refused(12, rotate(1, 2), "not known to this cluster");
    cluster.done(by(50), rotate(1, 2));
    again.id = operator(51);
    cluster.refused(11, Command::CreateOperator(again), "already exists");
}

#[test]
fn a_certificate_is_renewed_by_its_own_operator() {
    let mut cluster = Cluster::new();
    let renew = |n| Command::RenewOperator { id: operator(n), not_after: 500, ca_number: 0 };
    cluster.refused(11, renew(12), "not in the scope");
    cluster.done(by(23), renew(23));
    assert_eq!(cluster.state.operators()[&operator(23)].not_after, 500);
    let earlier = Command::RenewOperator { id: operator(23), not_after: 400, ca_number: 0 };
    cluster.done(by(23), earlier);
    assert_eq!(cluster.state.operators()[&operator(23)].not_after, 500);
}

#[test]
fn what_a_follower_passes_on_is_judged_again() {
    let cluster = Cluster::new();
    let pass = |n, command| {
        let envelope = Envelope { at: Timestamp(1), actor: by(n), via: 1, command };
        cluster.state.admit_forwarded(1, &envelope)
    };
    assert_eq!(pass(22, rotate(1, 2)), Ok(()));
    assert_eq!(pass(11, new_operator(60, Role::Writer, &[])), Ok(()));
    assert!(pass(22, rotate(3, 2)).is_err(), "out of the scope");
    assert!(pass(13, rotate(1, 2)).is_err(), "an auditor");
    assert!(pass(77, rotate(1, 2)).is_err(), "nobody");
}

fn step() -> impl Strategy<Value = (bool, u8, Vec<u8>, u8)> {
    (any::<bool>(), 0..5_u8, prop::collection::vec(1..4_u8, 0..3), 1..3_u8)
}

/// What each service grants that is out of the scope, and on which nodes.
type Foreign = BTreeMap<ServiceId, (BTreeSet<SecretId>, Vec<String>)>;

fn foreign(state: &State, scope: &Scope) -> Foreign {
    let seen = state.seen_by(scope);
    let of = |service: &Service| {
        let grants = service.spec.grants.iter().map(|grant| grant.secret);
        let foreign: BTreeSet<_> = grants.filter(|id| seen.secret(*id).is_none()).collect();
        let nodes = service.spec.constraints.iter().map(ToString::to_string).collect();
        (service.id, (foreign, nodes))
    };
    state.services().values().map(of).filter(|(_, (foreign, _))| !foreign.is_empty()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever an administrator does between: no command of a scoped writer makes, moves or ends the delivery of a
    /// secret that is out of his scope.
    #[test]
    fn no_command_of_a_writer_reaches_a_secret_out_of_the_scope(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut cluster = Cluster::new();
        let scope = cluster.state.operators()[&operator(22)].scope.clone();
        for (admin, kind, mut grants, n) in steps {
            grants.sort_unstable();
            grants.dedup();
            let there = cluster.state.services().contains_key(&service(n));
            let name = ["web", "api"][usize::from(n) - 1];
            let command = match kind {
                0 => serve(n, name, &grants),
                1 if there => cluster.update(n, &grants, &[]),
                2 if there => cluster.update(n, &grants, &["node.hostname==mine"]),
                3 => Command::RollbackService { id: service(n) },
                _ => Command::RemoveService { id: service(n) },
            };
            let before = foreign(&cluster.state, &scope);
            let actor = if admin { LOCAL } else { by(22) };
            let _ = cluster.run(actor, command);
            if !admin {
                prop_assert_eq!(before, foreign(&cluster.state, &scope));
            }
        }
    }
}
