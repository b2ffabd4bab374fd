//! What the rest of the verbs print, to the byte: every table as JSON too, every `inspect` in its three forms.

use super::{Fake, keyhole, keyhole_at};

fn out(words: &[&str]) -> String {
    let ran = keyhole(words);
    assert_eq!(ran.code, 0, "{words:?}: {}", ran.err);
    ran.out
}

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaa";
const N: &str = "nnnnnnnnnnnnnnnnnnnnnnnnn";
const S: &str = "sssssssssssssssssssssssss";

#[test]
fn every_list_is_a_line_of_json_for_each_row() {
    assert_eq!(
        out(&["secret", "ls", "--format", "json", "-f", "name=db10"]),
        format!(
            "{{\"ID\":\"{A}\",\"Name\":\"db10\",\"Version\":\"3\",\"CreatedAt\":\"2 minutes ago\",\"UpdatedAt\":\"Less \
             than a second ago\",\"Services\":\"web\",\"Labels\":\"env=prod\"}}\n"
        )
    );
    assert_eq!(
        out(&["secret", "history", "--format", "json", "-f", "current=no", "db10"]),
        "{\"ID\":\"1\",\"Version\":\"1\",\"CreatedAt\":\"2 minutes ago\",\"Size\":\"32B\",\"Current\":\"no\",\
         \"Pinned\":\"yes\"}\n"
    );
    assert_eq!(
        out(&["secret", "status", "--format", "json", "-f", "state=behind", "db10"]),
        format!(
            "{{\"ID\":\"yyyyyyyyyyyy\",\"Service\":\"web\",\"Node\":\"alpha\",\"NodeID\":\"{N}\",\"Version\":\"2\",\
             \"Entitled\":\"3\",\"State\":\"behind\"}}\n"
        )
    );
    assert_eq!(
        out(&["service", "ls", "--format", "json"]),
        format!(
            "{{\"ID\":\"{S}\",\"Name\":\"web\",\"Tasks\":\"2\",\"Secrets\":\"1\",\"Constraints\":\
             \"node.labels.zone==eu\",\"CreatedAt\":\"2 minutes ago\",\"UpdatedAt\":\"2 minutes ago\",\"Labels\":\
             \"tier=front\"}}\n"
        )
    );
    let tasks = "{\"ID\":\"vvvvvvvvvvvv\",\"Name\":\"web.vvvvvvvvvvvv\",\"Service\":\"web\",\"Node\":\"alpha\",\
                 \"DesiredState\":\"Running\",\"CurrentState\":\"Running 2 minutes ago\",\"Error\":\"\",\"Cgroup\":\
                 \"/sys/fs/cgroup/keyhole/x\"}\n";
    assert_eq!(out(&["node", "ps", "--format", "json", "alpha"]), tasks);
    assert_eq!(out(&["service", "ps", "--format", "json", "-f", "state=running", "web"]), tasks);
    assert_eq!(
        out(&["node", "ls", "--format", "json", "-f", "name=alpha"]),
        format!(
            "{{\"ID\":\"{N}\",\"Hostname\":\"alpha\",\"Status\":\"Ready\",\"Availability\":\"Active\",\"ManagerStatus\":\"\",\
             \"EngineVersion\":\"0.1.0\",\"Revision\":\
             \"1.57\",\"Tasks\":\"1\",\"Address\":\"10.0.0.7:51000\",\"JoinedAt\":\"2 minutes ago\",\"Labels\":\
             \"zone=eu\"}}\n"
        )
    );
    assert_eq!(
        out(&["task", "ls", "--format", "json", "-f", "service=web10"]),
        "{\"ID\":\"vvvvvvvvvvvv\",\"Service\":\"web10\",\"State\":\"Running\",\"Since\":\"2 minutes ago\",\"Files\":\
         \"db/password,key\",\"Cgroup\":\"/sys/fs/cgroup/keyhole/x\",\"Error\":\"\",\"Mount\":\"/run/secrets\"}\n"
    );
}

#[test]
fn lists_know_dockers_formats_and_filters() {
    for (words, text) in [
        (
            &["secret", "ls", "--format", "{{upper .Name}} {{.Label \"env\" | lower}}"][..],
            "DB2 prod\nDB10 prod\n",
        ),
        (
            &["secret", "ls", "--format", "table {{.Name}}\\t{{.Version}}"],
            "NAME      VERSION\ndb2       1\ndb10      3\n",
        ),
        (&["secret", "ls", "--format", "{{json .Name}}"], "\"db2\"\n\"db10\"\n"),
        (&["secret", "ls", "--format", "{{join (split .Name \"b\") \"-\"}}"], "d-2\nd-10\n"),
        (
            &["secret", "ls", "-f", "names=db2", "-f", "id=aaa", "--format", "{{.Name}}"],
            "db2\ndb10\n",
        ),
        (
            &["secret", "ls", "-f", "id=bbb", "-f", "label=env=prod", "--format", "{{.Name}}"],
            "db2\n",
        ),
        (&["secret", "list", "-f", "name=db", "-f", "label=env=dev", "--format", "{{.Name}}"], ""),
        (&["service", "ls", "-f", "label=tier", "--format", "{{.Name}}"], "web\n"),
        (
            &[
                "node",
                "ls",
                "-f",
                "label=zone=eu",
                "-f",
                "availability=active",
                "--format",
                "{{.Hostname}}",
            ],
            "alpha\nbeta\n",
        ),
        (
            &[
                "service",
                "ps",
                "-f",
                "node=alpha",
                "-f",
                "desired-state=shutdown",
                "--format",
                "{{.ID}}",
                "web",
            ],
            "tttttttttttt\n",
        ),
    ] {
        assert_eq!(out(words), text, "{words:?}");
    }
    assert_eq!(out(&["service", "ls", "-q"]), format!("{S}\n"));
    assert_eq!(out(&["node", "ls", "-q", "-f", "status=ready"]), format!("{N}\n"));
    assert_eq!(out(&["secret", "history", "-q", "db10"]), "2\n1\n");
    assert_eq!(
        out(&["secret", "status", "-q", "-f", "state=current", "db10"]),
        format!("{}\n", "x".repeat(25))
    );
    assert_eq!(out(&["task", "ls", "-q"]), format!("{}\n{}\n", "t".repeat(25), "v".repeat(25)));
}

#[test]
fn services_are_inspected_in_three_forms() {
    assert_eq!(
        out(&["service", "inspect", "web"]),
        r#"[
    {
        "ID": "sssssssssssssssssssssssss",
        "Version": {
            "Index": 14
        },
        "CreatedAt": "2023-11-14T22:13:20.000000000Z",
        "UpdatedAt": "2023-11-14T22:13:20.000000000Z",
        "Spec": {
            "Name": "web",
            "Labels": {
                "tier": "front"
            },
            "Secrets": [
                {
                    "File": {
                        "Name": "db/password",
                        "UID": "33",
                        "GID": "33",
                        "Mode": 256
                    },
                    "SecretID": "aaaaaaaaaaaaaaaaaaaaaaaaa",
                    "SecretName": "db10",
                    "PinnedVersion": 1,
                    "GrantID": 7
                }
            ],
            "Constraints": []
        },
        "PreviousSpec": null,
        "RunningTasks": 2
    }
]
"#
    );
    assert_eq!(
        out(&["service", "inspect", "--pretty", "web"]),
        "ID:          sssssssssssssssssssssssss\nName:        web\nTasks:       2\n\
         Created at:  2023-11-14T22:13:20.000000000Z\nUpdated at:  2023-11-14T22:13:20.000000000Z\n\
         Labels:\n - tier=front\nSecrets:\n - db10 as db/password (uid 33, gid 33, mode 0400, version 1)\n"
    );
    assert_eq!(
        out(&[
            "service",
            "inspect",
            "-f",
            "{{range .Spec.Secrets}}{{.SecretName}}:{{.File.UID}}{{end}}",
            "web"
        ]),
        "db10:33\n"
    );
}

#[test]
fn nodes_are_inspected_in_three_forms() {
    assert_eq!(
        out(&["node", "inspect", "alpha"]),
        r#"[
    {
        "ID": "nnnnnnnnnnnnnnnnnnnnnnnnn",
        "Version": {
            "Index": 3
        },
        "CreatedAt": "2023-11-14T22:13:20.000000000Z",
        "Spec": {
            "Labels": {
                "zone": "eu"
            },
            "Availability": "active"
        },
        "Description": {
            "Hostname": "alpha",
            "Engine": {
                "EngineVersion": "0.1.0"
            }
        },
        "Status": {
            "State": "ready",
            "Addr": "10.0.0.7:51000"
        },
        "Revision": "1.57",
        "Tasks": 1
    }
]
"#
    );
    assert_eq!(
        out(&["node", "inspect", "--pretty", "alpha"]),
        "ID:            nnnnnnnnnnnnnnnnnnnnnnnnn\nHostname:      alpha\n\
         Joined at:     2023-11-14T22:13:20.000000000Z\nStatus:        Ready\nAvailability:  Active\n\
         Address:       10.0.0.7:51000\nVersion:       0.1.0\nRevision:      1.57\nTasks:         1\nLabels:\n - zone=eu\n"
    );
    assert_eq!(
        out(&["node", "inspect", "-f", "{{json .Spec}}", "alpha"]),
        "{\"Labels\":{\"zone\":\"eu\"},\"Availability\":\"active\"}\n"
    );
}

#[test]
fn the_cluster_and_this_node_tell_how_they_are() {
    assert_eq!(
        out(&["cluster", "status", "-f", "json"]),
        format!(
            "{{\"ID\":\"{}\",\"Health\":\"ok\",\"Incarnation\":1,\"CreatedAt\":\"2023-11-14T22:13:20.000000000Z\",\
             \"Managers\":[{{\"ID\":1,\"NodeID\":\"mmmmmmmmmmmmmmmmmmmmmmmmm\",\"Hostname\":\"manager-1\",\"Addr\":\
             \"10.0.0.1:7070\",\"Leader\":true,\"Voter\":true,\"Reachable\":true,\"Behind\":0,\"Trouble\":\"\",\
             \"AuditLine\":44,\"AuditNotedAt\":\"2023-11-14T22:13:20.000000000Z\",\"StoreKeys\":3,\"StoreLocked\":true,\
             \"StoreWrittenAt\":\"2023-11-14T22:13:20.000000000Z\",\"StoreBehind\":false,\"StoreWork\":\"\"}},{{\
             \"ID\":2,\"NodeID\":\"ppppppppppppppppppppppppp\",\"Hostname\":\"manager-2\",\"Addr\":\"10.0.0.2:7070\",\
             \"Leader\":false,\"Voter\":false,\"Reachable\":true,\"Behind\":1700,\"Trouble\":\"it is catching up\",\
             \"AuditLine\":0,\"AuditNotedAt\":\"\",\"StoreKeys\":2,\"StoreLocked\":true,\"StoreWrittenAt\":\"\",\
             \"StoreBehind\":true,\"StoreWork\":\"\"}}],\
             \"Raft\":{{\"Term\":\
             1,\"LastLog\":61,\"Applied\":60,\"Snapshot\":50}},\"Unconstrained\":\"allow\",\"QuotaBytes\":1073741824,\
             \"ValueBytes\":96,\"CertificateSeconds\":86400,\"CASince\":\"2023-11-14T22:13:20.000000000Z\",\"CAExpiresAt\":\"2043-11-09T22:13:20.000000000Z\",\
             \"CertificateExpiresAt\":\"2023-11-15T22:13:20.000000000Z\",\"KeyEpoch\":1,\"KeysSince\":\"2023-11-14T22:13:20.000000000Z\",\"UnderOldKeys\":0,\"LastBackupAt\":\
             \"2023-11-14T22:13:20.000000000Z\",\"BackupOfFormerCA\":true,\"CANumber\":1,\"FormerCAUntil\":\"\",\"FormerCertificates\":0,\"Autolock\":true,\"UnlockKeyUnseen\":false,\"Locked\":false,\
             \"StoreKeys\":3,\"Shredding\":\"waits for manager-2 at 10.0.0.2:7070\",\"Secrets\":2,\"Services\":1,\
             \"Nodes\":2,\"NodesConnected\":1,\"Refused\":3}}\n",
            "c".repeat(25)
        )
    );
    let key = "KHKEY-1-key\n";
    assert_eq!(out(&["cluster", "unlock-key", "-q"]), key);
    let told = out(&["cluster", "unlock-key", "--rotate"]);
    assert!(told.contains("was replaced") && told.contains("    KHKEY-1-key\n"), "{told}");
    let told = out(&["cluster", "update", "--autolock=true"]);
    assert!(told.starts_with("ccccc") && told.contains("    KHKEY-1-key\n"), "{told}");
    assert_eq!(out(&["cluster", "update", "--autolock", "false"]).lines().count(), 1);
    assert_eq!(out(&["cluster", "rotate-store-keys", "--wait"]), "store keys 2\n");
    assert!(out(&["cluster", "shred"]).starts_with("shredding; "));
    assert_eq!(
        out(&["cluster", "status"]),
        "ID:              ccccccccccccccccccccccccc\n\
         Health:          ok\n\
         Created at:      2023-11-14T22:13:20.000000000Z\n\
         Revision:        1.60\n\
         Raft:            term 1, last log 61, snapshot at 50\n\
         Secrets:         2 (96B of 1.074GB)\n\
         Services:        1\n\
         Nodes:           2 (1 connected)\n\
         Unconstrained:   allow\n\
         Key epoch:       1, made 2 minutes ago\n\
         Autolock:        on\n\
         Certificates:    live 1day\n\
         This manager's:  expires in 24 hours\n\
         CA:              made 2 minutes ago, expires in 19 years\n\
         Last backup:     2023-11-14T22:13:20.000000000Z, before the root CA changed: nodes would not follow it; make \
         another\n\
         Refused:         3 requests since this manager started\n\
         Shredding:       waits for manager-2 at 10.0.0.2:7070\n\
         Managers:\n - mmmmmmmmmmmmmmmmmmmmmmmmm manager-1 at 10.0.0.1:7070 (member 1, voter, leader, 0 behind, \
         audit noted to line 44 2 minutes ago, store keys of 2 minutes ago)\n \
         - ppppppppppppppppppppppppp manager-2 at 10.0.0.2:7070 (member 2, learner, reachable, 1700 behind); it is \
         catching up; its store is not under the new keys yet\n"
    );
    assert_eq!(
        out(&["node", "status"]),
        "ID:             nnnnnnnnnnnnnnnnnnnnnnnnn\n\
         Cluster:        ccccccccccccccccccccccccc\n\
         Manager:        none; tasks keep what they have (10.0.0.1:7070: Connection refused)\n\
         Revision:       1.57\n\
         Mount:          /run/secrets\n\
         Tasks:          2\n\
         Worker starts:  1\n\
         Certificate:    expires in 58 minutes\n"
    );
    assert_eq!(
        out(&["node", "status", "-f", "json"]),
        format!(
            "{{\"ID\":\"{N}\",\"Cluster\":\"{}\",\"Manager\":\"\",\"Trouble\":\"10.0.0.1:7070: Connection refused\",\
             \"Revision\":\"1.57\",\"Mount\":\"/run/secrets\",\"Tasks\":2,\"WorkerStarts\":1,\"CertificateExpiresAt\":\
             \"2023-11-14T23:13:20.000000000Z\"}}\n",
            "c".repeat(25)
        )
    );
}

#[test]
fn tasks_of_this_machine() {
    assert_eq!(
        out(&["task", "ls"]),
        "ID             SERVICE   STATE      SINCE           FILES             CGROUP                     ERROR\n\
         tttttttttttt   web2      Rejected   2 minutes ago   db/password,key   /sys/fs/cgroup/keyhole/x   node alpha \
         does not meet node.labels.zone==eu\n\
         vvvvvvvvvvvv   web10     Running    2 minutes ago   db/password,key   /sys/fs/cgroup/keyhole/x\n"
    );
    assert_eq!(
        out(&["task", "add", "--service", "web", "--pid", "7"]),
        format!("{}\n", "t".repeat(25))
    );
    let late = keyhole(&["task", "add", "--service", "late", "--cgroup", "/x"]);
    assert_eq!(late.out, format!("{}\n", "u".repeat(25)));
    assert_eq!(late.err, "keyhole: warning: the task is Pending: no manager is in reach\n");
    let ran = keyhole(&["task", "rm", "tt", "none", "t"]);
    assert_eq!((ran.out.as_str(), ran.code), ("tt\nt\n", 1));
    assert_eq!(ran.err, "keyhole: task none not found\n");
    let ran = keyhole(&["--output", "json", "task", "rm", "none"]);
    assert_eq!(
        ran.err,
        "{\"code\":\"NOT_FOUND\",\"error\":\"task none not found\",\"exit\":1,\"name\":\"none\"}\n"
    );
}

#[test]
fn changes_print_the_name() {
    let fake = Fake::new();
    let ran = |words: &[&str]| {
        let ran = keyhole_at(&fake, words);
        (ran.out, ran.err, ran.code)
    };
    let done = |name: &str| (format!("{name}\n"), String::new(), 0);
    let words = ["secret", "update", "--label-add", "env=test", "--label-rm", "old", "db"];
    assert_eq!(ran(&words), done("db"));
    assert_eq!(ran(&["service", "rollback", "web"]), done("web"));
    assert_eq!(ran(&["service", "rm", "web", "api"]), done("web\napi"));
    let words = ["node", "update", "--label-add", "zone=eu", "--availability", "drain", "alpha"];
    assert_eq!(ran(&words), done("alpha"));
    assert_eq!(ran(&["node", "rm", "--force", "alpha"]), done("alpha"));
    let refused = ran(&["node", "rm", "alpha"]);
    assert_eq!(refused, (String::new(), "keyhole: node alpha is connected\n".into(), 1));
    let words = ["cluster", "update", "--quota", "2GiB", "--cert-expiry", "12h"];
    assert_eq!(ran(&words), done(&"c".repeat(25)));
    let drain = keyhole_proto::v1::Availability::Drain as i32;
    assert_eq!(
        fake.seen(),
        [
            "label db {\"env\": \"test\"} [\"old\"]".to_owned(),
            "rm web".to_owned(),
            "rm api".to_owned(),
            format!("alpha {{\"zone\": \"eu\"}} {drain}"),
            "rm alpha".to_owned(),
            "Some(2147483648) Some(43200)".to_owned(),
        ]
    );
}

/// Its parts one after the other, in a private file that is there only when all came.
#[test]
fn a_backup_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("b.age");
    let place = file.to_str().unwrap();
    let fake = Fake::new();
    let ran = keyhole_at(&fake, &["cluster", "backup", "--recipient", "age1broken", place]);
    assert!(ran.err.contains("cannot make the backup"), "{}", ran.err);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let ran = keyhole_at(&fake, &["cluster", "backup", "-r", "age1a", "-r", "age1b", place]);
    assert_eq!(ran.out, format!("{place}: cluster {} at revision 1.60\n", "c".repeat(25)));
    assert_eq!(std::fs::read(&file).unwrap(), b"one two");
    let ran = keyhole_at(&fake, &["cluster", "backup", "-r", "age1a", place]);
    assert!(ran.err.contains("--overwrite"), "{}", ran.err);
}

const P: &str = "ppppppppppppppppppppppppp";
const O: &str = "ooooooooooooooooooooooooo";

#[test]
fn operators_are_listed_shown_and_removed() {
    assert_eq!(
        out(&["operator", "ls"]),
        format!(
            "ID                          NAME      ROLE      SECRETS    SERVICES   EXPIRES\n\
             {O}   root2     writer    web-*,db   web        in 24 hours\n\
             {P}   root10    admin     *          *          in 24 hours\n"
        )
    );
    assert_eq!(out(&["operator", "ls", "-q", "-f", "role=admin"]), format!("{P}\n"));
    assert_eq!(
        out(&["operator", "inspect", "--format", "json", "ann"]),
        format!(
            "{{\"ID\":\"{O}\",\"Name\":\"ann\",\"Role\":\"writer\",\"Secrets\":[\"web-*\",\"db\"],\"Services\":[\"web\"],\
             \"CreatedAt\":\"2023-11-14T22:13:20.000000000Z\",\"ExpiresAt\":\"2023-11-15T22:13:20.000000000Z\",\
             \"CertificateSeconds\":86400}}\n"
        )
    );
    assert_eq!(
        out(&["operator", "inspect", "--pretty", "ann"]),
        format!(
            "ID:            {O}\nName:          ann\nRole:          writer\nSecrets:       web-*,db\n\
             Services:      web\nCreated at:    2023-11-14T22:13:20.000000000Z\nCertificates:  live 1day\n\
             Newest:        expires in 24 hours\n"
        )
    );
    let fake = Fake::new();
    let ran = keyhole_at(&fake, &["operator", "rm", "ann", "bob"]);
    assert_eq!((ran.out.as_str(), ran.code), ("ann\nbob\n", 0));
    assert_eq!(fake.seen(), ["remove operator ann", "remove operator bob"]);
    assert!(keyhole(&["operator", "renew"]).err.contains("only a context"));
}

#[test]
fn a_new_operators_file_is_written_once_and_not_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ann.toml");
    let file = path.to_str().unwrap();
    let fake = Fake::new();
    let create = |name| {
        let words = ["operator", "create", name, "--role", "writer", "--secrets", "web-*", "--out"];
        keyhole_at(&fake, &[&words[..], &[file]].concat())
    };
    let refused = create("taken");
    assert_eq!(refused.code, 1);
    assert!(!path.exists(), "{}", refused.err);
    assert_eq!(create("ann").out, format!("{O}\n"));
    assert_eq!(fake.seen(), ["create operator ann Writer [\"web-*\"] [] for 7776000 s"]);
    let again = create("bob");
    assert!(again.err.contains("not overwritten"), "{}", again.err);
    assert_eq!(fake.seen().len(), 1, "nobody was asked");
}
