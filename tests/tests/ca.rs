//! The root CA is replaced while everything runs: nothing is dropped, and the one before ends (docs/MANAGERS.md).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_tests::member::Member;
use keyhole_tests::{Cluster, Node, Probe, wait};
use keyhole_wire::tls::certificate::ca_params;
use keyhole_wire::tls::{EXPIRED_GRACE, LiveTls, connect};
use prost::Message;
use rustix::process::Signal;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// The root CAs that a node trusts.
fn roots(node: &Node) -> Vec<Vec<u8>> {
    let bytes = fs::read(node.data().join("identity")).expect("it has joined");
    let identity = v1::NodeIdentity::decode(&*bytes).expect("it is one");
    identity.roots.iter().map(|root| root.to_vec()).collect()
}

fn succession(by: &Cluster) -> String {
    by.ok(["cluster", "status", "-f", "{{.CANumber}} {{.FormerCertificates}} {{.FormerCAUntil}}"])
}

fn comes_to(by: &Cluster, wanted: &str) {
    wait::until(wanted, || match succession(by) {
        now if now.trim_end() == wanted => Ok(()),
        now => Err(now),
    });
}

/// Short certificates are renewed soon.
fn three_managers() -> Vec<Cluster> {
    let managers = Cluster::of(3);
    managers[0].ok(["cluster", "update", "--cert-expiry", "60s"]);
    managers[0].ok_with(["secret", "create", "pw", "-"], b"v");
    managers[0].ok(["service", "create", "web", "--secret", "pw"]);
    managers
}

/// G26: tasks read all the time, everybody comes to trust the new CA alone, and old tokens end.
#[test]
fn a_new_ca_takes_over_under_tasks_that_read() {
    let mut managers = three_managers();
    let nodes = [managers[0].node(), managers[1].node()];
    let tasks = nodes.each_ref().map(|node| node.task("web"));
    let (before, token) = (managers[0].ok(["cluster", "ca"]), managers[0].node_token());
    assert!(before.starts_with("-----BEGIN CERTIFICATE-----\n"), "{before}");
    let former = roots(&nodes[0]);
    while_they_read(tasks.into_iter().zip(&nodes), || {
        assert_eq!(managers[1].ok(["cluster", "ca", "--rotate", "--wait"]), "root CA 1\n");
    });
    assert_eq!(succession(&managers[2]), "1 0 \n");
    assert_ne!(managers[2].ok(["cluster", "ca"]), before);
    for node in &nodes {
        let now = roots(node);
        assert!(now.len() == 1 && now != former, "it trusts the new one alone");
    }
    let refused = block_on(Member::join(managers[0].address(), &token, "late"));
    assert!(refused.unwrap_err().to_string().contains("root is not the token's"));
    // All of them are whole: after a restart they find each other, elect, and take nodes and managers in.
    managers.iter_mut().for_each(|manager| manager.restart(Signal::KILL));
    let other = managers[2].node();
    assert_eq!(other.task("web").text(other.path("pw")).as_deref(), Ok("v"));
    let fourth = managers[1].join();
    fourth.ok_with(["secret", "rotate", "--wait", "pw", "-"], b"w");
    // Again, and the next one follows that.
    assert_eq!(fourth.ok(["cluster", "ca", "--rotate", "--wait"]), "root CA 2\n");
}

/// The tasks read on their nodes all the time that `work` takes.
fn while_they_read<'a>(tasks: impl Iterator<Item = (Probe, &'a Node)>, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let read = |(task, node): (Probe, &'a Node)| {
            let (path, stop) = (node.path("pw"), &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(task.text(&path).as_deref(), Ok("v"));
                }
            })
        };
        let readers: Vec<_> = tasks.map(read).collect();
        work();
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("the task reads on"));
    });
}

/// A root CA as an organisation makes one: the files of its certificate and of its key.
fn own_root(by: &Cluster, key: &str) -> [String; 2] {
    let files = ["ca.pem", "ca.key"].map(|name| by.ground().folder().join(name));
    let [certificate, secret] = files.map(|file| file.display().to_string());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", key, "-nodes", "-days", "3650"])
        .args([
            "-subj",
            "/C=CH/O=Example/CN=Example Root",
            "-keyout",
            &secret,
            "-out",
            &certificate,
        ])
        .output()
        .expect("openssl is installed (scripts/install-needs)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    [certificate, secret]
}

/// G26, with a root CA that an administrator brings; and back.
#[test]
fn a_root_ca_of_ones_own_takes_over_under_tasks_that_read() {
    let managers = three_managers();
    let nodes = [managers[0].node(), managers[1].node()];
    let tasks = nodes.each_ref().map(|node| node.task("web"));
    let [certificate, key] = own_root(&managers[0], "ed25519");
    let bring =
        |key| ["cluster", "ca", "--rotate", "--wait", "--ca-cert", &certificate, "--ca-key", key];
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("our file");
    assert!(managers[1].refused(bring(&key)).contains("chmod 600"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("our file");
    while_they_read(tasks.into_iter().zip(&nodes), || {
        assert_eq!(managers[1].ok(bring(&key)), "root CA 1\n");
    });
    let brought = fs::read_to_string(&certificate).expect("our file");
    assert_eq!(managers[2].ok(["cluster", "ca"]), brought);
    let der = pem::parse(&brought).expect("it is PEM").into_contents();
    assert!(nodes.iter().all(|node| roots(node) == [der.clone()]), "they trust it alone");
    let known = managers[0].refused_with(bring("-"), &fs::read(&key).expect("our file"));
    assert!(known.contains("which the cluster believes already"), "{known}");
    // Newcomers find it by the token, which names it.
    let fourth = managers[2].join();
    let other = fourth.node();
    let task = other.task("web");
    assert_eq!(task.text(other.path("pw")).as_deref(), Ok("v"));
    let tasks = nodes.each_ref().map(|node| node.task("web"));
    while_they_read(tasks.into_iter().zip(&nodes), || {
        assert_eq!(fourth.ok(["cluster", "ca", "--rotate", "--wait"]), "root CA 2\n");
    });
    assert_ne!(managers[2].ok(["cluster", "ca"]), brought);
    fourth.ok_with(["secret", "rotate", "--wait", "pw", "-"], b"w");
    assert_eq!(task.text(other.path("pw")).as_deref(), Ok("w"));
}

/// A root that ends is followed by one of the cluster's own while it can still vouch for that.
#[test]
fn a_root_ca_that_ends_soon_is_replaced_by_the_leader() {
    let managers = three_managers();
    managers[0].ok(["cluster", "update", "--cert-expiry", "10s"]);
    let node = managers[0].node();
    let task = node.task("web");
    let [certificate, key] =
        ["ca.pem", "ca.key"].map(|name| managers[0].ground().folder().join(name));
    // Long enough to be taken, and for the trial of it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let (until, pair) = (now + EXPIRED_GRACE.as_secs() + 10 + 6, rcgen::KeyPair::generate());
    let (id, pair) = (managers[0].ok(["cluster", "status", "-f", "{{.ID}}"]), pair.expect("a key"));
    let params = ca_params(&id.trim().parse().expect("its id"), now - 60, until);
    let root = params.expect("a root's").self_signed(&pair).expect("a certificate");
    fs::write(&certificate, root.pem()).expect("our file");
    fs::write(&key, pair.serialize_pem()).expect("our file");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("our file");
    let [certificate, key] = [certificate, key].map(|file| file.display().to_string());
    while_they_read(std::iter::once((task, &node)), || {
        let bring = ["cluster", "ca", "--rotate", "--ca-cert", &certificate, "--ca-key", &key];
        assert_eq!(managers[1].ok(bring), "root CA 1\n");
        wait::until("a root CA of the cluster's own that all have", || {
            match succession(&managers[2]) {
                now if now == "2 0 \n" => Ok(()),
                now => Err(now),
            }
        });
    });
    assert_eq!(roots(&node).len(), 1);
    managers[2].ok_with(["secret", "rotate", "--wait", "pw", "-"], b"w");
}

/// Who is off holds the end up, is named by the count, and comes back by itself.
#[test]
fn who_was_off_during_a_rotation_comes_back_by_the_former_ca() {
    let mut managers = three_managers();
    let (mut off, stays) = (managers[0].node(), managers[0].node());
    let task = stays.task("web");
    off.stop(Signal::TERM);
    managers[2].stop(Signal::TERM);
    managers[0].ok(["cluster", "ca", "--rotate"]);
    wait::until("the others to have new certificates", || match succession(&managers[0]) {
        now if now.starts_with("1 2 2") => Ok(()),
        now => Err(now),
    });
    managers[2].resume();
    wait::until("the manager to have one", || match succession(&managers[0]) {
        now if now.starts_with("1 1 2") => Ok(()),
        now => Err(now),
    });
    off.resume();
    comes_to(&managers[2], "1 0");
    assert_eq!(task.text(stays.path("pw")).as_deref(), Ok("v"));
    let here = off.task("web");
    assert_eq!(here.text(off.path("pw")).as_deref(), Ok("v"));
}

/// The way by former CAs is as long as a verifier goes, and no longer.
#[test]
fn who_was_off_during_six_rotations_comes_back() {
    let manager = Cluster::start();
    manager.ok_with(["secret", "create", "pw", "-"], b"v");
    manager.ok(["service", "create", "web", "--secret", "pw"]);
    let mut seven = manager.node();
    seven.stop(Signal::TERM);
    manager.ok(["cluster", "ca", "--rotate"]);
    let mut six = manager.node();
    six.stop(Signal::TERM);
    (0..6).for_each(|_| drop(manager.ok(["cluster", "ca", "--rotate"])));
    six.resume();
    assert_eq!(six.task("web").text(six.path("pw")).as_deref(), Ok("v"));
    seven.resume();
    let strange = "the manager's certificate is not signed by this cluster's CA";
    wait::until("its refusal", || match seven.supervisor().log() {
        log if log.contains(strange) => Ok(()),
        log => Err(log),
    });
    assert_eq!(succession(&manager).split_once(' ').unwrap().0, "7");
}

/// A live connection ends with the CA that its certificate is of, and there is no other way in.
#[test]
fn a_connection_ends_when_the_ca_of_its_certificate_is_forgotten() {
    let mut managers = three_managers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (address, token) = (managers[0].address(), managers[0].node_token());
        let member = Member::join(address, &token, "late").await.expect("it joins");
        let tls = LiveTls::new(Some(member.identity()), member.roots()).expect("it fits");
        let (channel, _) = connect(&address.to_string(), &tls).await.expect("it is let in");
        let ask =
            async || CaClient::new(channel.clone()).get_root_ca(v1::GetRootCaRequest {}).await;
        let before = ask().await.expect("an answer").into_inner().certificate;
        managers[0].ok(["cluster", "ca", "--rotate"]);
        wait::until("the managers to have new certificates", || match succession(&managers[0]) {
            now if now.starts_with("1 1 2") => Ok(()),
            now => Err(now),
        });
        let after = ask().await.expect("it is believed still").into_inner().certificate;
        assert_ne!(before, after);
        managers[0].ok(["cluster", "update", "--forget-former-ca"]);
        let mut log = || managers[0].manager().log();
        wait::until("the managers to trust the new one alone", || match log() {
            log if log.contains("from now on count=1 ended=") => Ok(()),
            log => Err(log),
        });
        ask().await.expect_err("its connection has ended, and it gets no other");
    });
}

/// It has known the CA's key.
#[test]
fn a_removed_manager_leaves_no_ca_that_it_knew() {
    let mut managers = three_managers();
    let node = managers[0].node();
    let task = node.task("web");
    let mut gone = managers.pop().expect("three");
    managers[0].ok(["manager", "rm", &gone.address().to_string()]);
    wait::until("all that are left to have new certificates", || match succession(&managers[1]) {
        now if now.starts_with("1 0") => Ok(()),
        now => Err(now),
    });
    assert_eq!(gone.manager().wait().code(), Some(1), "it is told, and stops");
    wait::until_within(Duration::from_secs(60), "the CA before to end", || {
        match succession(&managers[0]) {
            now if now == "1 0 \n" => Ok(()),
            now => Err(now),
        }
    });
    assert_eq!(task.text(node.path("pw")).as_deref(), Ok("v"));
    managers[0].ok_with(["secret", "rotate", "--wait", "pw", "-"], b"w");
}
