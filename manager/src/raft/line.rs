//! One connection to another manager: made once for all who call meanwhile, and kept for as long as it may be alive.
//!
//! Depends on wire's TLS. Invariants: nobody is asked anything before his certificate says that he is who is meant; a
//! caller who has no time left neither stops a connection from being made nor ends one that is only slow.
use super::peers::{MAX_CALL, PeerError};
use keyhole_domain::ClusterId;
use keyhole_proto::v1::peer_client::PeerClient;
use keyhole_wire::tls::{
    ConnectError, Identity, LiveTls, ManagerConnection, Patience, Role, connect_manager,
};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// How long a connection may take to be made, at least three round trips. Short, because on a line that is cut the system
/// asks ever less often whether it is whole again.
const DIALLING: Duration = Duration::from_secs(2);
/// A connection on which calls have had no answer for so long is dead: the other side lost its power, or packets are lost
/// without a word. Longer than a few heartbeats, shorter than what followers bear without a leader (ADR 6). One that
/// nobody calls on ends by its own keepalive, after [`Patience::ask`] and [`Patience::answer`].
const SILENCE: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// None was made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Somebody else is at that address.
    #[error("at {address} is {found}, not manager {wanted}")]
    Another {
        /// Where.
        address: String,
        /// Who is there.
        found: String,
        /// Who should be.
        wanted: String,
    },
    /// This manager stopped meanwhile.
    #[error("{address} is not called: this manager is stopping")]
    Stopping {
        /// Where it is.
        address: String,
    },
}

/// Makes connections to other managers: over TLS, but in a simulation.
#[tonic::async_trait]
pub trait Dial: Send + Sync + 'static {
    /// What a connection is opened with now; one that was opened with something else is not used any more.
    fn identity(&self) -> Option<Arc<Identity>>;

    /// Connects to the manager at `address`, and says who is there. Ends by itself in any case.
    async fn dial(&self, address: &str) -> Result<ManagerConnection, ConnectError>;
}

#[tonic::async_trait]
impl Dial for LiveTls {
    fn identity(&self) -> Option<Arc<Identity>> {
        Self::identity(self)
    }

    async fn dial(&self, address: &str) -> Result<ManagerConnection, ConnectError> {
        let patience = Patience { connect: DIALLING, ..Patience::default() };
        connect_manager(address, self, patience).await
    }
}

/// Whom a connection has to lead to.
#[derive(Debug, Clone)]
pub(super) struct Callee {
    pub(super) cluster: ClusterId,
    /// The id in its certificate.
    pub(super) name: String,
    pub(super) address: String,
}

impl Callee {
    async fn called(self, dial: &dyn Dial) -> Result<PeerClient<Channel>, LineError> {
        let Self { cluster, name, address } = self;
        let connection = dial.dial(&address).await?;
        let found = connection.manager;
        if found.role != Role::Manager || found.cluster != cluster || found.id != name {
            let found = format!("{} {} of cluster {}", found.role.word(), found.id, found.cluster);
            return Err(LineError::Another { address, found, wanted: name });
        }
        Ok(PeerClient::new(connection.channel)
            .max_decoding_message_size(MAX_CALL)
            .max_encoding_message_size(MAX_CALL))
    }
}

type Made = Result<PeerClient<Channel>, Arc<LineError>>;

/// A connection, also while it is being made.
pub(super) struct Line {
    address: String,
    /// What it was opened with; the other side ends with that certificate.
    identity: Option<Arc<Identity>>,
    made: watch::Receiver<Option<Made>>,
    /// Since its last answer: when the first of the calls began that got none in time.
    unanswered: Mutex<Option<Instant>>,
}

impl Line {
    /// Begins to make one.
    pub(super) fn open(dial: Arc<dyn Dial>, callee: Callee) -> Self {
        let (address, identity) = (callee.address.clone(), dial.identity());
        let (tell, made) = watch::channel(None);
        // A task of its own: who calls may have less time than a few round trips take.
        tokio::spawn(async move {
            let called = callee.called(&*dial).await.map_err(Arc::new);
            tell.send_replace(Some(called));
        });
        Self { address, identity, made, unanswered: Mutex::default() }
    }

    /// Whether it, once it is made, leads there with what a new one would be opened with. One that was not to be made is
    /// not asked again: what was true then need not be true now.
    pub(super) fn leads(&self, address: &str, identity: Option<&Arc<Identity>>) -> bool {
        self.address == address
            && self.identity.as_ref().map(Arc::as_ptr) == identity.map(Arc::as_ptr)
            && !matches!(*self.made.borrow(), Some(Err(_)))
    }

    /// Makes a call as soon as there is a connection. `limit` begins then, and ends with how long it was.
    pub(super) async fn ask<R, F>(
        &self,
        limit: impl Future<Output = Duration>,
        call: impl FnOnce(PeerClient<Channel>) -> F,
    ) -> Result<R, PeerError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = self.client().await?;
        let asked = Instant::now();
        tokio::select! {
            answer = call(client) => {
                *self.unanswered() = None;
                answer.map(Response::into_inner).map_err(PeerError::Status)
            }
            waited = limit => {
                self.unanswered().get_or_insert(asked);
                Err(PeerError::TimedOut(waited))
            }
        }
    }

    async fn client(&self) -> Result<PeerClient<Channel>, PeerError> {
        let mut made = self.made.clone();
        let made = made.wait_for(Option::is_some).await;
        let made = made.ok().and_then(|made| made.clone());
        let stopping = || Arc::new(LineError::Stopping { address: self.address.clone() });
        made.unwrap_or_else(|| Err(stopping())).map_err(PeerError::Line)
    }

    /// Whether it has to be taken for dead, by the calls on it.
    pub(super) fn is_silent(&self) -> bool {
        self.unanswered().is_some_and(|since| since.elapsed() >= SILENCE)
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
