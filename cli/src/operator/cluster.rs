//! `keyhole cluster`: how it is, who may join, and its settings.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keyhole_proto::v1;

use super::backup::{Backup, Restore};
use super::lock::{self, RotateStoreKeys, Shred, Unlock, UnlockKey};
use super::own_ca::OwnCa;
use super::{Manager, manager, operators};
use crate::args::Global;
use crate::console::Console;
use crate::context::kept::Contexts;
use crate::failure::Failure;
use crate::render::datum::Datum;
use crate::render::inspect::{InspectOptions, Inspection, pretty_lines, pretty_list};
use crate::render::{size, time};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show how the cluster is
    #[command(after_help = "Examples:\n  \
        keyhole cluster status\n  \
        keyhole cluster status --format '{{.Secrets}} {{.ValueBytes}}'")]
    Status(Status),
    /// Print what a new machine needs to join
    #[command(after_help = "Examples:\n  \
        keyhole cluster join-token worker                 (a command for the new machine)\n  \
        (umask 077; keyhole cluster join-token -q worker > token)  (the token alone)\n  \
        keyhole cluster join-token --rotate worker        (a new token; the old one ends)")]
    JoinToken(JoinToken),
    /// Make a new key for values, and seal all of them anew under it
    #[command(after_help = "Examples:\n  \
        keyhole cluster rotate-keys\n  \
        keyhole cluster rotate-keys --wait     (until every value is under it and the old key is gone)\n\n\
        The join tokens change with it. It is done by itself when a manager is removed or demoted.")]
    RotateKeys(RotateKeys),
    /// Print the root CA's certificate, or replace the CA
    #[command(after_help = "Examples:\n  \
        keyhole cluster ca                     (the certificate)\n  \
        keyhole cluster ca --rotate --wait     (until all managers, nodes and operators have new ones)\n  \
        keyhole cluster ca --rotate --ca-cert ca.pem --ca-key ca.key     (a root CA of your own)\n\n\
        Tasks notice nothing. Join tokens change with it, for they name the CA. It is done by itself when a manager is\n\
        removed or demoted.")]
    Ca(Ca),
    /// Have every manager write its store anew under new keys, while it serves
    #[command(after_help = "Examples:\n  \
        keyhole cluster rotate-store-keys --wait\n\n\
        With autolock the unlock key is replaced, too. A manager that is away does it when it is back.")]
    RotateStoreKeys(RotateStoreKeys),
    /// Make what was deleted unreadable on every manager's disk, also in older copies of it
    #[command(after_help = "Examples:\n  \
        keyhole secret rm db_password && keyhole cluster shred --wait\n\n\
        Rotates the value keys and the keys of every manager's store, and drops older logs. Backups and copies of a disk \
        whose key file was copied, too, are not reached.")]
    Shred(Shred),
    /// Unlock a manager after its start, with autolock; at its socket, the key from a prompt or standard input
    #[command(after_help = "Examples:\n  \
        keyhole cluster unlock                 (asks for the key and does not show it)\n  \
        pass show keyhole | keyhole cluster unlock")]
    Unlock(Unlock),
    /// Print the key that unlocks managers, with autolock
    #[command(after_help = "Examples:\n  \
        keyhole cluster unlock-key\n  \
        keyhole cluster unlock-key -q | pass insert -e keyhole\n  \
        keyhole cluster unlock-key --rotate    (a new key; every manager's store is written anew under it)")]
    UnlockKey(UnlockKey),
    /// Change settings of the cluster
    #[command(after_help = "Examples:\n  \
        keyhole cluster update --unconstrained deny\n  \
        keyhole cluster update --quota 2GiB --cert-expiry 12h\n  \
        keyhole cluster update --autolock=true      (a manager that is started has to be unlocked)\n  \
        keyhole cluster update --forget-former-ca         (after a restore or a new CA)")]
    Update(Update),
    /// Write all that the cluster has to one encrypted file, while it runs
    #[command(after_help = "Examples:\n  \
        keyhole cluster backup --passphrase-file ./phrase /backup/keyhole.age\n  \
        keyhole cluster backup --recipient age1... - | ssh store 'cat > keyhole.age'\n\n\
        Without either option a passphrase is asked for at the terminal. The file is an age file: 'age -d' opens it\n\
        too. Whoever opens it has every secret.")]
    Backup(Backup),
    /// Make a new cluster of one manager from a backup, on this machine
    #[command(after_help = "Examples:\n  \
        keyhole cluster restore --from /backup/keyhole.age --data-dir /var/lib/keyhole/manager\n  \
        keyhole cluster restore --from keyhole.age --data-dir ./m --identity-file ./key.txt --kek-file /etc/keyhole/kek\n\n\
        Start it then with 'keyhole manager run --data-dir DIR', at the address of a manager before it: nodes follow by\n\
        themselves. Join tokens, the CA and the keys are new.")]
    Restore(Restore),
}

/// `status`
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Format with fields: 'json' or any text with {{.ID}}
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Who may join with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// A node
    Worker,
    /// A manager
    Manager,
}

/// `join-token`
#[derive(Debug, Args)]
pub(crate) struct JoinToken {
    /// Print the token only
    #[arg(short, long)]
    quiet: bool,
    /// Make a new token; the old one ends
    #[arg(long)]
    rotate: bool,
    /// What the new machine is to be
    role: Role,
}

/// `rotate-keys`
#[derive(Debug, Args)]
pub(crate) struct RotateKeys {
    /// Wait until every value is sealed under the new key
    #[arg(long)]
    wait: bool,
}

/// `ca`
#[derive(Debug, Args)]
pub(crate) struct Ca {
    /// Make a new root CA; the one before is believed until all have a certificate of the new one
    #[arg(long)]
    rotate: bool,
    /// Wait until the CA before is believed no longer
    #[arg(long, requires = "rotate")]
    wait: bool,
    /// A root CA of your own instead of a new one: its certificate, PEM
    #[arg(long, value_name = "FILE", requires = "rotate", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// The key of --ca-cert: PEM (PKCS #8), a 0600 file, or - for standard input
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
}

/// Whether services without a constraint get nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unconstrained {
    /// Any node may run them
    Allow,
    /// No node may run them
    Deny,
}

/// `update`
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Whether any node may run a service that has no constraint
    #[arg(long, value_enum)]
    unconstrained: Option<Unconstrained>,
    /// How large all values together may be: 1073741824, 512MiB, 1GiB
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    quota: Option<u64>,
    /// How long certificates live: 24h, 30m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    cert_expiry: Option<Duration>,
    /// Believe certificates of root CAs before the current one no longer
    #[arg(long)]
    forget_former_ca: bool,
    /// Whether a manager that is started has to be unlocked
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    autolock: Option<bool>,
}

impl ClusterCommand {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        match self {
            Self::Status(status) => status.run(global, console).await,
            Self::JoinToken(token) => token.run(global, console).await,
            Self::RotateKeys(rotate) => rotate.run(global, console).await,
            Self::Ca(ca) => ca.run(global, console).await,
            Self::RotateStoreKeys(rotate) => rotate.run(global, console).await,
            Self::Shred(shred) => shred.run(global, console).await,
            Self::Unlock(unlock) => unlock.run(global, console).await,
            Self::UnlockKey(key) => key.run(global, console).await,
            Self::Update(update) => update.run(global, console).await,
            Self::Backup(backup) => backup.run(global, console).await,
            Self::Restore(restore) => restore.run(console).await,
        }
    }
}

impl Status {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let inspection = Inspection::new(&InspectOptions {
            pretty: self.format.is_none(),
            format: self.format,
        })?;
        let mut manager = Manager::connect(global).await?;
        let cluster = manager.api.cluster_status(v1::ClusterStatusRequest {}).await?.into_inner();
        let now = console.now();
        console.print(&inspection.show(&[cluster], datum, |cluster| pretty(cluster, now))?)
    }
}

fn unconstrained(cluster: &v1::ClusterInfo) -> &'static str {
    match cluster.unconstrained() {
        v1::Unconstrained::Deny => "deny",
        v1::Unconstrained::Allow => "allow",
        v1::Unconstrained::Unspecified => "unknown",
    }
}

/// The last line of a manager's audit that the cluster was told of: its number, and when.
fn audited(cluster: &v1::ClusterInfo, manager: &v1::ManagerInfo) -> Option<(u64, u64)> {
    let audit = cluster.audits.iter().find(|audit| audit.member == manager.member)?;
    audit.heads.last().map(|head| (head.seq, head.at))
}

fn datum(cluster: &v1::ClusterInfo) -> Datum {
    let members = cluster.managers.iter().map(|manager| {
        let (line, at) = audited(cluster, manager)
            .map_or((0, String::new()), |(line, at)| (line, time::rfc3339(at)));
        Datum::Record(vec![
            ("ID", manager.member.into()),
            ("NodeID", (&manager.id).into()),
            ("Hostname", (&manager.hostname).into()),
            ("Addr", (&manager.address).into()),
            ("Leader", manager.leader.into()),
            ("Voter", manager.voter.into()),
            ("Reachable", manager.reached.into()),
            ("Behind", manager.behind.into()),
            ("Trouble", (&manager.trouble).into()),
            ("AuditLine", line.into()),
            ("AuditNotedAt", at.into()),
            ("StoreKeys", manager.store_number.into()),
            ("StoreLocked", manager.store_locked.into()),
            ("StoreWrittenAt", store_written_at(manager).into()),
            ("StoreBehind", manager.store_behind.into()),
            ("StoreWork", (&manager.store_work).into()),
        ])
    });
    let raft = vec![
        ("Term", cluster.term.into()),
        ("LastLog", cluster.last_log.into()),
        ("Applied", cluster.applied.into()),
        ("Snapshot", cluster.snapshot.into()),
    ];
    Datum::Record(vec![
        ("ID", (&cluster.id).into()),
        ("Health", (&cluster.health).into()),
        ("Incarnation", cluster.incarnation.into()),
        ("CreatedAt", time::rfc3339(cluster.created_at).into()),
        ("Managers", Datum::List(members.collect())),
        ("Raft", Datum::Record(raft)),
        ("Unconstrained", unconstrained(cluster).into()),
        ("QuotaBytes", cluster.quota_bytes.into()),
        ("ValueBytes", cluster.value_bytes.into()),
        ("CertificateSeconds", cluster.certificate_seconds.into()),
        ("CASince", moment(cluster.ca_since).into()),
        ("CAExpiresAt", time::rfc3339(cluster.ca_expires_at).into()),
        ("CertificateExpiresAt", time::rfc3339(cluster.certificate_expires_at).into()),
        ("KeyEpoch", cluster.epoch.into()),
        ("KeysSince", moment(cluster.keys_since).into()),
        ("UnderOldKeys", cluster.under_old_keys.into()),
        ("LastBackupAt", moment(cluster.last_backup_at).into()),
        ("BackupOfFormerCA", cluster.backup_of_former_ca.into()),
        ("CANumber", cluster.ca_number.into()),
        ("FormerCAUntil", moment(cluster.former_cas_until).into()),
        ("FormerCertificates", cluster.former_certificates.into()),
        ("Autolock", cluster.autolock.into()),
        ("UnlockKeyUnseen", cluster.unlock_key_unseen.into()),
        ("Locked", cluster.locked.into()),
        ("StoreKeys", cluster.store_number.into()),
        ("Shredding", shredding(cluster).into()),
        ("Secrets", cluster.secrets.into()),
        ("Services", cluster.services.into()),
        ("Nodes", cluster.nodes.into()),
        ("NodesConnected", cluster.connected.into()),
        ("Refused", cluster.refused.into()),
    ])
}

/// Empty for 0, which is never.
fn moment(at: u64) -> String {
    if at == 0 { String::new() } else { time::rfc3339(at) }
}

/// When a manager's store was written under new keys; empty: it is as it was made.
fn store_written_at(manager: &v1::ManagerInfo) -> String {
    moment(manager.store_written_at)
}

/// How far the last shredding is, in words; empty if nobody asked for one.
fn shredding(cluster: &v1::ClusterInfo) -> String {
    match (&cluster.shred, lock::shred_left(cluster)) {
        (None, _) => String::new(),
        (Some(_), Some(left)) => left,
        (Some(shred), None) => {
            format!("done with what was deleted before {}", time::rfc3339(shred.at))
        }
    }
}

/// A locked manager knows of itself only.
fn pretty_locked(cluster: &v1::ClusterInfo) -> String {
    pretty_lines(&[("ID", cluster.id.clone()), ("Health", cluster.health.clone())])
}

fn pretty(cluster: &v1::ClusterInfo, now: u64) -> String {
    if cluster.locked {
        return pretty_locked(cluster);
    }
    let backup = match cluster.last_backup_at {
        0 => "never".to_owned(),
        at if cluster.backup_of_former_ca => {
            format!(
                "{}, before the root CA changed: nodes would not follow it; make another",
                time::rfc3339(at)
            )
        }
        at => time::rfc3339(at),
    };
    let former = match cluster.former_cas_until {
        0 => String::new(),
        until => format!(
            "; the one before is believed until {} for {} managers, nodes and operators without a new certificate",
            time::rfc3339(until),
            cluster.former_certificates
        ),
    };
    let ca = made(cluster.ca_since, now).map_or(String::new(), |made| format!("{made}, "));
    let used = size::human(cluster.value_bytes);
    let lifetime = Duration::from_secs(cluster.certificate_seconds);
    let mut lines = vec![
        ("ID", cluster.id.clone()),
        ("Health", cluster.health.clone()),
        ("Created at", time::rfc3339(cluster.created_at)),
        ("Revision", format!("{}.{}", cluster.incarnation, cluster.applied)),
        (
            "Raft",
            format!(
                "term {}, last log {}, snapshot at {}",
                cluster.term, cluster.last_log, cluster.snapshot
            ),
        ),
        (
            "Secrets",
            format!("{} ({used} of {})", cluster.secrets, size::human(cluster.quota_bytes)),
        ),
        ("Services", cluster.services.to_string()),
        ("Nodes", format!("{} ({} connected)", cluster.nodes, cluster.connected)),
        ("Unconstrained", unconstrained(cluster).to_owned()),
        ("Key epoch", epoch(cluster, now)),
        ("Autolock", autolock(cluster).to_owned()),
        ("Certificates", format!("live {}", humantime::format_duration(lifetime))),
        ("This manager's", format!("expires {}", time::until(cluster.certificate_expires_at, now))),
        ("CA", format!("{ca}expires {}{former}", time::until(cluster.ca_expires_at, now))),
        ("Last backup", backup),
        ("Refused", format!("{} requests since this manager started", cluster.refused)),
    ];
    if cluster.shred.is_some() {
        lines.push(("Shredding", shredding(cluster)));
    }
    let members = cluster.managers.iter().map(|manager| {
        let (status, role) = (manager::status(manager), manager::role(manager));
        let (status, role) = (status.to_lowercase(), role.to_lowercase());
        let trouble = match manager.trouble.as_str() {
            "" => String::new(),
            trouble => format!("; {trouble}"),
        };
        let audit = audited(cluster, manager).map_or(String::new(), |(line, at)| {
            format!(", audit noted to line {line} {}", time::ago(at, now).to_lowercase())
        });
        let written = match manager.store_written_at {
            0 => String::new(),
            at => format!(", store keys of {}", time::ago(at, now).to_lowercase()),
        };
        let store = match (manager.store_behind, manager.store_work.as_str()) {
            (false, "") => String::new(),
            (true, "") => "; its store is not under the new keys yet".to_owned(),
            (_, work) => format!("; {work}"),
        };
        format!(
            "{} {} at {} (member {}, {role}, {status}, {} behind{audit}{written}){trouble}{store}",
            manager.id, manager.hostname, manager.address, manager.member, manager.behind
        )
    });
    pretty_lines(&lines) + &pretty_list("Managers", &members.collect::<Vec<_>>())
}

fn autolock(cluster: &v1::ClusterInfo) -> &'static str {
    match (cluster.autolock, cluster.unlock_key_unseen) {
        (false, _) => "off",
        (true, false) => "on",
        (true, true) => {
            "on; stores wait until the new unlock key was seen with 'keyhole cluster unlock-key'"
        }
    }
}

fn epoch(cluster: &v1::ClusterInfo, now: u64) -> String {
    let mut text = cluster.epoch.to_string();
    if let Some(made) = made(cluster.keys_since, now) {
        text += &format!(", {made}");
    }
    if cluster.under_old_keys > 0 {
        text += &format!(" ({} values to seal anew)", cluster.under_old_keys);
    }
    text
}

/// How old a key is. An earlier manager does not say.
fn made(at: u64, now: u64) -> Option<String> {
    (at != 0).then(|| format!("made {}", time::ago(at, now).to_lowercase()))
}

impl JoinToken {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let role = match self.role {
            Role::Worker => v1::TokenRole::Worker,
            Role::Manager => v1::TokenRole::Manager,
        };
        let request = v1::JoinTokenRequest { role: role.into(), rotate: self.rotate };
        let mut manager = Manager::connect(global).await?;
        let reply = manager.api.join_token(request).await?.into_inner();
        if self.quiet {
            return console.line(&reply.token);
        }
        let v1::JoinTokenReply { token, address } = reply;
        let (word, command) = match self.role {
            Role::Worker => {
                ("node", "keyhole node run --data-dir /var/lib/keyhole/node --mount /run/secrets")
            }
            Role::Manager => (
                "manager",
                "keyhole manager run --data-dir /var/lib/keyhole/manager --listen 0.0.0.0:7070",
            ),
        };
        if self.rotate {
            console.line(&format!("The {word} token was replaced; the old one is void.\n"))?;
        }
        // By a file that only root can read: echo is built into the shell, so the token is in no argv.
        console.print(&format!(
            "To add a {word} to this cluster, run this as root on the new machine:\n\n    \
             (umask 077; echo {token} > /run/keyhole-token) && \\\n    \
             {command} \\\n        \
             --join {address} --token-file /run/keyhole-token\n\n\
             The token is needed once; remove the file when the {word} has joined.\n"
        ))
    }
}

impl RotateKeys {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let mut cluster = manager.api.rotate_keys(v1::RotateKeysRequest {}).await?.into_inner();
        let epoch = cluster.epoch;
        while self.wait && cluster.under_old_keys > 0 {
            console.progress(&format!("{} values to seal anew", cluster.under_old_keys));
            cluster = lock::again(&mut manager, &format!("key epoch {epoch} is made")).await?;
        }
        console.line(&format!("key epoch {epoch}"))
    }
}

impl Ca {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let brought = match (&self.ca_cert, &self.ca_key) {
            (Some(certificate), Some(key)) => Some(OwnCa::read(certificate, key)?),
            _ => None,
        };
        let mut manager = Manager::connect(global).await?;
        if !self.rotate {
            let cluster =
                manager.api.cluster_status(v1::ClusterStatusRequest {}).await?.into_inner();
            let certificate = pem::Pem::new("CERTIFICATE", cluster.ca_certificate.to_vec());
            let line_ending = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
            return console.line(pem::encode_config(&certificate, line_ending).trim_end());
        }
        let brought = match brought {
            Some(ca) => Some(ca.sealed_for(&manager.receiver().await?)?),
            None => None,
        };
        let request = v1::RotateCaRequest { brought };
        let mut cluster = manager.api.rotate_ca(request).await?.into_inner();
        let number = cluster.ca_number;
        // Else the former CA were believed for the sake of who asked for the new one.
        if let Some(context) = Contexts::chosen(global)? {
            let name = context.name.clone();
            operators::renewed(global, context).await.map_err(|failure| {
                Failure::new(format!(
                    "root CA {number} is made; the certificate of context {name} was not renewed ({failure}): run \
                     'keyhole operator renew'"
                ))
            })?;
            manager = Manager::connect(global).await?;
        }
        while self.wait && cluster.ca_number == number && cluster.former_cas_until > 0 {
            let left = cluster.former_certificates;
            console.progress(&format!(
                "{left} managers, nodes and operators have no new certificate yet"
            ));
            cluster = lock::again(&mut manager, &format!("root CA {number} is made")).await?;
        }
        console.line(&format!("root CA {number}"))
    }
}

impl Update {
    async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let settings =
            [self.unconstrained.is_some(), self.quota.is_some(), self.cert_expiry.is_some()];
        let others = self.forget_former_ca || self.autolock.is_some();
        if !settings.contains(&true) && !others {
            return Err(Failure::usage(
                "nothing to update: give --unconstrained, --quota, --cert-expiry, --autolock or --forget-former-ca",
            ));
        }
        let unconstrained = match self.unconstrained {
            Some(Unconstrained::Allow) => v1::Unconstrained::Allow,
            Some(Unconstrained::Deny) => v1::Unconstrained::Deny,
            None => v1::Unconstrained::Unspecified,
        };
        let request = v1::UpdateClusterRequest {
            unconstrained: unconstrained.into(),
            quota_bytes: self.quota,
            certificate_seconds: self.cert_expiry.map(|time| time.as_secs()),
            forget_former_cas: self.forget_former_ca,
            autolock: self.autolock,
        };
        let mut manager = Manager::connect(global).await?;
        let cluster = manager.api.update_cluster(request).await?.into_inner();
        console.line(&cluster.id)?;
        match self.autolock {
            Some(true) => lock::show(&mut manager, console).await,
            Some(false) | None => Ok(()),
        }
    }
}
