//! A server that runs out of descriptors goes on when there are some again. In a process of its own,
//! because it lowers the limit for all of it.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::File;
use std::sync::Arc;

use keyhole_domain::ClusterId;
use keyhole_wire::tls::certificate::{ca_params, csr_public_key, key_and_csr, leaf_params};
use keyhole_wire::tls::{Connections, Identity, Limits, LiveTls, Role, incoming};
use rcgen::{Issuer, KeyPair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Tells of each warning.
struct Warnings(Arc<Notify>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.notify_one();
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn manager() -> LiveTls {
    let cluster = ClusterId::from_entropy([5; 16]);
    let (from, to) = (0, 4_000_000_000);
    let root_key = KeyPair::generate().unwrap();
    let root = ca_params(&cluster, from, to).unwrap();
    let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
    let (key, csr) = key_and_csr().unwrap();
    let id = ClusterId::from_entropy([6; 16]);
    let leaf = leaf_params(&cluster, Role::Manager, id.as_str(), from, to)
        .unwrap()
        .signed_by(&csr_public_key(&csr).unwrap(), &Issuer::new(root, root_key))
        .unwrap();
    let identity = Identity::new(vec![leaf.der().to_vec()], key).unwrap();
    LiveTls::new(Some(identity), vec![root_der]).unwrap()
}

#[tokio::test]
async fn running_out_of_descriptors_does_not_end_the_stream() {
    let warned = Arc::new(Notify::new());
    tracing::subscriber::set_global_default(Warnings(Arc::clone(&warned))).unwrap();
    let tls = manager();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut accepted = incoming(listener, tls.clone(), Limits::default(), Connections::new());

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
    let mut fillers: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    fillers.pop().unwrap();
    let client = TcpStream::connect(addr).await.unwrap();
    warned.notified().await;
    drop(fillers);

    let name = ServerName::try_from("manager").unwrap();
    let connector = TlsConnector::from(tls.client_config());
    let (client, server) = tokio::join!(connector.connect(name, client), accepted.next());
    client.unwrap();
    assert_eq!(server.unwrap().unwrap().info().identity.as_ref().unwrap().role, Role::Manager);
}
