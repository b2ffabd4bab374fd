//! The connections that are alive, by the id of their peer, so that a revoked peer's end at once.
//!
//! Invariant: a connection is listed from before its first byte of HTTP until it is dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{LiveTls, PeerIdentity, Role};

/// A registry of live connections. Clones share it.
#[derive(Clone, Default)]
pub struct Connections {
    list: Arc<Mutex<List>>,
}

#[derive(Default)]
struct List {
    next: u64,
    /// The oldest first.
    live: BTreeMap<u64, Listed>,
}

/// A connection as it is listed.
#[derive(Clone)]
struct Listed {
    peer: Option<Arc<Presented>>,
    switch: Arc<Switch>,
}

/// What a peer has shown in the handshake.
pub(super) struct Presented {
    pub(super) identity: PeerIdentity,
    /// Its leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// When that was believed.
    pub(super) at: UnixTime,
}

impl Connections {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those whose peer's certificate is for `id`.
    pub fn of_peer(&self, id: &str) -> Chosen {
        self.choose(|peer| peer.is_some_and(|peer| peer.id == id))
    }

    /// Those whose peer's certificate `live` would not believe any more. It judges each anew, which takes a while.
    pub fn strange(&self, live: &LiveTls) -> Chosen {
        let clients = live.clients();
        let all: Vec<Listed> = self.list().live.values().cloned().collect();
        let strange = |listed: &Listed| {
            listed.peer.as_ref().is_some_and(|it| !clients.believes(&it.chain, it.at))
        };
        Chosen(all.into_iter().filter(strange).map(|listed| listed.switch).collect())
    }

    /// Those of all with certificates of that role whose id is not to stay.
    pub fn gone(&self, role: Role, stays: impl Fn(&str) -> bool) -> Chosen {
        self.choose(|peer| peer.is_some_and(|peer| peer.role == role && !stays(&peer.id)))
    }

    /// Ends every connection; how many.
    pub fn close_all(&self) -> usize {
        self.choose(|_| true).close()
    }

    /// How many are alive.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list().live.len()
    }

    /// Lists a connection; of those without an id only the newest `strangers` stay.
    pub(super) fn register(&self, peer: Option<Arc<Presented>>, strangers: usize) -> Registration {
        let switch = Arc::new(Switch::default());
        let mut list = self.list();
        if peer.is_none() {
            let open = |listed: &&Listed| {
                listed.peer.is_none() && !listed.switch.off.load(Ordering::Acquire)
            };
            if list.live.values().filter(open).count() >= strangers.max(1)
                && let Some(oldest) = list.live.values().find(open)
            {
                oldest.switch.close();
            }
        }
        let key = list.next;
        list.next += 1;
        list.live.insert(key, Listed { peer, switch: Arc::clone(&switch) });
        Registration { connections: self.clone(), key, switch }
    }

    fn choose(&self, wanted: impl Fn(Option<&PeerIdentity>) -> bool) -> Chosen {
        let list = self.list();
        let wanted = list.live.values().filter(|listed| {
            let peer = listed.peer.as_ref();
            wanted(peer.map(|peer| &peer.identity))
        });
        Chosen(wanted.map(|listed| Arc::clone(&listed.switch)).collect())
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections that were alive when they were looked for; one that is made later, and asks to be told why it is refused,
/// is none of them.
#[must_use = "they go on unless they are closed"]
pub struct Chosen(Vec<Arc<Switch>>);

impl Chosen {
    /// Ends each, with all calls on it; how many.
    pub fn close(self) -> usize {
        for switch in &self.0 {
            switch.close();
        }
        self.0.len()
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connections({} live)", self.count())
    }
}

/// One connection's place in the registry; dropping it takes it out.
pub(super) struct Registration {
    connections: Connections,
    key: u64,
    switch: Arc<Switch>,
}

#[derive(Default)]
struct Switch {
    off: AtomicBool,
    reader: AtomicWaker,
}

impl Switch {
    fn close(&self) {
        self.off.store(true, Ordering::Release);
        self.reader.wake();
    }
}

impl Registration {
    /// Ready when the connection shall end; otherwise the reader is woken then.
    pub(super) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.switch.reader.register(cx.waker());
        if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.switch.off.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.list().live.remove(&self.key);
    }
}
