//! The rules of managers: who is one, who votes, what each holds, and what becomes of it when one goes.

use super::*;

#[test]
fn a_manager_gets_the_next_number_and_seals_of_all_keys() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    assert!(matches!(cluster.manager(2, &[1]), Err(Rejected::IdTaken { .. })), "the same one");
    assert!(matches!(cluster.manager(4, &[1]), Err(Rejected::IdTaken { .. })), "not the next");
    for epochs in [&[][..], &[2], &[1, 2]] {
        assert!(matches!(cluster.manager(3, epochs), Err(Rejected::KeysRaced { id: 3 })));
    }
    assert_eq!(cluster.state.voters(), [1, 2].into());
    // A number is never given again.
    cluster.run(Command::RemoveMember { id: 2, voters: [].into() }).unwrap();
    assert!(matches!(cluster.manager(2, &[1]), Err(Rejected::IdTaken { .. })));
    cluster.manager(3, &[1]).unwrap();
    assert_eq!(cluster.state.voters(), [1, 3].into());
}

/// What a removed manager says is refused, and a manager that nobody knows yet is told from it.
#[test]
fn removed_managers_are_remembered_and_never_come_back() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    let mut back = cluster.state.members()[&2].clone();
    let name = back.node.to_string();
    assert!(!cluster.state.was_removed(&name));
    cluster.run(Command::RemoveMember { id: 2, voters: [].into() }).unwrap();
    assert!(cluster.state.was_removed(&name));
    assert!(!cluster.state.was_removed(cluster.state.members()[&1].node.as_str()));
    assert!(!cluster.state.was_removed("nobody"));
    back.id = 3;
    let refused = cluster.run(Command::AddMember { member: back, keys: keys(&[1]) });
    assert!(
        matches!(refused, Err(Rejected::IdTaken { .. })),
        "its certificate is refused everywhere"
    );
}

#[test]
fn the_last_vote_is_never_given_away() {
    let mut cluster = Cluster::new();
    assert!(matches!(
        cluster.run(Command::RemoveMember { id: 1, voters: [].into() }),
        Err(Rejected::LastVoter { id: 1 })
    ));
    cluster.manager(2, &[1]).unwrap();
    cluster.run(Command::DemoteMember { id: 2, voters: [].into() }).unwrap();
    let demote = Command::DemoteMember { id: 1, voters: [].into() };
    assert!(matches!(cluster.run(demote.clone()), Err(Rejected::LastVoter { id: 1 })));
    cluster.run(Command::PromoteMember { id: 2, keys: keys(&[1]) }).unwrap();
    cluster.run(demote).unwrap();
    assert_eq!(cluster.state.voters(), [2].into());
    let unknown = Command::PromoteMember { id: 9, keys: keys(&[1]) };
    assert!(matches!(cluster.run(unknown), Err(Rejected::NoMember { id: 9 })));
    assert!(matches!(
        cluster.run(Command::RemoveMember { id: 9, voters: [].into() }),
        Err(Rejected::NoMember { id: 9 })
    ));
}

#[test]
fn a_removal_that_would_lose_the_quorum_is_refused_with_the_numbers() {
    let mut cluster = Cluster::new();
    for number in 2..=5 {
        cluster.manager(number, &[1]).unwrap();
    }
    let state = &cluster.state;
    let set = |members: &[u64]| -> BTreeSet<u64> { members.iter().copied().collect() };
    let all = set(&[1, 2, 3, 4, 5]);
    // Of the four that are left three must be there.
    state.quorum_without(5, &all, &set(&[1, 2, 3])).unwrap();
    let refused = state.quorum_without(1, &all, &set(&[1, 2, 3])).unwrap_err();
    assert_eq!(refused, Rejected::QuorumLost { id: 1, left: 4, needed: 3, have: 2 });
    // Who has no vote may go.
    state.quorum_without(5, &set(&[1, 2]), &set(&[1])).unwrap();
    // Raft still counts two that were removed just now.
    for id in [1, 2] {
        cluster.run(Command::RemoveMember { id, voters: [].into() }).unwrap();
    }
    let refused = cluster.state.quorum_without(3, &all, &set(&[1, 2, 3, 4])).unwrap_err();
    assert_eq!(refused, Rejected::QuorumLost { id: 3, left: 2, needed: 2, have: 1 });
}

/// Five vote, two of them are down: one of the others may go, and not two, though each was looked at alone.
#[test]
fn two_removals_that_were_decided_on_the_same_voters_are_not_both_done() {
    for demote in [false, true] {
        let mut cluster = Cluster::new();
        for number in 2..=5 {
            cluster.manager(number, &[1]).unwrap();
        }
        let voters: BTreeSet<u64> = (1..=5).collect();
        let reached: BTreeSet<u64> = [1, 2, 3, 4].into();
        let without = |id| match demote {
            true => Command::DemoteMember { id, voters: voters.clone() },
            false => Command::RemoveMember { id, voters: voters.clone() },
        };
        for id in [3, 4] {
            cluster.state.quorum_without(id, &voters, &reached).unwrap();
        }
        cluster.run(without(3)).unwrap();
        let before = cluster.state.clone();
        assert_eq!(cluster.run(without(4)).unwrap_err(), Rejected::VotersChanged { id: 4 });
        assert_eq!(cluster.state.voters(), before.voters());
        // It is looked at anew; what an earlier manager wrote says of no voters.
        let voters = cluster.state.voters();
        cluster.run(Command::RemoveMember { id: 4, voters }).unwrap();
        cluster.run(Command::DemoteMember { id: 5, voters: [].into() }).unwrap();
        assert_eq!(cluster.state.voters(), [1, 2].into());
    }
}

#[test]
fn rafts_membership_follows_step_by_step_and_never_without_a_voter() {
    let mut cluster = Cluster::new();
    let set = |members: &[u64]| -> BTreeSet<u64> { members.iter().copied().collect() };
    let raft = |voters: &[u64], learners: &[u64], caught_up: &[u64]| RaftMembers {
        voters: set(voters),
        learners: set(learners),
        caught_up: set(caught_up),
        untold: set(&[]),
        leader: voters[0],
    };
    let step = |cluster: &Cluster, raft: RaftMembers| cluster.state.membership_step(&raft);
    assert_eq!(step(&cluster, raft(&[1], &[], &[])), None);
    cluster.manager(2, &[1]).unwrap();
    cluster.manager(3, &[1]).unwrap();
    assert_eq!(step(&cluster, raft(&[1], &[], &[])), Some(MembershipStep::AddLearner(2)));
    assert_eq!(step(&cluster, raft(&[1], &[2], &[])), Some(MembershipStep::AddLearner(3)));
    assert_eq!(step(&cluster, raft(&[1], &[2, 3], &[])), None, "neither has caught up");
    let both = Some(MembershipStep::SetVoters(set(&[1, 3])));
    assert_eq!(step(&cluster, raft(&[1], &[2, 3], &[3])), both);
    assert_eq!(step(&cluster, raft(&[1, 2, 3], &[], &[])), None);
    // A demoted one becomes a learner, a removed one goes.
    cluster.run(Command::DemoteMember { id: 1, voters: [].into() }).unwrap();
    let without = Some(MembershipStep::SetVoters(set(&[2, 3])));
    assert_eq!(step(&cluster, raft(&[1, 2, 3], &[], &[])), without);
    assert_eq!(step(&cluster, raft(&[2, 3], &[1], &[1])), None);
    cluster.run(Command::RemoveMember { id: 3, voters: [].into() }).unwrap();
    let without = Some(MembershipStep::SetVoters(set(&[2])));
    assert_eq!(step(&cluster, raft(&[2, 3], &[1], &[1])), without);
    let gone = Some(MembershipStep::Remove(set(&[3])));
    assert_eq!(step(&cluster, raft(&[2], &[1, 3], &[1])), gone);
    let untold = RaftMembers { untold: set(&[3]), ..raft(&[2], &[1, 3], &[1, 3]) };
    assert_eq!(step(&cluster, untold), None, "it does not know yet that it has no vote");
    // Who leads without a vote, demoted or promoted again meanwhile, makes no changes.
    let demoted = RaftMembers { leader: 1, ..raft(&[2], &[1, 3], &[]) };
    assert_eq!(step(&cluster, demoted), Some(MembershipStep::HandOver));
    // The one that shall vote is not there yet: the other keeps its vote.
    assert_eq!(step(&cluster, raft(&[1], &[2], &[])), None);
}

fn restoration(member: u64, epoch: u32, at: u64) -> Command {
    let key = SealedKey { seals: [(member, seal())].into() };
    let token = TokenRecord { hash: [9; 32], salt: [9; 32], epoch };
    Command::Restore(Box::new(Restoration {
        member: Member {
            id: member,
            node: NodeId::from_entropy(id(200)),
            hostname: "new".into(),
            address: String::new(),
            seal_key: [0; 32],
            voter: true,
        },
        ca_certificate: vec![2],
        ca_key: key.clone(),
        former: FormerCa { certificate: vec![1], cross: vec![12], until: Timestamp(at) },
        epoch,
        value_key: key,
        worker_token: token.clone(),
        manager_token: token,
    }))
}

/// Ids, versions and counters stay; members, keys, tokens and the CA are new, and the incarnation rises.
#[test]
fn a_restored_cluster_keeps_what_it_had_and_has_new_keys() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    cluster.create(1, "a").unwrap();
    let before = cluster.state.clone();
    let error = cluster.run(restoration(2, 1, 1000)).unwrap_err();
    assert!(matches!(error, Rejected::IdTaken { .. }), "{error}");
    let error = cluster.run(restoration(3, 2, 1000)).unwrap_err();
    assert!(matches!(error, Rejected::Epoch { given: 1, .. }), "its value is under another key");
    cluster.run(restoration(3, 1, 1000)).unwrap();
    assert_eq!(cluster.state.secrets(), before.secrets());
    assert!(cluster.state.members().keys().eq(&[3]));
    for old in before.members().values() {
        assert!(cluster.state.was_removed(old.node.as_str()), "who comes back is told");
    }
    let (old, new) = (before.cluster().unwrap(), cluster.state.cluster().unwrap());
    assert_eq!((new.id, new.incarnation, new.next_member), (old.id, 2, 4));
    assert_eq!(new.roots(Timestamp(999)), [vec![2], vec![1]]);
    assert_eq!(new.crosses(Timestamp(999)), [vec![12]]);
    assert_eq!(new.roots(Timestamp(1000)), [vec![2]], "a former root's time has an end");
    assert!(new.crosses(Timestamp(1000)).is_empty());
    assert_ne!(new.worker_token, old.worker_token);
    cluster.run(Command::ForgetFormerCas).unwrap();
    assert_eq!(cluster.state.cluster().unwrap().roots(Timestamp(0)), [vec![2]]);
}

/// Nodes have values of a history under its number: two that begin at one backup, or at logs of one cluster, must not share it.
#[test]
fn histories_that_begin_at_one_state_have_numbers_that_rise_with_the_clock() {
    const SECOND: u64 = 1_000_000_000;
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    let begin = |from: &State, at: u64, command: &Command| {
        let mut state = from.clone();
        let actor = Actor::Local { uid: 0, gid: 0, pid: 1 };
        let envelope = Envelope { at: Timestamp(at), actor, via: 1, command: command.clone() };
        state.apply(cluster.index + 1, &envelope).unwrap();
        state
    };
    let restore = restoration(3, 1, u64::MAX);
    for command in [&restore, &Command::ForceNewCluster { member: 2 }] {
        let now = 1_795_000_000 * SECOND;
        let [first, second] =
            [now, now + SECOND].map(|at| begin(&cluster.state, at, command).revision().incarnation);
        assert_eq!((first, second), (1_795_000_000, 1_795_000_001));
    }
    // From there on a clock that is behind does no harm.
    let first = begin(&cluster.state, 1_795_000_000 * SECOND, &restore);
    let next = begin(&first, 7 * SECOND, &Command::ForceNewCluster { member: 3 });
    assert_eq!(next.revision().incarnation, 1_795_000_001);
}

/// The others are members no more, have no seals, and their numbers are not given again.
#[test]
fn a_forced_cluster_has_one_member_and_no_seals_for_others() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    cluster.manager(3, &[1]).unwrap();
    let error = cluster.run(Command::ForceNewCluster { member: 4 }).unwrap_err();
    assert!(matches!(error, Rejected::NoMember { id: 4 }), "{error}");
    cluster.run(Command::NoteAuditHead { member: 1, seq: 1, hash: [1; 32] }).unwrap();
    cluster.run(Command::DemoteMember { id: 3, voters: [].into() }).unwrap();
    let error = cluster.run(Command::ForceNewCluster { member: 3 }).unwrap_err();
    assert!(matches!(error, Rejected::NoKeys { id: 3 }), "who does not vote has no keys: {error}");
    cluster.run(Command::PromoteMember { id: 3, keys: keys(&[1]) }).unwrap();
    let applied = cluster.run(Command::ForceNewCluster { member: 3 }).unwrap();
    assert!(cluster.state.members().keys().eq(&[3]) && cluster.state.members()[&3].voter);
    for id in 1..=3 {
        assert!(applied.rows.contains(&RowKey::Member(id)), "the row of {id} is written");
    }
    let now = cluster.state.cluster().unwrap();
    assert_eq!((now.incarnation, now.next_member), (2, 4));
    assert!(now.rekey, "the others have known the keys");
    let removed = |id: u64| {
        cluster.state.was_removed(NodeId::from_entropy(self::id(100 + id as u8)).as_str())
    };
    assert!(removed(2) && !removed(3), "who comes back is told");
    assert!(now.audit_heads.is_empty());
}

const LATE: Timestamp = Timestamp((1 << 60) - 1);

fn new_ca(number: u32, before: &[u8], holders: &[u64]) -> Command {
    Command::RotateCa(Box::new(NewCa {
        number,
        certificate: vec![9, u8::try_from(number).unwrap()],
        key: SealedKey { seals: holders.iter().map(|id| (*id, seal())).collect() },
        former: FormerCa {
            certificate: before.to_vec(),
            cross: vec![7, u8::try_from(number).unwrap()],
            until: Timestamp(1 << 60),
        },
    }))
}

/// Each connection begins with them; no verifier takes more.
#[test]
fn six_root_cas_before_the_current_one_are_believed_however_many_there_were() {
    let mut cluster = Cluster::new();
    let mut before = cluster.state.cluster().unwrap().ca_certificate.clone();
    for number in 1..=9 {
        cluster.run(new_ca(number, &before, &[1])).unwrap();
        before = vec![9, u8::try_from(number).unwrap()];
    }
    let now = cluster.state.cluster().unwrap();
    assert_eq!(now.roots(LATE), [9, 3, 4, 5, 6, 7, 8].map(|number| [9, number]));
    assert_eq!(now.crosses(LATE), [9, 8, 7, 6, 5, 4].map(|number| [7, number]));
}

/// A root CA is believed until everybody was seen with a certificate of the one after it.
#[test]
fn a_new_ca_follows_the_one_before_and_ends_it_when_all_have_its_certificates() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    cluster.join(0);
    let node = *cluster.state.nodes().keys().next().unwrap();
    let first = cluster.state.cluster().unwrap().ca_certificate.clone();
    let (first, second) = (&first[..], &[9, 1][..]);
    for raced in [
        new_ca(2, first, &[1, 2]),
        new_ca(1, second, &[1, 2]),
        new_ca(1, first, &[1]),
        new_ca(1, first, &[1, 2, 3]),
    ] {
        let error = cluster.run(raced).unwrap_err();
        assert!(matches!(error, Rejected::CaRaced { current: 0, .. }), "{error}");
    }
    let sync = |ca_number| Command::SyncTasks { node, live: vec![], ca_number };
    cluster.run(sync(0)).unwrap();
    let outdated = |cluster: &Cluster| cluster.state.cluster().unwrap().backup_is_of_former_ca();
    let backup = Command::NoteBackup { recipients: vec![] };
    assert!(!outdated(&cluster), "there is none");
    cluster.run(backup.clone()).unwrap();
    assert!(!outdated(&cluster));
    let applied = cluster.run(new_ca(1, first, &[1, 2])).unwrap();
    assert!(outdated(&cluster), "nodes of the new CA would not follow it");
    cluster.run(backup).unwrap();
    assert!(!outdated(&cluster));
    assert!(applied.nodes.contains(&node), "it is told");
    assert_eq!(cluster.state.former_certificates(), 3);
    assert!(!cluster.state.former_cas_are_done(LATE));
    let over = cluster.state.cluster().unwrap().former_cas[0].until;
    assert!(over > LATE && !cluster.state.former_cas_are_done(Timestamp(over.0 - 1)));
    assert!(cluster.state.former_cas_are_done(over), "nobody holds it up for longer than that");
    let now = cluster.state.cluster().unwrap();
    assert_eq!(now.roots(Timestamp(0)), [second, first]);
    // A newcomer gets the new one's key only if it is sealed.
    let raced = cluster.manager(3, &[1]);
    assert!(matches!(raced, Err(Rejected::KeysRaced { id: 3 })), "those are of the CA before");
    cluster.run(sync(0)).unwrap();
    cluster.run(Command::NoteCertificate { member: 1, ca_number: 0 }).unwrap();
    assert_eq!(cluster.state.former_certificates(), 3, "those were of the CA before");
    cluster.run(sync(1)).unwrap();
    cluster.run(Command::NoteCertificate { member: 1, ca_number: 1 }).unwrap();
    assert_eq!(cluster.state.former_certificates(), 1);
    cluster.run(Command::RemoveMember { id: 2, voters: [].into() }).unwrap();
    assert!(cluster.state.former_cas_are_done(LATE), "who is gone holds nothing up");
    let removed_at = cluster.state.cluster().unwrap().removed_at.unwrap();
    assert!(!cluster.state.former_cas_are_done(removed_at), "for some time it is told");
    assert!(cluster.state.cluster().unwrap().new_ca_due, "it has known the key");
    assert!(cluster.state.new_ca_is_due(LATE, Timestamp(0)));
    cluster.run(Command::ForgetFormerCas).unwrap();
    assert!(!cluster.state.former_cas_are_done(LATE));
    cluster.run(new_ca(2, second, &[1])).unwrap();
    assert!(!cluster.state.cluster().unwrap().new_ca_due);
    assert!(!cluster.state.new_ca_is_due(LATE, LATE), "it holds long enough");
    assert!(cluster.state.new_ca_is_due(LATE, Timestamp(LATE.0 + 1)), "it ends too soon");
}

#[test]
fn a_manager_is_named_by_id_host_address_or_number() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    cluster.manager(3, &[1]).unwrap();
    let node = cluster.state.members()[&2].node.to_string();
    for text in ["2", "m2", "m2:7070", &node, &node[..24]] {
        assert_eq!(cluster.state.find_member(text).unwrap().id, 2, "{text}");
    }
    for text in ["", "m9", "9"] {
        let missing = cluster.state.find_member(text).unwrap_err();
        assert!(matches!(missing, Rejected::NotFound { .. }), "{text:?}: {missing}");
    }
}

#[test]
fn a_clusters_health_is_how_many_more_managers_it_may_lose() {
    let health = |voters: u64, reached: u64| {
        Health::of(&(1..=voters).collect(), &(1..=reached).chain([99]).collect())
    };
    assert_eq!(health(1, 1), Health::Whole);
    assert_eq!(health(5, 5), Health::Whole);
    assert_eq!(health(5, 4), Health::Degraded { missing: 1, spare: 1 });
    assert_eq!(health(3, 2), Health::Degraded { missing: 1, spare: 0 });
    assert_eq!(health(2, 1), Health::NoQuorum { have: 1, needed: 2 });
    assert_eq!(health(5, 0), Health::NoQuorum { have: 0, needed: 3 });
}

#[test]
fn a_manager_passes_on_only_what_its_caller_may() {
    let mut cluster = Cluster::new();
    cluster.manager(2, &[1]).unwrap();
    cluster.join(1);
    let (node, other) = (NodeId::from_entropy(id(1)), NodeId::from_entropy(id(2)));
    let local = Actor::Local { uid: 0, gid: 0, pid: 1 };
    let joiner = || Actor::Joiner { address: "x".into() };
    let sync = |node| Command::SyncTasks { node, live: vec![], ca_number: 0 };
    let join = || Command::JoinNode { id: other, hostname: "h".into() };
    let remove = || Command::RemoveMember { id: 1, voters: [].into() };
    let address = |id| {
        let address = Some((id, "b:1".to_owned()));
        Command::ChangeCluster(ClusterChange { address, ..ClusterChange::default() })
    };
    let admitted = |actor: Actor, command: Command| {
        let envelope = Envelope { at: Timestamp(1), actor, via: 1, command };
        cluster.state.admit_forwarded(2, &envelope).is_ok()
    };
    for (actor, command) in [
        (local.clone(), remove()),
        (Actor::Node(node), sync(node)),
        (joiner(), join()),
        (Actor::Manager(2), address(2)),
        (Actor::Manager(2), head(2)),
    ] {
        assert!(admitted(actor.clone(), command.clone()), "{actor:?} {command:?}");
    }
    for (actor, command) in [
        (local.clone(), sync(node)),
        (local, join()),
        (Actor::Node(node), sync(other)),
        (Actor::Node(other), sync(other)),
        (Actor::Node(node), remove()),
        (joiner(), remove()),
        (Actor::Manager(1), address(1)),
        (Actor::Manager(2), address(1)),
        (Actor::Manager(2), head(1)),
        (Actor::Local { uid: 0, gid: 0, pid: 1 }, head(2)),
        (Actor::Manager(2), remove()),
        (Actor::Operator(node), remove()),
    ] {
        assert!(!admitted(actor.clone(), command.clone()), "{actor:?} {command:?}");
    }
    // A demoted one speaks for itself only.
    cluster.run(Command::DemoteMember { id: 2, voters: [].into() }).unwrap();
    let local = Actor::Local { uid: 0, gid: 0, pid: 1 };
    for (actor, command, is) in [
        (Actor::Manager(2), address(2), true),
        (local, remove(), false),
        (Actor::Node(node), sync(node), false),
        (joiner(), join(), false),
    ] {
        let envelope = Envelope { at: Timestamp(1), actor, via: 1, command };
        assert_eq!(cluster.state.admit_forwarded(2, &envelope).is_ok(), is, "{envelope:?}");
    }
}

fn new_key(epoch: u32, holders: &[u64]) -> Command {
    let token = TokenRecord { hash: [epoch as u8; 32], salt: [0; 32], epoch };
    Command::RotateKeyring(Box::new(NewKey {
        epoch,
        key: SealedKey { seals: holders.iter().map(|id| (*id, seal())).collect() },
        worker_token: token.clone(),
        manager_token: token,
    }))
}

#[test]
fn an_old_key_goes_when_its_last_value_is_sealed_anew() {
    let mut cluster = Cluster::new();
    cluster.create(1, "a").unwrap();
    cluster.create(2, "b").unwrap();
    cluster.rotate(2, 2).unwrap();
    for (epoch, holders) in [(1, &[1][..]), (3, &[1]), (2, &[]), (2, &[1, 2])] {
        let raced = cluster.run(new_key(epoch, holders)).unwrap_err();
        assert!(matches!(raced, Rejected::KeyringRaced { current: 1, .. }), "{epoch} {holders:?}");
    }
    let since = |cluster: &Cluster| cluster.state.cluster().unwrap().keys_since;
    assert_eq!(since(&cluster), None, "from the beginning");
    cluster.run(new_key(2, &[1])).unwrap();
    assert!(since(&cluster).is_some());
    // Made before that: its key would be kept for it alone, for ever.
    let token = TokenRecord { hash: [7; 32], salt: [0; 32], epoch: 1 };
    let raced = cluster.run(Command::RotateToken { role: TokenRole::Worker, token }).unwrap_err();
    assert_eq!(raced, Rejected::KeyringRaced { given: 1, current: 2 });
    assert_eq!(cluster.state.values_under_old_keys(), 3);
    assert!(cluster.create(3, "c").is_err(), "what is sealed under the old key comes too late");
    let next = |cluster: &Cluster| cluster.state.next_to_reseal(None, 2, 1 << 20);
    assert_eq!(next(&cluster).len(), 2);
    assert_eq!(cluster.state.next_to_reseal(None, 9, 1).len(), 1, "never less than one");
    while let Some((id, version, value)) = next(&cluster).into_iter().next() {
        assert!(cluster.state.cluster().unwrap().keyring.contains_key(&1));
        let anew = SealedValue { epoch: 2, ..(*value).clone() };
        let item =
            |value| Command::Reseal { items: vec![ResealItem { id, version, from: 1, value }] };
        // What is not the same value, or not under the current key, is left.
        let longer = SealedValue { ciphertext: vec![0; 99], ..anew.clone() };
        let before = cluster.state.values_under_old_keys();
        cluster.run(item(longer)).unwrap();
        cluster.run(item((*value).clone())).unwrap();
        assert_eq!(cluster.state.values_under_old_keys(), before);
        cluster.run(item(anew)).unwrap();
        assert_eq!(cluster.state.values_under_old_keys(), before - 1);
    }
    let keyring: Vec<u32> = cluster.state.cluster().unwrap().keyring.keys().copied().collect();
    assert_eq!(keyring, [2]);
}

#[test]
fn who_loses_the_keys_makes_new_ones_due() {
    let mut cluster = Cluster::new();
    let due = |cluster: &Cluster| cluster.state.cluster().unwrap().rekey;
    cluster.manager(2, &[1]).unwrap();
    assert!(!due(&cluster));
    cluster.run(Command::DemoteMember { id: 2, voters: [].into() }).unwrap();
    assert!(due(&cluster));
    cluster.run(new_key(2, &[1])).unwrap();
    assert!(!due(&cluster));
    cluster.run(Command::RemoveMember { id: 2, voters: [].into() }).unwrap();
    assert!(!due(&cluster), "it has had none since");
    cluster.manager(3, &[2]).unwrap();
    cluster.run(Command::RemoveMember { id: 3, voters: [].into() }).unwrap();
    assert!(due(&cluster));
}

fn head(member: u64) -> Command {
    Command::NoteAuditHead { member, seq: 1, hash: [0; 32] }
}

/// Audit: what a manager told of its files never goes back, is no line itself, and old heads stay, the first for ever.
#[test]
fn heads_of_the_audit_rise_and_old_ones_are_thinned() {
    let mut cluster = Cluster::new();
    let note = |seq| Command::NoteAuditHead { member: 1, seq, hash: [seq as u8; 32] };
    for seq in 1..=1000 {
        cluster.run(note(seq)).unwrap();
    }
    let kept: Vec<_> = cluster.state.audit_heads(1).iter().map(|head| head.seq).collect();
    assert!(kept.len() == 64 && kept.is_sorted(), "{kept:?}");
    assert!((993..=1000).all(|seq| kept.contains(&seq)), "the newest are all there: {kept:?}");
    assert!((0..10).all(|bit| kept.contains(&(1 << bit))), "some for ever: {kept:?}");
    let gap = kept.windows(2).filter(|pair| pair[0] > 512).map(|pair| pair[1] - pair[0]).max();
    assert!(gap < Some(100), "and old ones in between: {kept:?}");
    for seq in [1000, 7] {
        let refused = cluster.run(note(seq)).unwrap_err();
        assert_eq!(refused, Rejected::AuditWentBack { member: 1, seq, noted: 1000 });
    }
    for seq in 1..=1000 {
        cluster.run(note((1 << 60) + seq)).unwrap();
    }
    let kept = cluster.state.audit_heads(1);
    assert!((0..10).all(|bit| kept.iter().any(|head| head.seq == 1 << bit)), "a flood: {kept:?}");
    assert_eq!(cluster.run(head(2)).unwrap_err(), Rejected::NoMember { id: 2 });
    let envelope =
        Envelope { at: Timestamp(1), actor: Actor::Manager(1), via: 1, command: note(1001) };
    assert_eq!(audit(1, &envelope, Vec::new(), &Err(Rejected::NotInitialised)), None);
}
