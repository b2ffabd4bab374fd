//! The Operator service: what operators ask of the cluster.
//!
//! Depends on the shell around the state. Invariant: each RPC is one action of [`act`], and its handler takes the proof;
//! all rules are the state's, all names are resolved by it.

mod audits;
mod backup;
mod cluster;
mod delivery;
mod labels;
mod lock;
mod locked;
mod managers;
mod nodes;
mod operators;
mod secrets;
mod services;
mod tasks;

use std::sync::Arc;

use keyhole_proto::v1;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::authz::{Action, Caller, OperatorSubject, act};
use crate::shell::Shell;
pub(crate) use locked::LockedApi;

/// The service; clones share the manager.
#[derive(Clone)]
pub struct OperatorApi(pub(crate) Arc<Shell>);

/// An action of this service.
trait Asked: Action<Subject = OperatorSubject> {}

impl<A: Action<Subject = OperatorSubject>> Asked for A {}

macro_rules! operator_api {
    ($($method:ident($request:ident) -> $reply:ident: $action:ident, $handler:path;)*) => {
        #[tonic::async_trait]
        impl v1::operator_server::Operator for OperatorApi {
            $(async fn $method(
                &self,
                request: Request<v1::$request>,
            ) -> Result<Response<v1::$reply>, Status> {
                let by = self.0.authorize_latest::<act::$action, _>(&request).await?;
                $handler(&self.0, &by, request.into_inner()).await.map(Response::new)
            })*

            async fn get_seal_key(
                &self,
                request: Request<v1::GetSealKeyRequest>,
            ) -> Result<Response<v1::SealKey>, Status> {
                let by = self.0.authorize_latest::<act::GetSealKey, _>(&request).await?;
                secrets::seal_key(&self.0, &by, request.into_inner()).await.map(Response::new)
            }

            async fn unlock(
                &self,
                request: Request<v1::UnlockRequest>,
            ) -> Result<Response<v1::UnlockReply>, Status> {
                self.0.authorize::<act::Unlock, _>(&request)?;
                Err(Status::failed_precondition("this manager is not locked"))
            }

            // To who is on its machine it must answer also where nobody leads: to say so. From elsewhere somebody may
            // call whom the others have removed.
            async fn cluster_status(
                &self,
                request: Request<v1::ClusterStatusRequest>,
            ) -> Result<Response<v1::ClusterInfo>, Status> {
                let by = match Caller::is_local(&request) {
                    true => self.0.authorize::<act::ClusterStatus, _>(&request)?,
                    false => self.0.authorize_latest::<act::ClusterStatus, _>(&request).await?,
                };
                cluster::status(&self.0, &by).await.map(Response::new)
            }

            type WatchDeliveryStream = ReceiverStream<Result<v1::DeliveryProgress, Status>>;

            async fn watch_delivery(
                &self,
                request: Request<v1::WatchDeliveryRequest>,
            ) -> Result<Response<Self::WatchDeliveryStream>, Status> {
                let by = self.0.authorize_latest::<act::WatchDelivery, _>(&request).await?;
                let shell = self.0.clone();
                delivery::watch(shell, by, request.into_inner()).map(Response::new)
            }

            type BackupStream = ReceiverStream<Result<v1::BackupPart, Status>>;

            async fn backup(
                &self,
                request: Request<v1::BackupRequest>,
            ) -> Result<Response<Self::BackupStream>, Status> {
                let by = self.0.authorize_latest::<act::Backup, _>(&request).await?;
                backup::start(self.0.clone(), by, request.into_inner()).await.map(Response::new)
            }
        }

        /// Of all this a locked manager answers three.
        #[tonic::async_trait]
        impl v1::operator_server::Operator for LockedApi {
            $(async fn $method(
                &self,
                _: Request<v1::$request>,
            ) -> Result<Response<v1::$reply>, Status> {
                Err(locked::locked())
            })*

            async fn get_seal_key(
                &self,
                request: Request<v1::GetSealKeyRequest>,
            ) -> Result<Response<v1::SealKey>, Status> {
                self.seal_key(&request).map(Response::new)
            }

            async fn cluster_status(
                &self,
                request: Request<v1::ClusterStatusRequest>,
            ) -> Result<Response<v1::ClusterInfo>, Status> {
                self.status(&request).map(Response::new)
            }

            async fn unlock(
                &self,
                request: Request<v1::UnlockRequest>,
            ) -> Result<Response<v1::UnlockReply>, Status> {
                self.take_key(request).await.map(Response::new)
            }

            type WatchDeliveryStream = ReceiverStream<Result<v1::DeliveryProgress, Status>>;

            async fn watch_delivery(
                &self,
                _: Request<v1::WatchDeliveryRequest>,
            ) -> Result<Response<Self::WatchDeliveryStream>, Status> {
                Err(locked::locked())
            }

            type BackupStream = ReceiverStream<Result<v1::BackupPart, Status>>;

            async fn backup(
                &self,
                _: Request<v1::BackupRequest>,
            ) -> Result<Response<Self::BackupStream>, Status> {
                Err(locked::locked())
            }
        }
    };
}

operator_api! {
    create_secret(CreateSecretRequest) -> SecretChanged: CreateSecret, secrets::create;
    rotate_secrets(RotateSecretsRequest) -> SecretsChanged: RotateSecrets, secrets::rotate;
    rollback_secret(RollbackSecretRequest) -> SecretChanged: RollbackSecret, secrets::rollback;
    update_secret(UpdateSecretRequest) -> SecretChanged: UpdateSecret, secrets::update;
    remove_secret(ObjectRequest) -> Removed: RemoveSecret, secrets::remove;
    list_secrets(ListRequest) -> SecretList: ListSecrets, secrets::list;
    inspect_secret(ObjectRequest) -> SecretInfo: InspectSecret, secrets::inspect;
    secret_status(ObjectRequest) -> SecretDelivery: SecretStatus, delivery::secret_status;
    create_service(CreateServiceRequest) -> ServiceChanged: CreateService, services::create;
    update_service(UpdateServiceRequest) -> ServiceChanged: UpdateService, services::update;
    rollback_service(ObjectRequest) -> ServiceChanged: RollbackService, services::rollback;
    remove_service(ObjectRequest) -> Removed: RemoveService, services::remove;
    list_services(ListRequest) -> ServiceList: ListServices, services::list;
    inspect_service(ObjectRequest) -> ServiceInfo: InspectService, services::inspect;
    service_tasks(ObjectRequest) -> TaskList: ServiceTasks, tasks::of_service;
    list_nodes(ListRequest) -> NodeList: ListNodes, nodes::list;
    inspect_node(ObjectRequest) -> NodeInfo: InspectNode, nodes::inspect;
    update_node(UpdateNodeRequest) -> NodeInfo: UpdateNode, nodes::update;
    remove_node(RemoveNodeRequest) -> Removed: RemoveNode, nodes::remove;
    node_tasks(ObjectRequest) -> TaskList: NodeTasks, tasks::of_node;
    update_cluster(UpdateClusterRequest) -> ClusterInfo: UpdateCluster, cluster::update;
    find_managers(FindManagersRequest) -> FoundManagers: FindManagers, managers::find_managers;
    list_managers(ListRequest) -> ManagerList: ListManagers, managers::list;
    promote_manager(ObjectRequest) -> ManagerInfo: PromoteManager, managers::promote;
    demote_manager(ObjectRequest) -> ManagerInfo: DemoteManager, managers::demote;
    remove_manager(ObjectRequest) -> Removed: RemoveManager, managers::remove;
    transfer_leader(TransferRequest) -> ManagerInfo: TransferLeader, managers::transfer_leader;
    rotate_keys(RotateKeysRequest) -> ClusterInfo: RotateKeys, cluster::rotate_keys;
    rotate_ca(RotateCaRequest) -> ClusterInfo: RotateCa, cluster::rotate_ca;
    rotate_store_keys(RotateStoreKeysRequest) -> ClusterInfo: RotateStoreKeys, lock::rotate_store_keys;
    shred(ShredRequest) -> ClusterInfo: Shred, lock::shred;
    unlock_key(UnlockKeyRequest) -> UnlockKeyReply: UnlockKey, lock::unlock_key;
    join_token(JoinTokenRequest) -> JoinTokenReply: JoinToken, cluster::join_token;
    create_operator(CreateOperatorRequest) -> OperatorCertificate: CreateOperator, operators::create;
    renew_operator(RenewOperatorRequest) -> OperatorCertificate: RenewOperator, operators::renew;
    list_operators(ListRequest) -> OperatorList: ListOperators, operators::list;
    inspect_operator(ObjectRequest) -> OperatorInfo: InspectOperator, operators::inspect;
    remove_operator(ObjectRequest) -> Removed: RemoveOperator, operators::remove;
    audit_heads(AuditHeadsRequest) -> AuditHeadsReply: AuditHeads, audits::heads;
}
