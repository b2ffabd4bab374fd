//! A real manager in this process, with its operators and nodes as clients over real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use keyhole_domain::{ClusterId, Revision, TaskId};
use keyhole_manager::app::{Manager, ManagerConfig, Running};
use keyhole_manager::seal::{InputFor, input_aad, input_info, stream_aad, stream_info};
use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_proto::v1::operator_client::OperatorClient;
use keyhole_secmem::SecretBytes;
use keyhole_wire::seal::{EdgeKeyPair, EdgePublicKey, StreamOpener, seal_one};
use keyhole_wire::tls::certificate::key_and_csr;
use keyhole_wire::tls::{Identity, LiveTls, connect};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

pub(crate) type Operator = OperatorClient<Channel>;

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} takes too long"),
    }
}

/// One manager and its folder.
pub(crate) struct TestManager {
    pub(crate) folder: TempDir,
    pub(crate) running: Option<Running>,
    pub(crate) cert_expiry: Duration,
    pub(crate) listen: String,
}

impl TestManager {
    pub(crate) async fn init() -> Self {
        Self::init_with(Duration::from_secs(3600)).await
    }

    pub(crate) async fn init_with(cert_expiry: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut manager =
            Self { folder, running: None, cert_expiry, listen: "127.0.0.1:0".to_owned() };
        manager.start(true).await;
        manager
    }

    pub(crate) fn config(&self) -> ManagerConfig {
        ManagerConfig {
            listen: self.listen.clone(),
            socket: self.path("run/manager.sock"),
            cert_expiry: self.cert_expiry,
            ..ManagerConfig::new(self.path("data"))
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn start(&mut self, init: bool) {
        let config = ManagerConfig { init, ..self.config() };
        let running = soon("starting", Manager::start(config)).await.unwrap();
        self.listen = running.address().to_string();
        self.running = Some(running);
    }

    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        soon("stopping", running.shutdown()).await.unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start(false).await;
    }

    pub(crate) fn address(&self) -> String {
        self.running.as_ref().unwrap().address().to_string()
    }

    pub(crate) async fn operator(&self) -> Operator {
        OperatorClient::new(unix(&self.path("run/manager.sock")).await.unwrap())
            .max_decoding_message_size(64 << 20)
    }

    pub(crate) async fn token(&self, rotate: bool) -> String {
        let request = v1::JoinTokenRequest { role: v1::TokenRole::Worker.into(), rotate };
        self.operator().await.join_token(request).await.unwrap().into_inner().token
    }

    /// TLS that trusts this cluster but has no certificate.
    pub(crate) async fn stranger(&self) -> LiveTls {
        let channel = keyhole_wire::tls::fetch_unpinned(&self.address()).await.unwrap();
        let root = CaClient::new(channel).get_root_ca(v1::GetRootCaRequest {}).await.unwrap();
        LiveTls::new(None, vec![root.into_inner().certificate.to_vec()]).unwrap()
    }

    pub(crate) async fn join(&self, hostname: &str) -> TestNode {
        let token = self.token(false).await;
        self.join_with(hostname, &token).await.unwrap()
    }

    /// Somebody with a manager's certificate, who never takes part: nobody listens at that address.
    pub(crate) async fn join_manager(&self, address: &str) -> TestNode {
        let request = v1::JoinTokenRequest { role: v1::TokenRole::Manager.into(), rotate: false };
        let token = self.operator().await.join_token(request).await.unwrap().into_inner().token;
        let request = v1::JoinRequest {
            token,
            hostname: "absent".to_owned(),
            address: address.to_owned(),
            seal_key: EdgeKeyPair::generate().unwrap().public().as_bytes().to_vec().into(),
            ..Default::default()
        };
        self.join_by(request).await.unwrap()
    }

    pub(crate) async fn join_with(&self, hostname: &str, token: &str) -> Result<TestNode, Status> {
        self.join_by(v1::JoinRequest {
            token: token.to_owned(),
            hostname: hostname.to_owned(),
            ..Default::default()
        })
        .await
    }

    async fn join_by(&self, request: v1::JoinRequest) -> Result<TestNode, Status> {
        let live = self.stranger().await;
        let (channel, _) = connect(&self.address(), &live).await.unwrap();
        let (key, csr) = key_and_csr().unwrap();
        let request = v1::JoinRequest { csr: csr.into(), ..request };
        let answer = CaClient::new(channel).join(request).await?.into_inner();
        let chain = answer.chain.iter().map(|der| der.to_vec()).collect();
        live.set_identity(Identity::new(chain, key).unwrap()).unwrap();
        Ok(TestNode { id: answer.id, cluster: answer.cluster.parse().unwrap(), live })
    }

    /// An operator with those patterns of names, for secrets and for services.
    pub(crate) async fn create_operator(
        &self,
        name: &str,
        role: v1::OperatorRole,
        names: &[&str],
    ) -> TestOperator {
        self.create_operator_for(name, role, names, 3600).await
    }

    /// The same, whose certificate lives so many seconds.
    pub(crate) async fn create_operator_for(
        &self,
        name: &str,
        role: v1::OperatorRole,
        names: &[&str],
        seconds: u64,
    ) -> TestOperator {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (key, csr) = key_and_csr().unwrap();
        let request = v1::CreateOperatorRequest {
            name: name.to_owned(),
            role: role.into(),
            secrets: names.clone(),
            services: names,
            seconds,
            csr: csr.into(),
        };
        let made = self.operator().await.create_operator(request).await.unwrap().into_inner();
        let chain: Vec<_> = made.chain.iter().map(|der| der.to_vec()).collect();
        let key_again = SecretBytes::copy_from(&mut key.as_slice().to_vec()).unwrap();
        let identity = Identity::new(chain, key).unwrap();
        let roots = made.roots.iter().map(|der| der.to_vec()).collect();
        let live = LiveTls::new(Some(identity), roots).unwrap();
        TestOperator { id: made.operator.unwrap().id, live, key: key_again }
    }

    /// All lines but those about the files themselves.
    pub(crate) fn audit_lines(&self) -> Vec<serde_json::Value> {
        let mut files: Vec<_> = std::fs::read_dir(self.path("data/audit"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let text: String =
            files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &serde_json::Value| line.get("file").is_none()).collect()
    }
}

pub(crate) async fn unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://local").connect_with_connector(connector).await
}

/// Seals a value as the CLI does.
pub(crate) async fn sealed(
    operator: &mut Operator,
    operation: InputFor,
    typed: &str,
    value: &[u8],
) -> v1::SealedInput {
    sealed_over(operator, None, operation, typed, value).await
}

/// The same for a TLS connection with that exporter.
pub(crate) async fn sealed_over(
    operator: &mut Operator,
    exporter: Option<&[u8; 32]>,
    operation: InputFor,
    typed: &str,
    value: &[u8],
) -> v1::SealedInput {
    let key = operator.get_seal_key(v1::GetSealKeyRequest {}).await.unwrap().into_inner();
    let cluster: ClusterId = key.cluster.parse().unwrap();
    let to = EdgePublicKey::try_from(key.public_key.as_ref()).unwrap();
    let value = SecretBytes::copy_from(&mut value.to_vec()).unwrap();
    let info = input_info(&cluster, &key.manager, exporter);
    let sealed = seal_one(&to, &info, &input_aad(operation, typed), &value).unwrap();
    v1::SealedInput { enc: sealed.enc.into(), ciphertext: sealed.ciphertext.into() }
}

pub(crate) async fn create(
    operator: &mut Operator,
    name: &str,
    value: &[u8],
) -> Result<v1::SecretChanged, Status> {
    let value = sealed(operator, InputFor::Create, name, value).await;
    let request = v1::CreateSecretRequest {
        name: name.to_owned(),
        labels: Default::default(),
        value: Some(value),
    };
    operator.create_secret(request).await.map(tonic::Response::into_inner)
}

pub(crate) async fn rotate(
    operator: &mut Operator,
    name: &str,
    value: &[u8],
) -> Result<v1::SecretChanged, Status> {
    let value = sealed(operator, InputFor::Rotate, name, value).await;
    let item = v1::rotate_secrets_request::Item { secret: name.to_owned(), value: Some(value) };
    let request = v1::RotateSecretsRequest { items: vec![item] };
    let mut changed = operator.rotate_secrets(request).await?.into_inner().secrets;
    Ok(changed.pop().unwrap())
}

pub(crate) fn grant(source: &str) -> v1::GrantInput {
    v1::GrantInput {
        source: source.to_owned(),
        target: source.to_owned(),
        mode: 0o444,
        ..v1::GrantInput::default()
    }
}

pub(crate) fn object(name: &str) -> v1::ObjectRequest {
    v1::ObjectRequest { object: name.to_owned() }
}

pub(crate) async fn service(
    operator: &mut Operator,
    name: &str,
    secrets: &[&str],
    constraints: &[&str],
) -> v1::ServiceChanged {
    let request = v1::CreateServiceRequest {
        name: name.to_owned(),
        labels: Default::default(),
        grants: secrets.iter().map(|secret| grant(secret)).collect(),
        constraints: constraints.iter().map(|text| text.to_string()).collect(),
    };
    operator.create_service(request).await.unwrap().into_inner()
}

pub(crate) fn task(n: u8) -> String {
    TaskId::from_entropy([n; 16]).to_string()
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{:?} has no {words:?}", status.message());
}

/// Who calls from elsewhere.
pub(crate) struct TestOperator {
    pub(crate) id: String,
    pub(crate) live: LiveTls,
    pub(crate) key: SecretBytes,
}

impl TestOperator {
    pub(crate) async fn connect(&self, manager: &TestManager) -> (Operator, [u8; 32]) {
        let (channel, exporter) = connect(&manager.address(), &self.live).await.unwrap();
        (OperatorClient::new(channel), exporter)
    }
}

/// A machine that joined.
pub(crate) struct TestNode {
    pub(crate) id: String,
    pub(crate) cluster: ClusterId,
    pub(crate) live: LiveTls,
}

impl TestNode {
    pub(crate) async fn dispatch(&self, manager: &TestManager) -> DispatchClient<Channel> {
        let (channel, _) = connect(&manager.address(), &self.live).await.unwrap();
        DispatchClient::new(channel)
    }

    pub(crate) async fn claim(
        &self,
        manager: &TestManager,
        n: u8,
        service: &str,
    ) -> Result<v1::ClaimTaskReply, Status> {
        let request = v1::ClaimTaskRequest {
            id: task(n),
            service: service.to_owned(),
            cgroup: format!("/sys/fs/cgroup/test/{n}"),
        };
        let reply = self.dispatch(manager).await.claim_task(request).await?;
        Ok(reply.into_inner())
    }

    pub(crate) async fn open(&self, manager: &TestManager, live: &[String]) -> NodeStream {
        self.open_after(manager, live, None).await.unwrap()
    }

    pub(crate) async fn open_after(
        &self,
        manager: &TestManager,
        live: &[String],
        last: Option<v1::RevisionRef>,
    ) -> Result<NodeStream, Status> {
        let (channel, exporter) = connect(&manager.address(), &self.live).await.unwrap();
        let pair = EdgeKeyPair::generate().unwrap();
        let mut client = DispatchClient::new(channel).max_decoding_message_size(16 << 20);
        let request = v1::AssignmentsRequest {
            stream_key: pair.public().as_bytes().to_vec().into(),
            last,
            live: live.to_vec(),
        };
        let parts = client.assignments(request).await?.into_inner();
        let mut operator = manager.operator().await;
        let key = operator.get_seal_key(v1::GetSealKeyRequest {}).await.unwrap().into_inner();
        let info = stream_info(&self.cluster, &key.manager, &self.id, &exporter);
        Ok(NodeStream { client, parts, pair, info, opener: None, base: Received::default() })
    }
}

/// The node's end of its stream.
pub(crate) struct NodeStream {
    pub(crate) client: DispatchClient<Channel>,
    parts: Streaming<v1::AssignmentPart>,
    pair: EdgeKeyPair,
    info: keyhole_wire::seal::Info,
    opener: Option<StreamOpener>,
    base: Received,
}

/// What a node has been told so far, opened.
#[derive(Debug, Default, Clone)]
pub(crate) struct Received {
    pub(crate) revision: v1::RevisionRef,
    pub(crate) tasks: BTreeMap<String, v1::AssignedTaskRecord>,
    pub(crate) values: BTreeMap<(String, u64), Vec<u8>>,
    /// What came last: in how many parts, of how many bytes, with how many values; and whether it was complete.
    pub(crate) parts: usize,
    pub(crate) bytes: usize,
    pub(crate) new_values: usize,
    pub(crate) complete: bool,
}

impl Received {
    /// The value that a task's file has.
    pub(crate) fn file(&self, task: &str, target: &str) -> Option<&[u8]> {
        let grant = self.tasks.get(task)?.grants.iter().find(|grant| grant.target == target)?;
        let value = grant.value.as_ref()?;
        self.values.get(&(value.secret.clone(), value.version)).map(Vec::as_slice)
    }
}

impl NodeStream {
    pub(crate) async fn next(&mut self) -> Result<Received, Status> {
        let mut received = Received { parts: 0, bytes: 0, new_values: 0, ..self.base.clone() };
        loop {
            let part = soon("an assignment", self.parts.message()).await?;
            let part = part.ok_or_else(|| Status::cancelled("the stream ended"))?;
            if self.opener.is_none() {
                self.opener = Some(self.pair.stream_opener(&part.enc, &self.info).unwrap());
            }
            received.complete = part.applies_to.is_none();
            if received.complete && received.parts == 0 {
                received = Received { complete: true, ..Received::default() };
            }
            let before = part.applies_to.unwrap_or_default();
            assert!(received.complete || before == self.base.revision, "a gap: {before:?}");
            received.revision = part.results_in.unwrap();
            received.parts += 1;
            received.bytes += prost::Message::encoded_len(&part);
            received.new_values += part.values.len();
            for task in &part.removed_tasks {
                received.tasks.remove(task).unwrap();
            }
            for task in part.tasks {
                received.tasks.insert(task.id.clone(), task);
            }
            for changed in part.changed_grants {
                let task = received.tasks.get_mut(&changed.task).unwrap();
                for grant in changed.grants {
                    let own = task.grants.iter_mut().find(|own| own.id == grant.id);
                    *own.unwrap() = grant;
                }
            }
            for value in part.values {
                let opened = self.open(&value, received.revision);
                let key = value.key.unwrap();
                received.values.insert((key.secret, key.version), opened);
            }
            if !part.more {
                let grants = received.tasks.values().flat_map(|task| &task.grants);
                let value = |grant: &v1::AssignedGrantRecord| grant.value.clone().unwrap();
                let named: BTreeSet<(String, u64)> =
                    grants.map(value).map(|value| (value.secret, value.version)).collect();
                assert!(
                    named.iter().all(|key| received.values.contains_key(key)),
                    "a value misses"
                );
                received.values.retain(|key, _| named.contains(key));
                self.base = received.clone();
                return Ok(received);
            }
        }
    }

    fn open(&mut self, value: &v1::ValueRecord, revision: v1::RevisionRef) -> Vec<u8> {
        let key = value.key.as_ref().unwrap();
        let place = keyhole_domain::ValueKey {
            secret: key.secret.parse().unwrap(),
            version: keyhole_domain::Version::new(key.version).unwrap(),
        };
        let revision = Revision { incarnation: revision.incarnation, index: revision.index };
        let opener = self.opener.as_mut().unwrap();
        let opened = opener.open(&stream_aad(&place, revision), &value.ciphertext).unwrap();
        opened.as_slice().to_vec()
    }

    /// Nothing comes for a while.
    pub(crate) async fn silent(&mut self) {
        let quiet = tokio::time::timeout(Duration::from_millis(300), self.parts.message()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }

    pub(crate) async fn report(&mut self, revision: v1::RevisionRef) {
        let request = v1::ReportRequest { revision: Some(revision) };
        self.client.report(request).await.unwrap();
    }
}
