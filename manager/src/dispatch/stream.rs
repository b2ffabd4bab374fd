//! One node's stream: a complete assignment first, then what changed, chained from one revision to the next.
//!
//! Invariant: what is sent is made from the state at the revision it names, for a node that is a member at that moment.

use std::sync::Arc;
use std::time::Duration;

use keyhole_domain::Assignment;
use keyhole_proto::v1;
use keyhole_wire::seal::StreamSealer;
use keyhole_wire::tls::key_id;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use super::part::{Parts, Sources};
use crate::authz::{Authorized, act};
use crate::clock;
use crate::sessions::Ticket;
use crate::shell::Shell;

/// A change travels at once, and what follows it within this time travels together.
const COALESCE: Duration = Duration::from_millis(5);

type Sender = mpsc::Sender<Result<v1::AssignmentPart, Status>>;

pub(super) struct NodeStream {
    shell: Arc<Shell>,
    by: Authorized<act::Assignments>,
    ticket: Ticket,
    sealer: StreamSealer,
    /// HPKE's encapsulated key, until the first part took it along.
    enc: Vec<u8>,
    sent: Option<Arc<Assignment>>,
    /// The managers as the node knows them.
    managers: Vec<String>,
    /// The root CA as the node knows it.
    ca: Option<u32>,
}

/// Why a stream ends.
enum End {
    /// The node went away.
    Left,
    /// The node is told.
    Told(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Told(status)
    }
}

impl NodeStream {
    pub(super) fn new(
        shell: Arc<Shell>,
        by: Authorized<act::Assignments>,
        ticket: Ticket,
        (sealer, enc): (StreamSealer, Vec<u8>),
    ) -> Self {
        Self { shell, by, ticket, sealer, enc, sent: None, managers: Vec::new(), ca: None }
    }

    /// Until the node leaves, is removed, or opens another stream.
    pub(super) async fn run(mut self, sender: Sender) {
        let ended = tokio::select! {
            () = sender.closed() => End::Left,
            end = self.follow(&sender) => end,
        };
        let node = self.by.subject().id();
        match ended {
            End::Left => tracing::debug!(%node, "a node's stream ended"),
            End::Told(status) => {
                tracing::info!(%node, reason = status.message(), "ended a node's stream");
                // The node may be gone by now.
                let _ = sender.send(Err(status)).await;
            }
        }
    }

    async fn follow(&mut self, sender: &Sender) -> End {
        let left = self.by.subject().not_after().saturating_sub(clock::unix_seconds()) + 1;
        let expiry = sleep(Duration::from_secs(left));
        tokio::pin!(expiry);
        loop {
            if let Err(end) = self.look(sender).await {
                return end;
            }
            let next = Instant::now() + COALESCE;
            tokio::select! {
                () = self.ticket.woken() => sleep_until(next).await,
                () = &mut expiry => return End::Told(Status::unauthenticated(
                    "the certificate of this connection has expired; connect again with the renewed one",
                )),
            }
        }
    }

    /// Sends what changed since the last look.
    async fn look(&mut self, sender: &Sender) -> Result<(), End> {
        let node = self.by.subject().id();
        if !self.shell.still_member(node) {
            let why = format!("node {node} was removed from this cluster; join it again");
            return Err(End::Told(Status::permission_denied(why)));
        }
        if let Some(why) = self.shell.without_nodes() {
            return Err(End::Told(why));
        }
        let Some(wanted) = self.ticket.begin() else {
            let why = "another stream of this node took this one's place";
            return Err(End::Told(Status::aborted(why)));
        };
        let before = self.sent.as_deref();
        let mut sources = self.shell.view_cluster(&self.by, |state, cluster| {
            let mut sources = Sources::read(state, cluster, node, before);
            if self.ca.replace(cluster.ca_number) != Some(cluster.ca_number) {
                sources.ca = key_id(&cluster.ca_certificate);
            }
            Ok(sources)
        })?;
        let revision = sources.assignment.revision;
        if sources.managers == self.managers {
            sources.managers.clear();
        } else {
            self.managers.clone_from(&sources.managers);
        }
        if sources.delta.is_empty() && sources.managers.is_empty() && sources.ca.is_empty() {
            self.ticket.finish(wanted, revision, None);
            return Ok(());
        }
        let assignment = sources.assignment.clone();
        self.send(sender, sources).await?;
        self.sent = Some(assignment.clone());
        self.ticket.finish(wanted, revision, Some(assignment));
        Ok(())
    }

    async fn send(&mut self, sender: &Sender, sources: Sources) -> Result<(), End> {
        let mut parts = Parts::new(sources, std::mem::take(&mut self.enc));
        while let Some(part) = parts.next(&self.shell.keyring, &mut self.sealer)? {
            sender.send(Ok(part)).await.map_err(|_| End::Left)?;
        }
        Ok(())
    }
}
