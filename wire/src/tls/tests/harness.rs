//! A CA, and a server that says whom it sees.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use keyhole_domain::ClusterId;
use rcgen::{CertificateParams, Issuer, KeyIdMethod, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::transport::{Channel, Server as TonicServer};
use tower::{Service, ServiceExt};

use crate::tls::certificate::{ca_params, csr_public_key, key_and_csr, leaf_params};
use crate::tls::{Connections, Identity, Limits, LiveTls, PeerInfo, Role, incoming, key_id};

pub(super) const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaa1";
pub(super) const OTHER_ID: &str = "bbbbbbbbbbbbbbbbbbbbbbbb2";

pub(super) fn now() -> u64 {
    crate::tls::unix_now()
}

pub(super) fn day() -> u64 {
    24 * 3600
}

pub(super) struct TestCa {
    cluster: ClusterId,
    params: CertificateParams,
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl TestCa {
    pub(super) fn new() -> Self {
        let cluster = ClusterId::from_entropy([5; 16]);
        let params = ca_params(&cluster, now() - 90 * day(), now() + 90 * day()).unwrap();
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { cluster, params: params.clone(), issuer: Issuer::new(params, key), der }
    }

    /// The one whose leaves say that `other` has signed them.
    pub(super) fn posing_as(&self, other: &Self) -> Self {
        let mut params = self.params.clone();
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(&other.der));
        let key = KeyPair::try_from(self.issuer.key().serialize_der()).unwrap();
        Self {
            cluster: self.cluster,
            params: params.clone(),
            issuer: Issuer::new(params, key),
            der: self.der(),
        }
    }

    pub(super) fn der(&self) -> Vec<u8> {
        self.der.clone()
    }

    pub(super) fn identity(&self, role: Role, id: &str) -> Identity {
        self.identity_valid(role, id, now() - 3600, now() + day())
    }

    pub(super) fn identity_valid(&self, role: Role, id: &str, from: u64, to: u64) -> Identity {
        self.identity_with(role, id, from, to, |_| ())
    }

    /// The way the CA goes: a request's key, everything else from the role.
    pub(super) fn identity_with(
        &self,
        role: Role,
        id: &str,
        from: u64,
        to: u64,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let (key, csr) = key_and_csr().unwrap();
        let mut params = leaf_params(&self.cluster, role, id, from, to).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&csr_public_key(&csr).unwrap(), &self.issuer).unwrap();
        Identity::new(vec![leaf.der().to_vec()], key).unwrap()
    }
}

/// A gRPC server on loopback, stopped when dropped.
pub(super) struct Server {
    pub(super) addr: String,
    pub(super) connections: Connections,
    /// Told when a call to `Hang` has arrived.
    pub(super) hung: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(live: LiveTls) -> Self {
        Self::start_with(live, Limits::default()).await
    }

    pub(super) async fn start_with(live: LiveTls, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (connections, hung) = (Connections::new(), Arc::new(Notify::new()));
        let accepted = incoming(listener, live, limits, connections.clone());
        let echo = Echo { hung: Arc::clone(&hung) };
        let task = tokio::spawn(async move {
            TonicServer::builder().add_service(echo).serve_with_incoming(accepted).await.unwrap();
        });
        Self { addr, connections, hung, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers `Who` with what the connection says of the caller, in a header; never answers `Hang`.
#[derive(Clone)]
struct Echo {
    hung: Arc<Notify>,
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let hung = Arc::clone(&self.hung);
        Box::pin(async move {
            if request.uri().path().ends_with("Hang") {
                hung.notify_one();
                std::future::pending::<()>().await;
            }
            let peer: &PeerInfo = request.extensions().get().unwrap();
            Ok(Response::builder().header("peer", describe(peer)).body(Body::empty()).unwrap())
        })
    }
}

fn describe(peer: &PeerInfo) -> String {
    let who = match &peer.identity {
        Some(peer) => format!("{} {} expired={}", peer.role, peer.id, peer.expired),
        None => "nobody".to_owned(),
    };
    let exporter: String = peer.exporter.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{who} {exporter}")
}

/// Calls the server's `method` on `channel`; what the server saw.
pub(super) async fn call(channel: &Channel, method: &str) -> Result<String, Status> {
    let request = Request::post(format!("/test.Echo/{method}")).body(Body::empty()).unwrap();
    let answer = channel.clone().oneshot(request).await;
    let answer = answer.map_err(|error| Status::from_error(error.into()))?;
    Ok(answer.headers()["peer"].to_str().unwrap().to_owned())
}

/// A ClientHello of RFC 5246, without the extension that offers TLS 1.3.
pub(super) fn tls_1_2_client_hello() -> Vec<u8> {
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 4, 0, 2, 0, 29], // supported_groups: x25519
        &[0, 13, 0, 4, 0, 2, 4, 3],  // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 11, 0, 2, 1, 0],        // ec_point_formats: uncompressed
    ];
    let extensions = extensions.concat();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.push(0); // no session id
    hello.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    hello.extend([1, 0]); // no compression
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend((hello.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((hello.len() as u16).to_be_bytes());
    record.extend(hello);
    record
}
