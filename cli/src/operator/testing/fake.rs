//! The answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use keyhole_domain::ClusterId;
use keyhole_proto::v1::operator_server::{Operator, OperatorServer};
use keyhole_proto::v1::*;
use keyhole_secmem::SecretBytes;
use keyhole_wire::seal::{Aad, EdgeKeyPair, EdgePublicKey, Info, Protocol, seal_one};
use tonic::{Request, Response, Status};

use super::THEN;

const MINUTE: u64 = 60_000_000_000;

/// A manager that always answers the same.
#[derive(Clone)]
pub(super) struct Fake {
    key: Arc<EdgeKeyPair>,
    cluster: ClusterId,
    seen: Arc<Mutex<Vec<String>>>,
    /// What `WatchDelivery` says, one after the other.
    pub(super) progress: Vec<DeliveryProgress>,
}

impl Fake {
    pub(super) fn new() -> Self {
        Self {
            key: Arc::new(EdgeKeyPair::generate().unwrap()),
            cluster: ClusterId::from_entropy([9; 16]),
            seen: Arc::default(),
            progress: Vec::new(),
        }
    }

    pub(super) fn service(&self) -> OperatorServer<Self> {
        OperatorServer::new(self.clone())
    }

    /// What it was asked to change.
    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn see(&self, what: String) {
        self.seen.lock().unwrap().push(what);
    }

    fn open(
        &self,
        operation: &str,
        name: &str,
        sealed: Option<SealedInput>,
    ) -> Result<String, Status> {
        let sealed = sealed.ok_or_else(|| Status::invalid_argument("no value"))?;
        let info = Info::new(Protocol::CliToManager, &self.cluster, "operator", "m1");
        let aad = Aad::new().text(operation).text(name);
        let value = self
            .key
            .open_one(&sealed.enc, &info, &aad, &sealed.ciphertext)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(String::from_utf8_lossy(value.as_slice()).into_owned())
    }
}

fn id(letter: char) -> String {
    letter.to_string().repeat(25)
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn operator(letter: char, name: &str) -> OperatorInfo {
    OperatorInfo {
        id: id(letter),
        name: name.to_owned(),
        role: OperatorRole::Writer.into(),
        secrets: vec!["web-*".to_owned(), "db".to_owned()],
        services: vec!["web".to_owned()],
        created_at: THEN,
        expires_at: THEN + 86_400_000_000_000,
        seconds: 86_400,
    }
}

fn secret(letter: char, name: &str, current: u64) -> SecretInfo {
    let versions = (1..=current).map(|version| VersionInfo {
        version,
        created_at: THEN + (version - 1) * MINUTE,
        size: 32,
        current: version == current,
        pinned: version == 1 && current > 1,
    });
    SecretInfo {
        id: id(letter),
        name: name.to_owned(),
        labels: labels(&[("env", "prod")]),
        created_at: THEN,
        updated_at: THEN + (current - 1) * MINUTE,
        index: 12,
        current,
        versions: versions.collect(),
        services: vec!["web".to_owned()],
    }
}

fn service(constraints: &[&str]) -> ServiceInfo {
    let grant = GrantInfo {
        id: 7,
        secret_id: id('a'),
        secret_name: "db10".to_owned(),
        target: "db/password".to_owned(),
        uid: 33,
        gid: 33,
        mode: 0o400,
        pinned: 1,
    };
    ServiceInfo {
        id: id('s'),
        name: "web".to_owned(),
        created_at: THEN,
        updated_at: THEN,
        index: 14,
        spec: Some(SpecInfo {
            labels: labels(&[("tier", "front")]),
            grants: vec![grant],
            constraints: constraints.iter().map(|c| (*c).to_owned()).collect(),
        }),
        previous: None,
        running: 2,
    }
}

fn node(letter: char, hostname: &str, connected: bool) -> NodeInfo {
    NodeInfo {
        id: id(letter),
        hostname: hostname.to_owned(),
        labels: labels(&[("zone", "eu")]),
        availability: Availability::Active.into(),
        joined_at: THEN,
        index: 3,
        connected,
        address: "10.0.0.7:51000".to_owned(),
        revision: connected.then_some(RevisionRef { incarnation: 1, index: 57 }),
        tasks: 1,
        version: if connected { "0.1.0".to_owned() } else { String::new() },
    }
}

fn manager(letter: char, member: u64) -> ManagerInfo {
    let leader = member == 1;
    ManagerInfo {
        member,
        id: id(letter),
        hostname: format!("manager-{member}"),
        address: format!("10.0.0.{member}:7070"),
        leader,
        voter: leader,
        voter_wanted: true,
        reached: true,
        behind: if leader { 0 } else { 1700 },
        trouble: if leader { String::new() } else { "it is catching up".to_owned() },
        store_number: if leader { 3 } else { 2 },
        store_locked: true,
        store_written_at: if leader { THEN } else { 0 },
        store_behind: !leader,
        store_work: String::new(),
    }
}

fn task(letter: char, state: &str, reason: &str, ended: bool) -> TaskInfo {
    TaskInfo {
        id: id(letter),
        service_id: id('s'),
        service_name: "web".to_owned(),
        node_id: id('n'),
        node_hostname: "alpha".to_owned(),
        cgroup: "/sys/fs/cgroup/keyhole/x".to_owned(),
        claimed_at: THEN,
        state: state.to_owned(),
        reason: reason.to_owned(),
        ended_at: if ended { THEN + MINUTE } else { 0 },
    }
}

fn changed(name: &str, version: u64) -> SecretChanged {
    SecretChanged {
        id: id('a'),
        name: name.to_owned(),
        version,
        revision: Some(RevisionRef { incarnation: 1, index: 60 }),
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Operator for Fake {
    async fn get_seal_key(&self, _: Request<GetSealKeyRequest>) -> Answer<SealKey> {
        Ok(Response::new(SealKey {
            cluster: self.cluster.to_string(),
            manager: "m1".to_owned(),
            public_key: self.key.public().as_bytes().to_vec().into(),
        }))
    }

    async fn create_secret(&self, request: Request<CreateSecretRequest>) -> Answer<SecretChanged> {
        let request = request.into_inner();
        let value = self.open("create", &request.name, request.value)?;
        let mut labels: Vec<_> = request.labels.into_iter().collect();
        labels.sort();
        self.see(format!("create {} {labels:?} {value}", request.name));
        Ok(Response::new(changed(&request.name, 1)))
    }

    async fn rotate_secrets(
        &self,
        request: Request<RotateSecretsRequest>,
    ) -> Answer<SecretsChanged> {
        let mut secrets = Vec::new();
        for item in request.into_inner().items {
            let value = self.open("rotate", &item.secret, item.value)?;
            self.see(format!("rotate {} {value}", item.secret));
            secrets.push(changed(&item.secret, 2));
        }
        Ok(Response::new(SecretsChanged { secrets }))
    }

    async fn rollback_secret(
        &self,
        request: Request<RollbackSecretRequest>,
    ) -> Answer<SecretChanged> {
        let request = request.into_inner();
        self.see(format!("rollback {} {}", request.secret, request.to));
        Ok(Response::new(changed(&request.secret, 1)))
    }

    async fn update_secret(&self, request: Request<UpdateSecretRequest>) -> Answer<SecretChanged> {
        let request = request.into_inner();
        self.see(format!(
            "label {} {:?} {:?}",
            request.secret, request.label_add, request.label_rm
        ));
        Ok(Response::new(changed(&request.secret, 1)))
    }

    async fn remove_secret(&self, request: Request<ObjectRequest>) -> Answer<Removed> {
        let name = request.into_inner().object;
        if name == "db10" {
            return Err(Status::failed_precondition(
                "secret 'db10' is in use by the following service(s): web; remove it from them first",
            ));
        }
        self.see(format!("rm {name}"));
        Ok(Response::new(Removed { id: id('a') }))
    }

    async fn list_secrets(&self, _: Request<ListRequest>) -> Answer<SecretList> {
        let secrets = vec![secret('a', "db10", 3), secret('b', "db2", 1)];
        Ok(Response::new(SecretList { secrets }))
    }

    async fn inspect_secret(&self, request: Request<ObjectRequest>) -> Answer<SecretInfo> {
        match request.into_inner().object.as_str() {
            "db10" => Ok(Response::new(secret('a', "db10", 2))),
            name => Err(Status::not_found(format!("secret {name} not found"))),
        }
    }

    async fn secret_status(&self, _: Request<ObjectRequest>) -> Answer<SecretDelivery> {
        let delivery = |letter, version, connected| TaskDelivery {
            task: id(letter),
            service: "web".to_owned(),
            node: id('n'),
            hostname: "alpha".to_owned(),
            version,
            entitled: 3,
            connected,
        };
        Ok(Response::new(SecretDelivery {
            id: id('a'),
            name: "db10".to_owned(),
            current: 3,
            tasks: vec![delivery('x', 3, true), delivery('y', 2, true), delivery('z', 0, false)],
        }))
    }

    type WatchDeliveryStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<DeliveryProgress, Status>> + Send>>;

    async fn watch_delivery(
        &self,
        request: Request<WatchDeliveryRequest>,
    ) -> Answer<Self::WatchDeliveryStream> {
        let request = request.into_inner();
        self.see(format!("watch {:?} {}", request.revision, request.secrets.len()));
        let steps: Vec<_> = self.progress.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(steps))))
    }

    type BackupStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<BackupPart, Status>> + Send>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        let request = request.into_inner();
        self.see(format!("backup to {:?} {}", request.recipients, request.passphrase.is_some()));
        let header =
            BackupHeader { cluster: id('c'), incarnation: 1, index: 60, ..Default::default() };
        let first = BackupPart { data: b"one ".to_vec().into(), header: Some(header) };
        let rest = match request.recipients.first().map(String::as_str) {
            Some("age1broken") => {
                Err(Status::internal("cannot make the backup; see the manager's log"))
            }
            _ => Ok(BackupPart { data: b"two".to_vec().into(), header: None }),
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(first), rest]))))
    }

    async fn create_service(
        &self,
        request: Request<CreateServiceRequest>,
    ) -> Answer<ServiceChanged> {
        let request = request.into_inner();
        self.see(format!(
            "service {} {:?} {:?}",
            request.name, request.grants, request.constraints
        ));
        Ok(Response::new(ServiceChanged {
            id: id('s'),
            name: request.name,
            revision: None,
            warnings: vec!["no constraint: any node may run it".to_owned()],
        }))
    }

    async fn update_service(
        &self,
        request: Request<UpdateServiceRequest>,
    ) -> Answer<ServiceChanged> {
        let request = request.into_inner();
        self.see(format!("update {:?} {:?}", request.secret_rm, request.constraint_add));
        Ok(Response::new(ServiceChanged {
            id: id('s'),
            name: "web".to_owned(),
            ..Default::default()
        }))
    }

    async fn rollback_service(&self, request: Request<ObjectRequest>) -> Answer<ServiceChanged> {
        match request.into_inner().object.as_str() {
            "future" => Err(Status::unimplemented("")),
            name => Ok(Response::new(ServiceChanged {
                id: id('s'),
                name: name.to_owned(),
                ..Default::default()
            })),
        }
    }

    async fn remove_service(&self, request: Request<ObjectRequest>) -> Answer<Removed> {
        self.see(format!("rm {}", request.into_inner().object));
        Ok(Response::new(Removed { id: id('s') }))
    }

    async fn list_services(&self, _: Request<ListRequest>) -> Answer<ServiceList> {
        Ok(Response::new(ServiceList { services: vec![service(&["node.labels.zone==eu"])] }))
    }

    async fn inspect_service(&self, _: Request<ObjectRequest>) -> Answer<ServiceInfo> {
        Ok(Response::new(service(&[])))
    }

    async fn service_tasks(&self, _: Request<ObjectRequest>) -> Answer<TaskList> {
        Ok(Response::new(TaskList {
            tasks: vec![
                task('t', "Complete", "", true),
                task('u', "Rejected", "node alpha does not meet\nnode.labels.zone==eu", false),
                task('v', "Running", "", false),
            ],
        }))
    }

    async fn find_managers(&self, _: Request<FindManagersRequest>) -> Answer<FoundManagers> {
        Ok(Response::new(FoundManagers { managers: vec!["127.0.0.1:1".to_owned()] }))
    }

    async fn list_managers(&self, _: Request<ListRequest>) -> Answer<ManagerList> {
        Ok(Response::new(ManagerList { managers: vec![manager('p', 2), manager('m', 1)] }))
    }

    async fn promote_manager(&self, request: Request<ObjectRequest>) -> Answer<ManagerInfo> {
        self.see(request.into_inner().object);
        Ok(Response::new(manager('p', 2)))
    }

    async fn demote_manager(&self, request: Request<ObjectRequest>) -> Answer<ManagerInfo> {
        self.see(request.into_inner().object);
        Ok(Response::new(manager('m', 1)))
    }

    async fn remove_manager(&self, request: Request<ObjectRequest>) -> Answer<Removed> {
        self.see(request.into_inner().object);
        Ok(Response::new(Removed { id: id('p') }))
    }

    async fn transfer_leader(&self, request: Request<TransferRequest>) -> Answer<ManagerInfo> {
        self.see(request.into_inner().to);
        Ok(Response::new(manager('m', 1)))
    }

    async fn list_nodes(&self, _: Request<ListRequest>) -> Answer<NodeList> {
        Ok(Response::new(NodeList {
            nodes: vec![node('o', "beta", false), node('n', "alpha", true)],
        }))
    }

    async fn inspect_node(&self, _: Request<ObjectRequest>) -> Answer<NodeInfo> {
        Ok(Response::new(node('n', "alpha", true)))
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Answer<NodeInfo> {
        let request = request.into_inner();
        self.see(format!("{} {:?} {}", request.node, request.label_add, request.availability));
        Ok(Response::new(node('n', "alpha", true)))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Answer<Removed> {
        let request = request.into_inner();
        if !request.force {
            return Err(Status::failed_precondition(format!("node {} is connected", request.node)));
        }
        self.see(format!("rm {}", request.node));
        Ok(Response::new(Removed { id: id('n') }))
    }

    async fn node_tasks(&self, _: Request<ObjectRequest>) -> Answer<TaskList> {
        Ok(Response::new(TaskList { tasks: vec![task('v', "Running", "", false)] }))
    }

    async fn create_operator(
        &self,
        request: Request<CreateOperatorRequest>,
    ) -> Answer<OperatorCertificate> {
        let request = request.into_inner();
        if request.name == "taken" {
            return Err(Status::already_exists("operator taken already exists"));
        }
        self.see(format!(
            "create operator {} {:?} {:?} {:?} for {} s",
            request.name,
            request.role(),
            request.secrets,
            request.services,
            request.seconds
        ));
        Ok(Response::new(OperatorCertificate {
            operator: Some(operator('o', &request.name)),
            cluster: self.cluster.to_string(),
            chain: vec![vec![1, 2, 3].into()],
            roots: vec![vec![4, 5, 6].into()],
            managers: vec!["10.0.0.1:7070".to_owned()],
        }))
    }

    async fn renew_operator(
        &self,
        _: Request<RenewOperatorRequest>,
    ) -> Answer<OperatorCertificate> {
        Err(Status::failed_precondition("use a context"))
    }

    async fn list_operators(&self, _: Request<ListRequest>) -> Answer<OperatorList> {
        let admin = OperatorInfo {
            role: OperatorRole::Admin.into(),
            secrets: vec![],
            services: vec![],
            ..operator('p', "root10")
        };
        Ok(Response::new(OperatorList { operators: vec![admin, operator('o', "root2")] }))
    }

    async fn inspect_operator(&self, request: Request<ObjectRequest>) -> Answer<OperatorInfo> {
        match request.into_inner().object.as_str() {
            "none" => Err(Status::not_found("operator none not found")),
            name => Ok(Response::new(operator('o', name))),
        }
    }

    async fn remove_operator(&self, request: Request<ObjectRequest>) -> Answer<Removed> {
        let name = request.into_inner().object;
        self.see(format!("remove operator {name}"));
        Ok(Response::new(Removed { id: id('o') }))
    }

    async fn audit_heads(&self, _: Request<AuditHeadsRequest>) -> Answer<AuditHeadsReply> {
        Ok(Response::new(AuditHeadsReply::default()))
    }

    async fn cluster_status(&self, _: Request<ClusterStatusRequest>) -> Answer<ClusterInfo> {
        Ok(Response::new(ClusterInfo {
            id: id('c'),
            incarnation: 1,
            created_at: THEN,
            managers: vec![manager('m', 1), manager('p', 2)],
            health: "ok".to_owned(),
            term: 1,
            last_log: 61,
            applied: 60,
            snapshot: 50,
            unconstrained: Unconstrained::Allow.into(),
            quota_bytes: 1 << 30,
            value_bytes: 96,
            certificate_seconds: 86_400,
            ca_expires_at: THEN + 20 * 365 * 24 * 60 * MINUTE,
            certificate_expires_at: THEN + 24 * 60 * MINUTE,
            secrets: 2,
            services: 1,
            nodes: 2,
            connected: 1,
            epoch: 1,
            under_old_keys: 0,
            locked: false,
            autolock: true,
            store_number: 3,
            shred: Some(ShredInfo { at: THEN, done: false, values: false, members: vec![2] }),
            refused: 3,
            audits: vec![ManagerAudit {
                member: 1,
                id: id('m'),
                heads: vec![AuditHead { seq: 44, hash: Default::default(), at: THEN }],
            }],
            last_backup_at: THEN,
            ca_number: 1,
            ca_since: THEN,
            keys_since: THEN,
            former_certificates: 0,
            ca_certificate: vec![7; 50].into(),
            unlock_key_unseen: false,
            backup_of_former_ca: true,
            former_cas_until: 0,
        }))
    }

    async fn update_cluster(&self, request: Request<UpdateClusterRequest>) -> Answer<ClusterInfo> {
        let request = request.into_inner();
        self.see(format!("{:?} {:?}", request.quota_bytes, request.certificate_seconds));
        Ok(Response::new(ClusterInfo { id: id('c'), ..Default::default() }))
    }

    async fn rotate_ca(&self, _: Request<RotateCaRequest>) -> Answer<ClusterInfo> {
        Ok(Response::new(ClusterInfo { ca_number: 2, ..Default::default() }))
    }

    async fn rotate_keys(&self, _: Request<RotateKeysRequest>) -> Answer<ClusterInfo> {
        Ok(Response::new(ClusterInfo { epoch: 2, under_old_keys: 7, ..Default::default() }))
    }

    async fn rotate_store_keys(&self, _: Request<RotateStoreKeysRequest>) -> Answer<ClusterInfo> {
        Ok(Response::new(ClusterInfo { store_number: 2, ..Default::default() }))
    }

    async fn shred(&self, _: Request<ShredRequest>) -> Answer<ClusterInfo> {
        let shred = Some(ShredInfo { at: THEN, values: true, ..Default::default() });
        Ok(Response::new(ClusterInfo { shred, ..Default::default() }))
    }

    async fn unlock_key(&self, request: Request<UnlockKeyRequest>) -> Answer<UnlockKeyReply> {
        let request = request.into_inner();
        self.see(format!("rotate {} seen {}", request.rotate, request.seen));
        if request.seen != 0 {
            return Ok(Response::new(UnlockKeyReply { key: None, number: request.seen }));
        }
        let to = EdgePublicKey::try_from(request.reply_key.as_ref()).unwrap();
        let info = Info::new(Protocol::ManagerToCli, &self.cluster, "m1", "operator");
        let key = SecretBytes::copy_from(&mut b"KHKEY-1-key".to_vec()).unwrap();
        let sealed = seal_one(&to, &info, &Aad::new().text("unlock key"), &key).unwrap();
        let (enc, ciphertext) = (sealed.enc.into(), sealed.ciphertext.into());
        Ok(Response::new(UnlockKeyReply { key: Some(SealedInput { enc, ciphertext }), number: 3 }))
    }

    async fn unlock(&self, _: Request<UnlockRequest>) -> Answer<UnlockReply> {
        Ok(Response::new(UnlockReply {}))
    }

    async fn join_token(&self, _: Request<JoinTokenRequest>) -> Answer<JoinTokenReply> {
        Ok(Response::new(JoinTokenReply {
            token: "KH-1-digest-secret".to_owned(),
            address: "10.0.0.1:7070".to_owned(),
        }))
    }
}
