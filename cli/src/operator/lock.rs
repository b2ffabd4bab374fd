//! `keyhole cluster unlock`, `unlock-key`, `rotate-store-keys` and `shred`.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

use clap::Args;
use keyhole_domain::ClusterId;
use keyhole_proto::v1;
use keyhole_secmem::{ReadError, SecretBytes};
use keyhole_wire::seal::{Aad, EdgeKeyPair, Info, Protocol};
use keyhole_wire::unlock_key::UNLOCK_KEY_LEN;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::Manager;
use crate::args::Global;
use crate::console::Console;
use crate::failure::Failure;
use crate::prompt::hidden_line;
use crate::value::{Operation, protect_process};

/// How often the manager is asked how far it is.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a manager may take from its key until it serves.
const SERVING: Duration = Duration::from_secs(60);
/// Longer than any key with the space around it.
const LONGEST: usize = 2 * UNLOCK_KEY_LEN;

/// `unlock`
#[derive(Debug, Args)]
pub(crate) struct Unlock {}

/// `unlock-key`
#[derive(Debug, Args)]
pub(crate) struct UnlockKey {
    /// Print the key only
    #[arg(short, long)]
    quiet: bool,
    /// Make a new key; every manager writes its store anew under it
    #[arg(long)]
    rotate: bool,
}

/// `rotate-store-keys`
#[derive(Debug, Args)]
pub(crate) struct RotateStoreKeys {
    /// Wait until every manager's store is under new keys
    #[arg(long)]
    wait: bool,
}

/// `shred`
#[derive(Debug, Args)]
pub(crate) struct Shred {
    /// Wait until what was deleted is gone from every manager's disk
    #[arg(long)]
    wait: bool,
}

impl Unlock {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        protect_process()?;
        let mut manager = Manager::connect(global).await?;
        let status = manager.api.cluster_status(v1::ClusterStatusRequest {}).await;
        if status.is_ok_and(|status| !status.get_ref().locked) {
            return Err(Failure::new("this manager is not locked"));
        }
        let key = typed_key(console)?;
        let receiver = manager.receiver().await?;
        let key = receiver.seal(Operation::Unlock, "unlock key", &key)?;
        manager.api.unlock(v1::UnlockRequest { key: Some(key) }).await?;
        console.while_waiting("the manager to serve", serving(global)).await
    }
}

/// The key from the terminal, which does not show it, or from standard input.
fn typed_key(console: &mut Console) -> Result<SecretBytes, Failure> {
    if io::stdin().is_terminal() {
        return hidden_line(console, "Enter unlock key: ", LONGEST);
    }
    SecretBytes::read_from(io::stdin().as_fd(), LONGEST).map_err(|error| {
        Failure::new(match error {
            ReadError::Empty => "no unlock key: give it on standard input".to_owned(),
            error => format!("cannot read the unlock key from standard input: {error}"),
        })
    })
}

/// Until the manager has opened its store, and its socket anew.
async fn serving(global: &Global) -> Result<(), Failure> {
    let until = Instant::now() + SERVING;
    loop {
        let answer = async {
            let mut manager = Manager::connect(global).await?;
            let status = manager.api.cluster_status(v1::ClusterStatusRequest {}).await?;
            Ok::<_, Failure>(status.into_inner())
        };
        match answer.await {
            Ok(status) if !status.locked => return Ok(()),
            _ if Instant::now() >= until => {
                return Err(Failure::new(
                    "the manager took the key, and does not serve yet; see its log",
                ));
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// The unlock key, or a new one, and its number.
async fn fetch(manager: &mut Manager, rotate: bool) -> Result<(Zeroizing<String>, u64), Failure> {
    protect_process()?;
    let pair = EdgeKeyPair::generate().map_err(Failure::new)?;
    let sender = manager.api.get_seal_key(v1::GetSealKeyRequest {}).await?.into_inner();
    let reply_key = pair.public().as_bytes().to_vec().into();
    let request = v1::UnlockKeyRequest { rotate, reply_key, seen: 0 };
    let reply = manager.api.unlock_key(request).await?.into_inner();
    let sealed = reply.key.unwrap_or_default();
    let cluster: ClusterId = sender.cluster.parse().map_err(Failure::new)?;
    let info = Info::new(Protocol::ManagerToCli, &cluster, &sender.manager, "operator");
    let aad = Aad::new().text("unlock key");
    let opened = pair.open_one(&sealed.enc, &info, &aad, &sealed.ciphertext);
    let opened = opened.map_err(|error| {
        Failure::new(format!("the unlock key that the manager sent does not open: {error}"))
    })?;
    let text = std::str::from_utf8(opened.as_slice()).map_err(Failure::new)?;
    Ok((Zeroizing::new(text.to_owned()), reply.number))
}

/// Tells the managers that the key is in somebody's hands, for which their stores wait.
async fn seen(manager: &mut Manager, number: u64) -> Result<(), Failure> {
    let request = v1::UnlockKeyRequest { seen: number, ..Default::default() };
    let told = manager.api.unlock_key(request).await;
    told.map(drop).map_err(|status| Failure::unseen_unlock_key(&status))
}

/// The key with what to do with it.
pub(super) async fn show(manager: &mut Manager, console: &mut Console) -> Result<(), Failure> {
    let (key, number) = fetch(manager, false).await?;
    explain(console, &key)?;
    seen(manager, number).await
}

/// What is said of a new unlock key where it is not shown.
const UNSEEN: &str = "the unlock key becomes a new one, too, and the stores wait until you have seen it with 'keyhole \
                      cluster unlock-key'";

/// Shows a new unlock key to a person. Elsewhere it may go to a log: there it is left to who asks for it.
async fn show_to_person(
    manager: &mut Manager,
    console: &mut Console,
    cluster: &v1::ClusterInfo,
) -> Result<(), Failure> {
    if cluster.unlock_key_unseen && io::stdout().is_terminal() {
        console.progress("");
        show(manager, console).await?;
    }
    Ok(())
}

fn explain(console: &mut Console, key: &Zeroizing<String>) -> Result<(), Failure> {
    let text = Zeroizing::new(format!(
        "A manager that is started is locked. To unlock it, run 'keyhole cluster unlock' on its machine and give this key:\n\n    \
         {}\n\n\
         Keep it where it is safe, and not on a manager: without it no manager can be started again.\n",
        key.as_str()
    ));
    console.print(&text)
}

impl UnlockKey {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let (key, number) = fetch(&mut manager, self.rotate).await?;
        if self.quiet {
            console.print(&Zeroizing::new(format!("{}\n", key.as_str())))?;
            return seen(&mut manager, number).await;
        }
        if self.rotate {
            console.line(
                "The unlock key was replaced. A manager that is away or locked meanwhile still opens with the one \
                 before:\nkeep that until 'keyhole cluster status' names no manager that is behind.\n",
            )?;
        }
        explain(console, &key)?;
        seen(&mut manager, number).await
    }
}

impl RotateStoreKeys {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let request = v1::RotateStoreKeysRequest {};
        let mut cluster = manager.api.rotate_store_keys(request).await?.into_inner();
        let number = cluster.store_number;
        if cluster.autolock && !io::stdout().is_terminal() {
            console.warn(UNSEEN);
        }
        show_to_person(&mut manager, console, &cluster).await?;
        loop {
            let behind: Vec<String> = cluster
                .managers
                .iter()
                .filter(|manager| manager.store_number < number)
                .map(named)
                .collect();
            if !self.wait || behind.is_empty() {
                break;
            }
            console.progress(&format!("stores to write anew: {}", behind.join(", ")));
            cluster = again(&mut manager, "it is asked for").await?;
        }
        console.line(&format!("store keys {number}"))
    }
}

impl Shred {
    /// Does it.
    pub(crate) async fn run(self, global: &Global, console: &mut Console) -> Result<(), Failure> {
        let mut manager = Manager::connect(global).await?;
        let mut cluster = manager.api.shred(v1::ShredRequest {}).await?.into_inner();
        if cluster.autolock {
            console.warn(UNSEEN);
        }
        loop {
            let Some(left) = shred_left(&cluster) else { return console.line("shredded") };
            if !self.wait {
                return console.line("shredding; 'keyhole cluster status' says how far it is");
            }
            console.progress(&left);
            show_to_person(&mut manager, console, &cluster).await?;
            cluster = again(&mut manager, "it is asked for").await?;
        }
    }
}

/// How the cluster is, a moment later; `done` is what was done before.
pub(super) async fn again(manager: &mut Manager, done: &str) -> Result<v1::ClusterInfo, Failure> {
    tokio::time::sleep(AGAIN).await;
    let status = manager.api.cluster_status(v1::ClusterStatusRequest {}).await;
    let failed = |status| Failure::while_waiting(done, "cluster status", &status);
    Ok(status.map_err(failed)?.into_inner())
}

/// A manager whose store is behind, and what it does about that.
pub(super) fn named(manager: &v1::ManagerInfo) -> String {
    let work = match manager.store_work.as_str() {
        "" => String::new(),
        work => format!(" ({work})"),
    };
    format!("{} at {}{work}", manager.hostname, manager.address)
}

/// What the last shredding still waits for; nothing when it is done, or nobody asked for one.
pub(super) fn shred_left(cluster: &v1::ClusterInfo) -> Option<String> {
    let shred = cluster.shred.as_ref().filter(|shred| !shred.done)?;
    if shred.values {
        return Some(format!("{} values to seal anew", cluster.under_old_keys));
    }
    let waits = |manager: &&v1::ManagerInfo| shred.members.contains(&manager.member);
    let left: Vec<String> = cluster.managers.iter().filter(waits).map(named).collect();
    Some(format!("waits for {}", left.join(", ")))
}
