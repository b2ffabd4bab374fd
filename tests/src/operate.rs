//! An operator who speaks to the manager's socket directly: many changes a second, each value sealed as the CLI does.
//!
//! Depends on the wire formats. Invariant: what is [`Acked`] was acknowledged by the manager, nothing else is.

use std::path::Path;

use keyhole_domain::ClusterId;
use keyhole_proto::v1;
use keyhole_proto::v1::operator_client::OperatorClient;
use keyhole_secmem::SecretBytes;
use keyhole_wire::seal::{Aad, EdgePublicKey, Info, Protocol, seal_one};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// An operator's connection to one manager process.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The rest of the API.
    pub api: OperatorClient<Channel>,
    key: EdgePublicKey,
    info: Info,
    manager: String,
}

/// A change that the manager acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    /// The secret's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The version that is current now.
    pub version: u64,
    /// The state it is part of.
    pub revision: v1::RevisionRef,
}

impl Operator {
    /// Connects to the manager's socket and asks for the key that it takes values under.
    pub async fn connect(socket: &Path) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let channel = endpoint.map_err(unavailable)?.connect().await.map_err(unavailable)?;
        let mut api = OperatorClient::new(channel).max_decoding_message_size(1 << 30);
        let key = api.get_seal_key(v1::GetSealKeyRequest {}).await?.into_inner();
        let cluster: ClusterId = key.cluster.parse().map_err(unavailable)?;
        Ok(Self {
            key: EdgePublicKey::try_from(key.public_key.as_ref()).map_err(unavailable)?,
            info: Info::new(Protocol::CliToManager, &cluster, "operator", &key.manager),
            manager: key.manager,
            api,
        })
    }

    /// The id in the manager's certificate.
    pub fn manager(&self) -> &str {
        &self.manager
    }

    /// All that can be asked.
    pub fn api(&self) -> OperatorClient<Channel> {
        self.api.clone()
    }

    /// A new secret.
    pub async fn create(&self, name: &str, value: &[u8]) -> Result<Acked, Status> {
        let changed = self.api.clone().create_secret(self.new_secret(name, value)).await?;
        Ok(acked(changed.into_inner()))
    }

    /// What asks for a new secret, sealed and not sent yet.
    pub fn new_secret(&self, name: &str, value: &[u8]) -> v1::CreateSecretRequest {
        v1::CreateSecretRequest {
            name: name.to_owned(),
            labels: Default::default(),
            value: Some(self.seal("create", name, value)),
        }
    }

    /// The next version of a secret.
    pub async fn rotate(&self, name: &str, value: &[u8]) -> Result<Acked, Status> {
        let mut acked = self.rotate_all(&[(name, value)]).await?;
        assert_eq!(acked.len(), 1, "one secret was rotated");
        Ok(acked.remove(0))
    }

    /// The next version of several secrets, in one command.
    pub async fn rotate_all(&self, secrets: &[(&str, &[u8])]) -> Result<Vec<Acked>, Status> {
        let item = |(name, value): &(&str, &[u8])| {
            let value = Some(self.seal("rotate", name, value));
            v1::rotate_secrets_request::Item { secret: (*name).to_owned(), value }
        };
        let request = v1::RotateSecretsRequest { items: secrets.iter().map(item).collect() };
        let changed = self.api.clone().rotate_secrets(request).await?.into_inner();
        Ok(changed.secrets.into_iter().map(acked).collect())
    }

    /// A new service with these grants; a pin of 0 follows the current version.
    pub async fn service(
        &self,
        name: &str,
        grants: &[(String, String, u64)],
    ) -> Result<(), Status> {
        let grant = |(source, target, pinned): &(String, String, u64)| v1::GrantInput {
            source: source.clone(),
            target: target.clone(),
            uid: 0,
            gid: 0,
            mode: 0o444,
            pinned: *pinned,
        };
        let request = v1::CreateServiceRequest {
            name: name.to_owned(),
            labels: Default::default(),
            grants: grants.iter().map(grant).collect(),
            constraints: Vec::new(),
        };
        self.api.clone().create_service(request).await.map(drop)
    }

    /// Waits until every connected node reported the revision; gives the last progress.
    pub async fn delivered(
        &self,
        revision: v1::RevisionRef,
    ) -> Result<v1::DeliveryProgress, Status> {
        let request = v1::WatchDeliveryRequest { revision: Some(revision), secrets: Vec::new() };
        let mut stream = self.api.clone().watch_delivery(request).await?.into_inner();
        let mut last = v1::DeliveryProgress::default();
        while let Some(progress) = stream.message().await? {
            last = progress;
        }
        Ok(last)
    }

    fn seal(&self, operation: &str, name: &str, value: &[u8]) -> v1::SealedInput {
        let value = SecretBytes::copy_from(&mut value.to_vec()).expect("locked memory");
        let aad = Aad::new().text(operation).text(name);
        let sealed = seal_one(&self.key, &self.info, &aad, &value).expect("a usable key");
        v1::SealedInput { enc: sealed.enc.into(), ciphertext: sealed.ciphertext.into() }
    }
}

fn acked(changed: v1::SecretChanged) -> Acked {
    Acked {
        id: changed.id,
        name: changed.name,
        version: changed.version,
        revision: changed.revision.expect("a change has a revision"),
    }
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::new(Code::Unavailable, error.to_string())
}
