//! Operators from elsewhere (docs/GUARANTEES.md, G23): certificates with a role and a scope, at every manager's port, by
//! contexts of the command line.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use keyhole_tests::network::Network;
use keyhole_tests::{Clock, Cluster, Ground, Ran, command_on, run, wait};
use rustix::process::Signal;
use serde_json::Value;

/// Somebody on a machine of his own, with one context.
struct Person {
    home: PathBuf,
    /// What runs a command on his machine; nothing: here.
    on: Vec<String>,
}

impl Person {
    /// Created at `by` with these words, and the context made of the file; `at` is the only manager that he knows, or none
    /// to know all.
    fn new(by: &Cluster, name: &str, words: &[&str], at: Option<&Cluster>) -> Self {
        let home = by.ground().folder().join(format!("home of {name} {}", words.join(" ")));
        fs::create_dir(&home).unwrap();
        let file = home.join("file.toml");
        let out = file.to_str().unwrap();
        let create = ["operator", "create", name, "--out", out];
        let id = by.ok(create.iter().chain(words));
        assert_eq!(id.trim().len(), 25, "{id}");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let person = Self { home, on: Vec::new() };
        let mut take = vec!["context", "create", "shop", "--from", out];
        let address = at.map(|at| at.address().to_string()).unwrap_or_default();
        if at.is_some() {
            take.extend(["--managers", &address]);
        }
        assert_eq!(person.keyhole(&take, b"").stdout, "shop\n");
        fs::remove_file(file).unwrap();
        assert_eq!(person.ok(&["context", "use", "shop"]), "shop\n");
        person
    }

    /// The same person, on a host of a network.
    fn on(self, on: Vec<String>) -> Self {
        Self { on, ..self }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command_on(&self.on);
        command.arg("--context-dir").arg(self.home.join("contexts")).args(words);
        command
    }

    fn keyhole(&self, words: &[&str], stdin: &[u8]) -> Ran {
        run(self.command(words), stdin)
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.ok_with(words, b"")
    }

    #[track_caller]
    fn ok_with(&self, words: &[&str], stdin: &[u8]) -> String {
        let ran = self.keyhole(words, stdin);
        assert_eq!(ran.code, 0, "{words:?}: {}", ran.stderr);
        ran.stdout
    }

    #[track_caller]
    fn refused(&self, words: &[&str], why: &str) {
        let ran = self.keyhole(words, b"value");
        assert_eq!(ran.code, 1, "{words:?}: {}", ran.stdout);
        assert!(ran.stderr.contains(why), "{words:?}: {}", ran.stderr);
    }

    fn id(&self) -> String {
        self.ok(&["context", "inspect", "-f", "{{.OperatorID}}"]).trim().to_owned()
    }
}

/// One that does not lead.
fn follower(managers: &[Cluster]) -> &Cluster {
    let leader =
        managers[0].ok(["manager", "ls", "-f", "status=leader", "--format", "{{.Address}}"]);
    let other = managers.iter().find(|manager| manager.address().to_string() != leader.trim());
    other.expect("one leads")
}

fn audit(of: &Cluster) -> Vec<Value> {
    let folder = fs::read_dir(of.data().join("audit")).unwrap();
    let files = folder.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let text: String = files.collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_role_does_its_part_through_a_follower_and_nothing_else() {
    let managers = Cluster::of(3);
    let (root, at) = (&managers[0], Some(follower(&managers)));
    root.ok_with(["secret", "create", "db", "-"], b"value");
    let scope = ["--role", "writer", "--secrets", "web-*", "--services", "web-*"];
    let writer = Person::new(root, "ci", &scope, at);
    let auditor = Person::new(root, "watch", &["--role", "auditor"], at);
    let admin = Person::new(root, "ann@example.org", &["--role", "admin"], at);

    // Values too: sealed to the follower's process and this connection, passed on to the leader.
    writer.ok_with(&["secret", "create", "web-a", "-"], b"value");
    assert_eq!(
        writer.ok_with(&["secret", "rotate", "--wait", "web-a", "-"], b"next"),
        "web-a: version 2\n"
    );
    writer.ok(&["service", "create", "web-1", "--secret", "web-a"]);
    assert_eq!(writer.ok(&["secret", "ls", "--format", "{{.Name}}"]), "web-a\n");
    writer.refused(
        &["secret", "create", "db2", "-"],
        "secret db2 is not in the scope of operator ci",
    );
    writer.refused(&["secret", "rotate", "db", "-"], "secret db not found");
    writer.refused(&["secret", "inspect", "db"], "secret db not found");
    writer.refused(&["service", "create", "web-2", "--secret", "db"], "secret db not found");
    writer.refused(&["service", "create", "api"], "service api is not in the scope");
    let role = "operator ci is a writer with a scope, which may not do this";
    for words in [
        &["cluster", "status"][..],
        &["cluster", "join-token", "worker"],
        &["operator", "ls"],
        &["manager", "ls"],
        &["node", "rm", "x"],
    ] {
        writer.refused(words, role);
    }
    // An administrator gives the service what is not the writer's; from then on it is not his to change.
    admin.ok(&["service", "update", "--secret-add", "db", "web-1"]);
    let granted = "a secret that service web-1 grants, or granted before is not in the scope";
    writer.refused(
        &["service", "update", "--constraint-add", "node.hostname==mine", "web-1"],
        granted,
    );
    writer.refused(&["service", "rollback", "web-1"], granted);
    writer.refused(&["service", "rm", "web-1"], granted);

    assert_eq!(auditor.ok(&["secret", "ls", "--format", "{{.Name}}"]), "db\nweb-a\n");
    assert_eq!(auditor.ok(&["cluster", "status", "-f", "{{.Health}}"]), "ok\n");
    auditor.refused(
        &["secret", "create", "x", "-"],
        "operator watch is an auditor, which may not do this",
    );
    auditor.refused(&["operator", "rm", "ci"], "operator watch is an auditor");

    let list = admin.ok(&["operator", "ls", "--format", "{{.Name}} {{.Role}} {{.Secrets}}"]);
    assert_eq!(list, "ann@example.org admin *\nci writer web-*\nwatch auditor *\n");

    // He knows one manager, and goes on knowing that one.
    let known = || writer.ok(&["context", "inspect", "-f", "{{.Managers}}"]);
    let before = known();
    writer.ok(&["operator", "renew"]);
    assert_eq!(known(), before);

    let own = writer.id();
    let done = |of: &Cluster| {
        let rotated =
            |line: &&Value| line["action"] == "secret.rotate" && line["actor"]["id"] == *own;
        audit(of).iter().filter(rotated).count()
    };
    managers.iter().for_each(|of| assert_eq!(done(of), 1, "one line at each manager"));
    let refused = audit(follower(&managers));
    let refused = refused.iter().filter(|line| line["refused"]["actor"]["id"] == *own);
    assert!(refused.count() >= 7, "where he asked");
}

fn wait_for(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

#[test]
fn a_removed_operator_waits_for_nothing_any_more_and_a_namesake_is_another() {
    let managers = Cluster::of(3);
    let root = &managers[0];
    root.ok_with(["secret", "create", "pw", "-"], b"one");
    root.ok(["service", "create", "web", "--secret", "pw"]);
    let mut node = root.node();
    let task = node.task("web");
    let gone = Person::new(root, "ann", &["--role", "admin"], Some(&managers[2]));
    // The node hears nothing now, so the rotation waits.
    let worker = rustix::process::Pid::from_raw(node.worker().unwrap()).unwrap();
    node.supervisor().signal(Signal::STOP);
    rustix::process::kill_process(worker, Signal::STOP).unwrap();
    let file = root.ground().folder().join("two");
    fs::write(&file, "two").unwrap();
    let mut rotate = gone.command(&["secret", "rotate", "--wait", "pw", file.to_str().unwrap()]);
    let waiting = rotate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait::until("the rotation", || {
        match root.ok(["secret", "inspect", "-f", "{{.CurrentVersion}}", "pw"]).as_str() {
            "2\n" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    root.ok(["operator", "rm", "ann"]);
    let ended = wait_for(waiting);
    rustix::process::kill_process(worker, Signal::CONT).unwrap();
    node.supervisor().signal(Signal::CONT);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("is not known to this cluster (any more)"), "{said}");
    gone.refused(&["secret", "ls"], "is not known to this cluster (any more)");

    let again =
        Person::new(root, "ann", &["--role", "admin", "--expiry", "1d"], Some(&managers[1]));
    again.ok(&["secret", "ls"]);
    gone.refused(&["secret", "ls"], "is not known to this cluster (any more)");
    drop(task);
}

#[test]
fn a_context_goes_to_another_manager_when_one_is_gone_or_silent() {
    let mut managers = Cluster::of(3);
    let ann = Person::new(&managers[0], "ann", &["--role", "admin"], None);
    let known = ann.ok(&["context", "inspect", "-f", "{{len .Managers}}"]);
    assert_eq!(known, "3\n");
    ann.ok_with(&["secret", "create", "pw", "-"], b"one");
    managers[0].manager().signal(Signal::STOP);
    let reads = || match ann.keyhole(&["secret", "ls", "--format", "{{.Name}}"], b"") {
        ran if ran.code == 0 && ran.stdout == "pw\n" => Ok(()),
        ran => Err(ran.stderr),
    };
    wait::until("an answer while the first is silent", reads);
    managers[0].stop(Signal::KILL);
    wait::until("an answer while the first is gone", reads);
    managers[1].stop(Signal::KILL);
    managers[2].stop(Signal::KILL);
    let none = ann.keyhole(&["secret", "ls"], b"");
    assert!(none.stderr.contains("no manager of context shop serves"), "{}", none.stderr);
    for manager in &managers {
        let address = format!("{}: connection refused", manager.address());
        assert!(none.stderr.contains(&address), "{}", none.stderr);
    }
}

/// Sealed to one manager's process and to the connection, as values are.
#[test]
fn a_backup_to_a_passphrase_is_taken_from_elsewhere_and_opens() {
    let mut machine = Cluster::start();
    machine.ok_with(["secret", "create", "pw", "-"], b"one");
    let ann = Person::new(&machine, "ann", &["--role", "admin"], None);
    let auditor = Person::new(&machine, "bob", &["--role", "auditor"], None);
    let (phrase, file) = (ann.home.join("phrase"), ann.home.join("backup.age"));
    fs::write(&phrase, "correct horse battery staple").unwrap();
    let (phrase, out) = (phrase.to_str().unwrap(), file.to_str().unwrap());
    let words = ["cluster", "backup", "--passphrase-file", phrase, out];
    auditor.refused(&words, "operator bob is an auditor, which may not do this");
    assert!(!file.exists(), "nothing is left of it");
    assert!(ann.ok(&words).starts_with(out));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let taken = audit(&machine).into_iter().find(|line| line["action"] == "cluster.backup");
    assert_eq!(taken.unwrap()["actor"]["id"], *ann.id());
    // Everything is in it, and it opens by that passphrase alone.
    let before = machine.ok(["secret", "inspect", "pw"]);
    machine.stop(Signal::TERM);
    fs::remove_dir_all(machine.data()).unwrap();
    let data = machine.data().to_str().unwrap().to_owned();
    let restore = ["cluster", "restore", "--from", out, "--data-dir", &data, "--passphrase-file"];
    let wrong = ann.home.join("wrong");
    fs::write(&wrong, "battery staple").unwrap();
    let refused = machine.keyhole(restore.iter().chain(&[wrong.to_str().unwrap()]));
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    machine.ok(restore.iter().chain(&[phrase]));
    machine.resume();
    assert_eq!(machine.ok(["secret", "inspect", "pw"]), before);
}

/// It answers, and can serve nobody: the command goes to the next one, a change too, and is done once.
#[test]
fn a_context_learns_where_the_managers_are_unless_somebody_said_so() {
    let mut managers = vec![Cluster::start()];
    let ann = Person::new(&managers[0], "ann", &["--role", "auditor"], None);
    let bob = Person::new(&managers[0], "bob", &["--role", "admin"], Some(&managers[0]));
    let known = |of: &Person| of.ok(&["context", "inspect", "-f", "{{json .Managers}}"]);
    let one = known(&ann);
    for _ in 0..2 {
        let joined = managers[0].join();
        managers.push(joined);
    }
    wait::until("all managers in the context", || {
        [&ann, &bob].iter().for_each(|of| drop(of.ok(&["secret", "ls"])));
        let known = known(&ann);
        let all = managers.iter().all(|one| known.contains(&one.address().to_string()));
        if all { Ok(()) } else { Err(known) }
    });
    assert_eq!(known(&bob), one, "he said where it is");
    managers[0].stop(Signal::KILL);
    wait::until("an answer of one that joined later", || {
        match ann.keyhole(&["secret", "ls"], b"") {
            ran if ran.code == 0 => Ok(()),
            ran => Err(ran.stderr),
        }
    });
    // What was learned is no more than a hint: without it, the file counts.
    let folder = ann.home.join("contexts/shop");
    assert_eq!(fs::metadata(folder.join("operator.toml")).unwrap().mode() & 0o777, 0o600);
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    fs::remove_file(folder.join("managers")).unwrap();
    assert_eq!(known(&ann), one);
}

#[test]
fn a_context_goes_to_another_manager_when_one_is_cut_off_or_demoted() {
    let ground = Arc::new(Ground::new());
    // The fourth host is the operator's.
    let network = Network::new(4);
    let clocks = [0, 1, 2].map(|host| Clock::new(ground.folder().join(format!("clock{host}"))));
    let managers = Cluster::on_network(&ground, &network, &clocks);
    let ann = Person::new(&managers[0], "ann", &["--role", "admin"], None).on(network.on(3));
    let audited = |of: &Cluster, action: &str| {
        audit(of).iter().filter(|line| line["action"] == action).count()
    };
    for other in [1, 2] {
        network.cut(0, other);
        network.cut(other, 0);
    }
    ann.ok_with(&["secret", "create", "pw", "-"], b"one");
    assert_eq!(ann.ok(&["secret", "ls", "--format", "{{.Name}}"]), "pw\n");
    assert_eq!(audited(&managers[1], "secret.create"), 1);
    network.heal();
    // It sees what was done without it, and is then no voter any more.
    wait::until("the first to follow", || match managers[0].keyhole(["secret", "ls", "-q"]) {
        ran if ran.code == 0 => Ok(()),
        ran => Err(ran.stderr),
    });
    managers[1].ok(["manager", "demote", &managers[0].address().to_string()]);
    let demoted = managers[0].keyhole(["secret", "ls"]);
    assert!(demoted.stderr.contains("was demoted and holds no keys"), "{}", demoted.stderr);
    ann.ok_with(&["secret", "rotate", "pw", "-"], b"two");
    assert_eq!(audited(&managers[1], "secret.rotate"), 1);
    // Two that vote are left; where they do not reach each other nobody serves, and each says why.
    network.isolate(1);
    let none = ann.keyhole(&["secret", "ls"], b"");
    assert!(none.stderr.contains("no manager of context shop serves"), "{}", none.stderr);
    for (at, manager) in managers.iter().enumerate() {
        let asked = none.stderr.contains(&manager.address().to_string());
        assert_eq!(asked, at > 0, "the demoted one is known to be none: {}", none.stderr);
    }
}

/// Who replaces the root CA from elsewhere has a certificate of the new one then, and is not what it waits for.
#[test]
fn a_root_ca_is_replaced_from_a_context() {
    let machine = Cluster::start();
    machine.ok(["cluster", "update", "--cert-expiry", "60s"]);
    let ann = Person::new(&machine, "ann", &["--role", "admin"], None);
    let other = Person::new(&machine, "bob", &["--role", "auditor"], None);
    assert_eq!(ann.ok(&["cluster", "ca", "--rotate"]), "root CA 1\n");
    let left = || machine.ok(["cluster", "status", "-f", "{{.CANumber}} {{.FormerCertificates}}"]);
    wait::until("the other operator to be the only one", || match left() {
        now if now == "1 1\n" => Ok(()),
        now => Err(now),
    });
    other.ok(&["operator", "renew"]);
    wait::until("nobody to need the former CA", || match left() {
        now if now == "1 0\n" => Ok(()),
        now => Err(now),
    });
    // Bob is in the way of the next one.
    machine.ok(["operator", "rm", "bob"]);
    assert_eq!(ann.ok(&["cluster", "ca", "--rotate", "--wait"]), "root CA 2\n");
}

#[test]
fn a_certificate_is_renewed_in_its_context_and_ends_if_it_is_not() {
    let machine = Cluster::start();
    let ann = Person::new(&machine, "ann", &["--role", "auditor", "--expiry", "1h"], None);
    let ends = || ann.ok(&["context", "inspect", "-f", "{{.ExpiresAt}}"]);
    let before = ends();
    wait::until("a later end", || {
        let said = ann.ok(&["operator", "renew"]);
        assert!(said.starts_with("shop: expires in "), "{said}");
        match ends() {
            now if now > before => Ok(()),
            now => Err(now),
        }
    });
    let listed = machine.ok(["operator", "inspect", "-f", "{{.ExpiresAt}}", "ann"]);
    assert_eq!(listed, ends());
    ann.ok(&["secret", "ls"]);
    let short = Person::new(&machine, "bob", &["--role", "auditor", "--expiry", "10s"], None);
    short.ok(&["secret", "ls"]);
    wait::until("the end", || match short.keyhole(&["secret", "ls"], b"") {
        ran if ran.code == 0 => Err("it holds still".to_owned()),
        ran => {
            assert!(
                ran.stderr.contains("the certificate of context shop expired"),
                "{}",
                ran.stderr
            );
            assert!(ran.stderr.contains("remove operator bob"), "{}", ran.stderr);
            Ok(())
        }
    });
    let file = machine.ground().folder().join("never");
    let never = file.to_str().unwrap();
    let words =
        ["operator", "create", "eve", "--role", "admin", "--expiry", "2years", "--out", never];
    let long = machine.refused(words);
    assert!(long.contains("out of range"), "{long}");
    assert!(!file.exists(), "nothing is left of it");
}
