//! The command line's contract with people and scripts, with the real binary against a real manager: names, labels,
//! rollback, all or none, failures for programs, options from three places.

use std::process::Command;

use keyhole_tests::{Cluster, Machine, Ran, plain_command, run};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[test]
fn objects_are_meant_by_id_then_name_then_a_beginning_of_the_id() {
    let cluster = Cluster::start();
    let id = cluster.ok_with(["secret", "create", "one", "-"], b"v").trim().to_owned();
    let meant = |text: &str| cluster.ok(["secret", "inspect", "--format", "{{.Spec.Name}}", text]);
    for text in [&id, "one", &id[..1], &id[..24]] {
        assert_eq!(meant(text), "one\n", "{text}");
    }
    // A name beats a beginning of an id, a whole id beats a name.
    cluster.ok_with(["secret", "create", &id[..2], "-"], b"v");
    assert_eq!(meant(&id[..2]), format!("{}\n", &id[..2]));
    cluster.ok_with(["secret", "create", &id, "-"], b"v");
    assert_eq!(meant(&id), "one\n");
    let refused = cluster.refused(["secret", "inspect", "On"]);
    assert!(refused.contains("secret On not found"), "names are whole and have case: {refused}");
    // More secrets than letters and digits: two ids begin alike.
    for number in 0..37 {
        cluster.ok_with(["secret", "create", &format!("s{number}"), "-"], b"v");
    }
    let ids = cluster.ok(["secret", "ls", "-q"]);
    let first = |id: &&str| ids.lines().filter(|other| other[..1] == id[..1]).count() > 1;
    let twice = ids.lines().find(first).expect("36 beginnings for 40 ids");
    let refused = cluster.refused(["secret", "inspect", &twice[..1]]);
    assert!(refused.contains("ambiguous") && refused.contains("matches found"), "{refused}");
}

#[test]
fn labels_change_and_nothing_else_does() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "-l", "env=prod", "-l", "old", "pw", "-"], b"v");
    cluster.ok(["service", "create", "web", "-l", "tier=front", "--secret", "pw"]);
    let labels = |noun: &str, name: &str| {
        json(&cluster.ok([noun, "inspect", "--format", "{{json .Spec.Labels}}", name]))
    };
    let update = ["update", "--label-add", "env=test", "--label-add", "new=1", "--label-rm", "old"];
    let words = ["secret"].iter().chain(&update).chain(&["pw"]);
    assert_eq!(cluster.ok(words), "pw\n");
    assert_eq!(labels("secret", "pw"), serde_json::json!({"env": "test", "new": "1"}));
    let shown = cluster.ok(["secret", "inspect", "--format", "{{.CurrentVersion}}", "pw"]);
    assert_eq!(shown, "1\n", "labels are no version");
    cluster.ok(["service", "update", "--label-add", "tier=back", "web"]);
    assert_eq!(labels("service", "web"), serde_json::json!({"tier": "back"}));
    let grants = cluster.ok(["service", "inspect", "--format", "{{len .Spec.Secrets}}", "web"]);
    assert_eq!(grants, "1\n");
    cluster.ok(["service", "update", "--label-rm", "tier", "web"]);
    assert_eq!(labels("service", "web"), serde_json::json!({}));
    let refused = cluster.refused(["secret", "update", "--label-rm", "none", "pw"]);
    assert!(refused.contains("\"none\" not found"), "{refused}");
}

#[test]
fn a_rotation_of_several_is_all_or_none() {
    let machine = Machine::start();
    let cluster = &machine.cluster;
    machine.secret("a", "a1");
    machine.secret("b", "b1");
    machine.service("web", &["a", "b"]);
    let task = machine.task("web");
    let folder = task.scratch();
    let file = |name: &str, value: &str| {
        let path = folder.join(value);
        std::fs::write(&path, value).unwrap();
        format!("{name}={}", path.display())
    };
    let (a, b, none) = (file("a", "a2"), file("b", "b2"), file("none", "value"));
    let refused = cluster.refused(["secret", "rotate", &a, &none, &b]);
    assert!(refused.contains("none not found"), "{refused}");
    let refused = cluster.refused(["secret", "rotate", &a, &file("a", "a3")]);
    assert!(refused.contains("a is named twice"), "{refused}");
    let nothing = folder.join("nothing");
    std::fs::write(&nothing, "").unwrap();
    let empty = format!("b={}", nothing.display());
    let refused = cluster.refused(["secret", "rotate", &a, &empty]);
    assert!(refused.contains("secret b: value from") && refused.contains("empty"), "{refused}");
    let versions = || cluster.ok(["secret", "ls", "--format", "{{.Name}} {{.Version}}"]);
    assert_eq!(versions(), "a 1\nb 1\n", "nothing was changed");
    cluster.ok(["secret", "rotate", "--wait", &a, &b]);
    assert_eq!(versions(), "a 2\nb 2\n");
    assert_eq!(task.text(machine.at("a")), Ok("a2".into()));
    assert_eq!(task.text(machine.at("b")), Ok("b2".into()));
}

#[test]
fn a_service_goes_back_to_its_spec_before_and_forth_again() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "pw", "-"], b"v");
    cluster.ok_with(["secret", "create", "key", "-"], b"v");
    cluster.ok(["service", "create", "web", "--secret", "pw", "-l", "a=1"]);
    let refused = cluster.refused(["service", "rollback", "web"]);
    assert!(refused.contains("web") && refused.contains("previous"), "{refused}");
    let change =
        ["--secret-rm", "pw", "--secret-add", "source=key,mode=0400", "--label-add", "a=2"];
    cluster.ok(["service", "update", "web"].iter().chain(&change));
    let spec = |which: &str| {
        let format = format!("{{{{json .{which}}}}}");
        json(&cluster.ok(["service", "inspect", "--format", &format, "web"]))
    };
    let (new, old) = (spec("Spec"), spec("PreviousSpec"));
    assert_eq!(old["Secrets"][0]["SecretName"], "pw");
    assert_eq!(cluster.ok(["service", "rollback", "web"]), "web\n");
    assert_eq!((spec("Spec"), spec("PreviousSpec")), (old.clone(), new.clone()), "swapped");
    for name in ["pw", "key"] {
        let refused = cluster.refused(["secret", "rm", name]);
        assert!(refused.contains("in use"), "so that no rollback can break: {refused}");
    }
    cluster.ok(["service", "rollback", "web"]);
    assert_eq!((spec("Spec"), spec("PreviousSpec")), (new, old));
}

#[test]
fn programs_get_one_object_a_failure() {
    let cluster = Cluster::start();
    cluster.ok_with(["secret", "create", "used", "-"], b"v");
    cluster.ok(["service", "create", "web", "--secret", "used"]);
    let ran = |args: &[&str]| cluster.keyhole(["--output", "json"].iter().chain(args));
    let lines = |ran: &Ran| ran.stderr.lines().map(json).collect::<Vec<_>>();
    let failed = ran(&["secret", "rm", "none", "used"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (1, ""));
    let said = lines(&failed);
    assert_eq!(said.len(), 2, "{failed:?}");
    assert_eq!((&said[0]["code"], &said[0]["name"]), (&"NOT_FOUND".into(), &"none".into()));
    assert_eq!(said[0]["error"], "secret none not found");
    assert_eq!((&said[1]["code"], &said[1]["exit"]), (&"FAILED_PRECONDITION".into(), &1.into()));
    for (args, code, name) in [
        (&["secret", "create", "a b", "/dev/null"][..], "FAILED", Some("a b")),
        (&["secret", "create", "x", "/nonexistent"], "FAILED", Some("x")),
        (&["secret", "rotate", "none", "/etc/hostname"], "NOT_FOUND", Some("none")),
        (&["secret", "rollback", "used"], "FAILED_PRECONDITION", Some("used")),
        (&["service", "create", "web"], "ALREADY_EXISTS", Some("web")),
        (&["node", "update", "--label-add", "a=b", "n"], "NOT_FOUND", Some("n")),
        (&["secret", "ls", "--format", "{{.Nothing}}"], "USAGE", None),
        (&["secret", "lss"], "USAGE", None),
        (&["secret"], "USAGE", None),
    ] {
        let failed = ran(args);
        let said = lines(&failed);
        assert_eq!(said.len(), 1, "{args:?}: {failed:?}");
        let exit = if code == "USAGE" { 2 } else { 1 };
        assert_eq!((failed.code, said[0]["exit"].as_i64()), (exit, Some(exit.into())), "{args:?}");
        assert_eq!((said[0]["code"].as_str(), said[0]["name"].as_str()), (Some(code), name));
        assert!(said[0]["error"].as_str().is_some_and(|text| !text.is_empty()), "{args:?}");
    }
    let mut command = plain_command();
    command.args(["--host", "unix:///nonexistent", "--output", "json", "secret", "ls"]);
    let said = lines(&run(command, b""));
    assert_eq!((said.len(), &said[0]["code"]), (1, &"FAILED".into()), "{said:?}");
    let warned = ran(&["service", "create", "api", "--secret", "used"]);
    assert_eq!(warned.code, 0);
    assert!(lines(&warned)[0]["warning"].as_str().unwrap().contains("no constraint"), "{warned:?}");
    let failed = ran(&["run", "--service", "web", "--", "keyhole-no-such-command"]);
    assert_eq!((failed.code, lines(&failed)[0]["exit"].as_i64()), (127, Some(127)));
}

#[test]
fn a_flag_beats_the_environment_and_that_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keyhole.toml");
    std::fs::write(&file, "host = \"unix:///by-file\"\n[secret.ls]\nfilter = [\"colour=red\"]\n")
        .unwrap();
    let told = |typed: &[&str], variable: Option<&str>, config: bool| {
        let mut command = plain_command();
        command.args(typed);
        if let Some(host) = variable {
            command.env("KEYHOLE_HOST", host);
        }
        if config {
            command.env("KEYHOLE_CONFIG", &file);
        }
        run(command, b"").stderr
    };
    let (ls, flag) = (&["node", "ls"][..], &["node", "ls", "--host", "unix:///by-flag"][..]);
    let environment = Some("unix:///by-environment");
    for (typed, variable, config, place) in [
        (flag, environment, true, "unix:///by-flag"),
        (ls, environment, true, "unix:///by-environment"),
        (ls, None, true, "unix:///by-file"),
        (ls, None, false, "unix:///run/keyhole/manager.sock"),
        (flag, None, true, "unix:///by-flag"),
    ] {
        let said = told(typed, variable, config);
        assert!(said.contains(&format!("{place}:")), "{place}: {said}");
    }
    assert!(told(&["secret", "ls"], None, true).contains("invalid filter 'colour'"), "by the file");
    assert!(told(&["secret", "ls", "-f", "name=x"], None, true).contains("by-file"), "overridden");

    std::fs::write(&file, "[manager.run]\ndata_dri = \"/x\"\n").unwrap();
    let said = told(ls, None, true);
    assert!(said.contains("\"data-dri\" in [manager.run]"), "{said}");
    assert!(said.contains("did you mean \"data-dir\"?"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    let mut command: Command = plain_command();
    command.args(["--host", "unix:///x", "secret", "ls"]).env("KEYHOLE_SECRET_LS_QIET", "true");
    let said = run(command, b"").stderr;
    assert!(said.contains("KEYHOLE_SECRET_LS_QIET sets no option"), "{said}");
    assert!(said.contains("did you mean KEYHOLE_SECRET_LS_QUIET?"), "{said}");
}
