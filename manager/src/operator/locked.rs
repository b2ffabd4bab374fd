//! What a locked manager answers: how it is, and the key. It has no store and no certificate, and only its operator socket
//! is open.
//!
//! Invariant: one attempt at a time, and after a wrong one the next has to wait.

use std::time::Duration;

use keyhole_domain::ClusterId;
use keyhole_proto::v1;
use keyhole_state::Actor;
use keyhole_wire::seal::EdgeKeyPair;
use keyhole_wire::unlock_key::parse_unlock_key;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tonic::{Request, Status};

use crate::audit::AuditLog;
use crate::authz::{Action, Caller, act};
use crate::keys::Kek;
use crate::seal::{InputFor, input_aad, input_info, open_input};
use crate::status::{internal, invalid};
use crate::store::SealedStore;
use crate::store_keys::UNLOCK_KEY;

/// After a wrong key.
const PAUSE: Duration = Duration::from_secs(1);

type Reply<T> = Result<T, Status>;

/// The service of a locked manager; clones share it.
#[derive(Clone)]
pub(crate) struct LockedApi(Arc<Locked>);

struct Locked {
    sealed: SealedStore,
    cluster: ClusterId,
    /// This process's key, which the unlock key is sealed to.
    input: EdgeKeyPair,
    audit: Arc<AuditLog>,
    /// What opens the store, once it was given; who holds it tries a key.
    kek: Mutex<Option<Kek>>,
    opened: watch::Sender<bool>,
}

/// What everything else is answered with.
pub(crate) fn locked() -> Status {
    Status::unavailable(
        "this manager is locked; unlock it with 'keyhole cluster unlock' on its machine",
    )
}

impl LockedApi {
    /// What is tried has its lines in `audit` at once.
    pub(crate) fn new(sealed: SealedStore, audit: Arc<AuditLog>) -> Result<Self, String> {
        let cluster = sealed.identity().cluster.parse();
        let cluster: ClusterId = cluster.map_err(|e: keyhole_domain::IdError| e.to_string())?;
        let input = EdgeKeyPair::generate().map_err(|e| e.to_string())?;
        Ok(Self(Arc::new(Locked {
            sealed,
            cluster,
            input,
            audit,
            kek: Mutex::default(),
            opened: watch::Sender::new(false),
        })))
    }

    /// Until the right key was given.
    pub(crate) async fn opened(&self) {
        // The sender is here, so that the wait ends by the key only.
        let _ = self.0.opened.subscribe().wait_for(|opened| *opened).await;
    }

    /// The key, once it was given.
    pub(crate) async fn into_key(self) -> Option<Kek> {
        self.0.kek.lock().await.take()
    }

    pub(super) fn seal_key<T>(&self, request: &Request<T>) -> Reply<v1::SealKey> {
        admin(request)?;
        Ok(v1::SealKey {
            cluster: self.0.cluster.to_string(),
            manager: self.0.sealed.identity().manager.clone(),
            public_key: self.0.input.public().as_bytes().to_vec().into(),
        })
    }

    pub(super) fn status<T>(&self, request: &Request<T>) -> Reply<v1::ClusterInfo> {
        admin(request)?;
        Ok(v1::ClusterInfo {
            id: self.0.cluster.to_string(),
            locked: true,
            health: locked().message().to_owned(),
            ..v1::ClusterInfo::default()
        })
    }

    pub(super) async fn take_key(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Reply<v1::UnlockReply> {
        let by = admin(&request)?;
        let mut given = self.0.kek.lock().await;
        if *self.0.opened.borrow() {
            return Ok(v1::UnlockReply {});
        }
        let key = self.open(request.get_ref())?;
        let kek = Kek::from_key(key, UNLOCK_KEY);
        if !self.0.sealed.opens_with(&kek) {
            tracing::warn!(?by, "a wrong unlock key was given");
            self.0.audit.refused_actor(&by, act::Unlock::NAME, "a wrong unlock key");
            self.0.audit.tend();
            tokio::time::sleep(PAUSE).await;
            return Err(Status::permission_denied(
                "the key does not open this manager's store: invalid key provided; if the unlock key was rotated while \
                 this manager was away, it still opens with the one before",
            ));
        }
        self.0.audit.unlocked(&by);
        self.0.audit.tend();
        *given = Some(kek);
        self.0.opened.send_replace(true);
        Ok(v1::UnlockReply {})
    }

    fn open(&self, request: &v1::UnlockRequest) -> Reply<keyhole_secmem::Key32> {
        let sealed = request.key.as_ref().ok_or_else(|| invalid("no key was sent"))?;
        let info = input_info(&self.0.cluster, &self.0.sealed.identity().manager, None);
        let aad = input_aad(InputFor::Unlock, "unlock key");
        let opened = open_input(&self.0.input, &info, &aad, sealed).map_err(|error| {
            Status::failed_precondition(format!(
                "the key that was sent does not open ({error}); if the manager was started anew just now, repeat the \
                 command"
            ))
        })?;
        parse_unlock_key(opened.as_slice()).map_err(|error| match error {
            keyhole_wire::unlock_key::UnlockKeyError::Lock(error) => {
                internal("cannot lock the key in memory", error)
            }
            error => invalid(error),
        })
    }
}

/// Who may unlock: whoever administers the cluster over this socket.
fn admin<T>(request: &Request<T>) -> Reply<Actor> {
    match Caller::of(request) {
        caller @ Caller::Local(peer) if peer.is_admin() => Ok(caller.actor()),
        _ => Err(Status::permission_denied(
            "only root and members of the group 'keyhole' may unlock this manager, on its machine",
        )),
    }
}
