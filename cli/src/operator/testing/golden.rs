//! What commands print, to the byte.

use keyhole_proto::v1::DeliveryProgress;

use super::{Fake, keyhole, keyhole_at};

fn file_with(contents: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    file
}

#[test]
fn secrets_are_listed_in_natural_order_as_docker_does() {
    let ran = keyhole(&["secret", "ls"]);
    assert_eq!(
        ran.out,
        "ID                          NAME      VERSION   CREATED         UPDATED\n\
         bbbbbbbbbbbbbbbbbbbbbbbbb   db2       1         2 minutes ago   2 minutes ago\n\
         aaaaaaaaaaaaaaaaaaaaaaaaa   db10      3         2 minutes ago   Less than a second ago\n"
    );
    assert_eq!((ran.err.as_str(), ran.code), ("", 0));
}

#[test]
fn lists_are_filtered_and_formatted_here() {
    let out = |words: &[&str]| keyhole(words).out;
    assert_eq!(out(&["secret", "ls", "-q", "-f", "name=db1"]), format!("{}\n", "a".repeat(25)));
    assert_eq!(out(&["secret", "ls", "-q", "-f", "label=env=dev"]), "");
    assert_eq!(
        out(&["secret", "ls", "--format", "{{.Name}}:{{.Label \"env\"}}"]),
        "db2:prod\ndb10:prod\n"
    );
    let ran = keyhole(&["secret", "ls", "-f", "colour=red"]);
    assert_eq!(
        ran.err,
        "keyhole: invalid filter 'colour'; known here are id, name, names, label\n"
    );
    assert_eq!(ran.code, 2);
}

#[test]
fn inspect_is_shaped_as_dockers_and_goes_on_after_a_miss() {
    let ran = keyhole(&["secret", "inspect", "none", "db10"]);
    assert_eq!(ran.err, "keyhole: secret none not found\n");
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.out,
        r#"[
    {
        "ID": "aaaaaaaaaaaaaaaaaaaaaaaaa",
        "Version": {
            "Index": 12
        },
        "CreatedAt": "2023-11-14T22:13:20.000000000Z",
        "UpdatedAt": "2023-11-14T22:14:20.000000000Z",
        "Spec": {
            "Name": "db10",
            "Labels": {
                "env": "prod"
            }
        },
        "CurrentVersion": 2,
        "Versions": [
            {
                "Version": 1,
                "CreatedAt": "2023-11-14T22:13:20.000000000Z",
                "Size": 32,
                "Current": false,
                "Pinned": true
            },
            {
                "Version": 2,
                "CreatedAt": "2023-11-14T22:14:20.000000000Z",
                "Size": 32,
                "Current": true,
                "Pinned": false
            }
        ],
        "Services": [
            "web"
        ]
    }
]
"#
    );
    let ran = keyhole(&["secret", "inspect", "--format", "{{.Value}}", "db10"]);
    assert!(ran.err.contains("known here are ID, Version, CreatedAt"), "{}", ran.err);
    assert_eq!(ran.code, 2);
    let ran = keyhole(&["secret", "inspect", "--pretty", "db10"]);
    assert_eq!(
        ran.out,
        "ID:          aaaaaaaaaaaaaaaaaaaaaaaaa\nName:        db10\nVersion:     2\n\
         Created at:  2023-11-14T22:13:20.000000000Z\nUpdated at:  2023-11-14T22:14:20.000000000Z\n\
         Labels:\n - env=prod\nServices:\n - web\n"
    );
}

#[test]
fn create_prints_the_id_and_seals_for_its_request() {
    let fake = Fake::new();
    let file = file_with("hunter2");
    let path = file.path().to_str().unwrap();
    let ran = keyhole_at(&fake, &["secret", "create", "-l", "env=prod", "-l", "x", "db", path]);
    assert_eq!(ran.out, format!("{}\n", "a".repeat(25)));
    assert_eq!((ran.err.as_str(), ran.code), ("", 0));
    assert_eq!(fake.seen(), [r#"create db [("env", "prod"), ("x", "")] hunter2"#]);
}

#[test]
fn create_is_refused_before_the_manager_is_asked() {
    for (words, message, code) in [
        (
            &["secret", "create", "db"][..],
            "keyhole: secret file is required: give a file name, or - for standard input\n",
            2,
        ),
        (
            &["secret", "create", "a b", "/dev/null"],
            "keyhole: invalid secret name \"a b\": only 1 to 64 characters of [a-zA-Z0-9-_.] are allowed, and the \
             first and last must be [a-zA-Z0-9]\n",
            1,
        ),
        (
            &["secret", "create", "db", "/dev/null"],
            "keyhole: secret db: value from /dev/null: the value is empty; a secret has 1 to 512000 bytes\n",
            1,
        ),
    ] {
        let fake = Fake::new();
        let ran = keyhole_at(&fake, words);
        assert_eq!((ran.err.as_str(), ran.code), (message, code));
        assert_eq!((ran.out.as_str(), fake.seen().len()), ("", 0));
    }
}

#[test]
fn several_are_rotated_at_once_and_waited_for() {
    let mut fake = Fake::new();
    let progress = |delivered, waiting: &[&str]| DeliveryProgress {
        nodes: 3,
        delivered,
        waiting: waiting.iter().map(|w| (*w).to_owned()).collect(),
        unreachable: vec!["gamma".to_owned()],
    };
    fake.progress = vec![progress(1, &["beta"]), progress(2, &[])];
    let (one, two) = (file_with("first"), file_with("second"));
    let argument =
        |name: &str, file: &tempfile::NamedTempFile| format!("{name}={}", file.path().display());
    let words = ["secret", "rotate", "--wait", &argument("a", &one), &argument("b", &two)];
    let ran = keyhole_at(&fake, &words);
    assert_eq!(ran.out, "a: version 2\nb: version 2\n");
    assert_eq!(
        ran.err,
        "keyhole: warning: not delivered to gamma: no connection; they get it when they connect again\n"
    );
    assert_eq!(ran.code, 0);
    assert_eq!(fake.seen()[..2], ["rotate a first", "rotate b second"]);
    assert!(fake.seen()[2].starts_with("watch Some(RevisionRef { incarnation: 1, index: 60 }) 2"));
}

#[test]
fn a_watch_that_ends_early_is_a_failure() {
    let mut fake = Fake::new();
    fake.progress = vec![DeliveryProgress {
        nodes: 2,
        delivered: 1,
        waiting: vec!["beta".to_owned()],
        unreachable: vec![],
    }];
    let ran = keyhole_at(&fake, &["secret", "rollback", "db", "--to", "1", "--wait"]);
    assert_eq!(ran.out, "db: version 1\n");
    assert!(ran.err.contains("beta"), "{}", ran.err);
    assert_eq!(ran.code, 1);
    assert_eq!(fake.seen()[0], "rollback db 1");
}

#[test]
fn rm_goes_on_after_a_refusal_and_fails_in_the_end() {
    let fake = Fake::new();
    let ran = keyhole_at(&fake, &["secret", "rm", "a", "db10", "b"]);
    assert_eq!(ran.out, "a\nb\n");
    assert_eq!(
        ran.err,
        "keyhole: secret 'db10' is in use by the following service(s): web; remove it from them first\n"
    );
    assert_eq!(ran.code, 1);
    let ran = keyhole(&["--output", "json", "secret", "history", "none"]);
    assert_eq!(
        ran.err,
        "{\"code\":\"NOT_FOUND\",\"error\":\"secret none not found\",\"exit\":1,\"name\":\"none\"}\n"
    );
}

#[test]
fn history_and_status_tell_versions() {
    assert_eq!(
        keyhole(&["secret", "history", "db10"]).out,
        "VERSION   CREATED              SIZE      CURRENT   PINNED\n\
         2         About a minute ago   32B       yes       no\n\
         1         2 minutes ago        32B       no        yes\n"
    );
    assert_eq!(
        keyhole(&["secret", "status", "db10"]).out,
        "TASK           SERVICE   NODE      VERSION   ENTITLED   STATE\n\
         xxxxxxxxxxxx   web       alpha     3         3          current\n\
         yyyyyyyyyyyy   web       alpha     2         3          behind\n\
         zzzzzzzzzzzz   web       alpha     -         3          unreachable\n"
    );
}

#[test]
fn services_are_made_listed_and_changed() {
    let fake = Fake::new();
    let spec = "source=db,target=x/y,uid=1,gid=2,mode=440";
    let ran = keyhole_at(&fake, &["service", "create", "--name", "web", "--secret", spec]);
    assert_eq!(ran.out, format!("{}\n", "s".repeat(25)));
    assert_eq!(ran.err, "keyhole: warning: no constraint: any node may run it\n");
    assert!(fake.seen()[0].contains("target: \"x/y\", uid: 1, gid: 2, mode: 288, pinned: 0"));
    let update =
        ["service", "update", "--secret-rm", "db", "--constraint-add", "node.id == x", "web"];
    assert_eq!(keyhole_at(&fake, &update).out, "web\n");
    assert_eq!(fake.seen()[1], r#"update ["db"] ["node.id==x"]"#);
    assert_eq!(
        keyhole(&["service", "ls"]).out,
        "ID             NAME      TASKS     SECRETS   CONSTRAINTS\n\
         ssssssssssss   web       2         1         node.labels.zone==eu\n"
    );
    let ran = keyhole(&["service", "update", "web"]);
    assert_eq!(ran.code, 2);
    let ran = keyhole(&["service", "create", "web", "--secret", "source=db,mode=999"]);
    assert!(ran.err.starts_with("keyhole: mode \"999\" is not octal"), "{}", ran.err);
    assert_eq!(ran.code, 1);
}

#[test]
fn a_service_is_inspected_with_its_grants_and_a_warning() {
    let ran = keyhole(&["service", "inspect", "--format", "{{json .Spec.Secrets}}", "web"]);
    assert_eq!(
        ran.out,
        "[{\"File\":{\"Name\":\"db/password\",\"UID\":\"33\",\"GID\":\"33\",\"Mode\":256},\
         \"SecretID\":\"aaaaaaaaaaaaaaaaaaaaaaaaa\",\"SecretName\":\"db10\",\"PinnedVersion\":1,\"GrantID\":7}]\n"
    );
    assert!(ran.err.contains("any node may run it"), "{}", ran.err);
    let ran = keyhole(&["service", "inspect", "--pretty", "web"]);
    assert!(
        ran.out
            .ends_with("Secrets:\n - db10 as db/password (uid 33, gid 33, mode 0400, version 1)\n")
    );
}

#[test]
fn tasks_are_listed_live_first_with_the_reason_on_one_line() {
    assert_eq!(
        keyhole(&["service", "ps", "web"]).out,
        "ID             NAME               NODE      DESIRED STATE   CURRENT STATE                 ERROR\n\
         uuuuuuuuuuuu   web.uuuuuuuuuuuu   alpha     Running         Rejected 2 minutes ago        node alpha does \
         not meet node.labels.zone==eu\n\
         vvvvvvvvvvvv   web.vvvvvvvvvvvv   alpha     Running         Running 2 minutes ago\n\
         tttttttttttt   web.tttttttttttt   alpha     Shutdown        Complete about a minute ago\n"
    );
    let quiet = keyhole(&["node", "ps", "-q", "-f", "desired-state=running", "alpha"]);
    assert_eq!(quiet.out, format!("{}\n", "v".repeat(25)));
}

#[test]
fn nodes_are_listed_as_docker_does() {
    assert_eq!(
        keyhole(&["node", "ls"]).out,
        "ID                          HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION   REVISION\n\
         nnnnnnnnnnnnnnnnnnnnnnnnn   alpha      Ready     Active                          0.1.0            1.57\n\
         ooooooooooooooooooooooooo   beta       Down      Active                                           -\n"
    );
    assert_eq!(
        keyhole(&["node", "ls", "-f", "status=down", "--format", "{{.Hostname}}"]).out,
        "beta\n"
    );
    assert_eq!(
        keyhole(&[
            "node",
            "inspect",
            "--format",
            "{{.Status.State}} {{.Spec.Labels.zone}}",
            "alpha"
        ])
        .out,
        "ready eu\n"
    );
}

#[test]
fn managers_are_listed_with_what_is_wrong() {
    assert_eq!(
        keyhole(&["manager", "ls"]).out,
        "ID                          HOSTNAME    STATUS      ROLE      ADDRESS         BEHIND    TROUBLE\n\
         mmmmmmmmmmmmmmmmmmmmmmmmm   manager-1   Leader      Voter     10.0.0.1:7070   0\n\
         ppppppppppppppppppppppppp   manager-2   Reachable   Learner   10.0.0.2:7070   1700      it is catching up\n"
    );
    let learners = ["manager", "ls", "-q", "-f", "role=learner"];
    assert_eq!(keyhole(&learners).out, format!("{}\n", "p".repeat(25)));
    let ran = keyhole(&["manager", "promote", "manager-2"]);
    assert_eq!(ran.out, format!("{}\n", "p".repeat(25)));
    assert!(ran.err.contains("manager manager-2: it is catching up"), "{}", ran.err);
    assert_eq!(keyhole(&["manager", "rm", "a", "b"]).out, "a\nb\n");
    assert_eq!(keyhole(&["manager", "transfer-leader"]).out, format!("{}\n", "m".repeat(25)));
}

#[test]
fn a_rotation_of_the_keys_waits_until_all_is_sealed_anew() {
    assert_eq!(keyhole(&["cluster", "rotate-keys"]).out, "key epoch 2\n");
    // What the status says ends the wait.
    assert_eq!(keyhole(&["cluster", "rotate-keys", "--wait"]).out, "key epoch 2\n");
}

#[test]
fn join_tokens_come_alone_or_with_a_command() {
    assert_eq!(keyhole(&["cluster", "join-token", "-q", "worker"]).out, "KH-1-digest-secret\n");
    let out = keyhole(&["cluster", "join-token", "worker"]).out;
    assert!(out.contains("(umask 077; echo KH-1-digest-secret > /run/keyhole-token)"), "{out}");
    assert!(out.contains("--join 10.0.0.1:7070 --token-file /run/keyhole-token"), "{out}");
}

#[test]
fn the_cluster_tells_how_it_is() {
    let out = keyhole(&["cluster", "status"]).out;
    for line in [
        "Secrets:         2 (96B of 1.074GB)\n",
        "Nodes:           2 (1 connected)\n",
        "This manager's:  expires in 24 hours\n",
        "Certificates:    live 1day\n",
        "Managers:\n - mmmmmmmmmmmmmmmmmmmmmmmmm manager-1 at 10.0.0.1:7070 (member 1, voter, leader, 0 behind, audit noted to line 44 2 minutes ago, store keys of 2 minutes ago)\n",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let out =
        keyhole(&["cluster", "status", "--format", "{{.Raft.Applied}} {{len .Managers}}"]).out;
    assert_eq!(out, "60 2\n");
}

#[test]
fn what_a_manager_does_not_know_is_a_matter_of_versions() {
    let ran = keyhole(&["service", "rollback", "future"]);
    assert!(ran.err.contains("another version of keyhole"), "{}", ran.err);
    assert_eq!(ran.code, 1);
}
