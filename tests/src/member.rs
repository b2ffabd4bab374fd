//! A node's side of the protocol in the test's own process: joins, claims tasks, and opens what it is sent.
//!
//! Depends on the wire formats. Invariant: a value is only given out when its seal opened for its secret, version and
//! revision.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use keyhole_domain::{ClusterId, TaskId};
use keyhole_proto::v1;
use keyhole_proto::v1::ca_client::CaClient;
use keyhole_proto::v1::dispatch_client::DispatchClient;
use keyhole_secmem::SecretBytes;
use keyhole_wire::seal::{Aad, EdgeKeyPair, Info, Protocol, StreamOpener};
use keyhole_wire::tls::{Identity, LiveTls, certificate, connect, fetch_unpinned};
use keyhole_wire::token::JoinToken;
use tonic::transport::Channel;

/// A joined node.
#[derive(Debug)]
pub struct Member {
    live: LiveTls,
    cluster: ClusterId,
    id: String,
    address: String,
}

/// One file of an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedFile {
    /// The secret's name.
    pub name: String,
    /// The version.
    pub version: u64,
    /// The opened value.
    pub bytes: Vec<u8>,
}

/// By task and target.
pub type AssignedFiles = BTreeMap<(String, String), AssignedFile>;

impl Member {
    /// Joins with a token, as `keyhole node run` does at its first start.
    pub async fn join(address: SocketAddr, token: &str, hostname: &str) -> Result<Self> {
        let address = address.to_string();
        let token_text = token.trim();
        let token = JoinToken::parse(token_text)?;
        let unpinned = fetch_unpinned(&address).await?;
        let root = CaClient::new(unpinned).get_root_ca(v1::GetRootCaRequest {}).await?;
        let root = root.into_inner().certificate.to_vec();
        ensure!(token.pins(&root), "the manager's root is not the token's");
        let (key, csr) = certificate::key_and_csr()?;
        let pinned = LiveTls::new(None, vec![root])?;
        let (channel, _) = connect(&address, &pinned).await?;
        let request = v1::JoinRequest {
            token: token_text.to_owned(),
            csr: csr.into(),
            hostname: hostname.to_owned(),
            ..Default::default()
        };
        let issued = CaClient::new(channel).join(request).await?.into_inner();
        let identity = Identity::new(owned(issued.chain), key)?;
        let live = LiveTls::new(Some(identity), owned(issued.roots))?;
        Ok(Self { live, cluster: issued.cluster.parse()?, id: issued.id, address })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its certificate.
    pub fn identity(&self) -> Identity {
        let identity = self.live.identity().expect("it joined");
        let chain = identity.chain().map(<[u8]>::to_vec).collect();
        let key = SecretBytes::copy_from(&mut identity.key().as_slice().to_vec());
        Identity::new(chain, key.expect("locked memory")).expect("it is one")
    }

    /// The certificates that it trusts.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        self.live.roots()
    }

    /// Claims one new task of each service and gives all their files, opened. Earlier tasks of this node end by it.
    pub async fn files(&self, services: &[&str], manager: &str) -> Result<AssignedFiles> {
        let (_stream, first) = self.open(services, manager).await?;
        collect(first.tasks, &first.values)
    }

    /// The same, with the stream that goes on.
    pub async fn open(&self, services: &[&str], manager: &str) -> Result<(Stream, Assigned)> {
        let (channel, exporter) = connect(&self.address, &self.live).await?;
        let mut api = DispatchClient::new(channel).max_decoding_message_size(1 << 30);
        let mut live = Vec::new();
        for service in services {
            live.push(claim(&mut api, service).await?);
        }
        let keys = EdgeKeyPair::generate()?;
        let request = v1::AssignmentsRequest {
            stream_key: keys.public().as_bytes().to_vec().into(),
            last: None,
            live: live.clone(),
        };
        let parts = api.assignments(request).await?.into_inner();
        let info = Info::new(Protocol::ManagerToNode, &self.cluster, manager, &self.id);
        let mut stream = Stream { parts, keys, info: info.exporter(&exporter), opener: None };
        let first = stream.next().await?;
        Ok((stream, first))
    }
}

/// What one change of an assignment brought.
#[derive(Debug, Default)]
pub struct Assigned {
    /// Tasks that are new or other.
    pub tasks: Vec<v1::AssignedTaskRecord>,
    /// Values that came with it, opened, by secret and version.
    pub values: BTreeMap<(String, u64), Vec<u8>>,
}

/// A node's open stream of assignments.
#[derive(Debug)]
pub struct Stream {
    parts: tonic::Streaming<v1::AssignmentPart>,
    keys: EdgeKeyPair,
    info: Info,
    opener: Option<StreamOpener>,
}

impl Stream {
    /// The next change, whole.
    pub async fn next(&mut self) -> Result<Assigned> {
        let mut assigned = Assigned::default();
        loop {
            let part = self.parts.message().await?.context("the stream ended early")?;
            if !part.enc.is_empty() {
                self.opener = Some(self.keys.stream_opener(&part.enc, &self.info)?);
            }
            let opener = self.opener.as_mut().context("no part had HPKE's key")?;
            let revision = part.results_in.context("a part without a revision")?;
            for record in &part.values {
                let key = record.key.clone().context("a value without a key")?;
                let aad = Aad::new().text(&key.secret).number(key.version);
                let aad = aad.number(revision.incarnation).number(revision.index);
                let opened = opener.open(&aad, &record.ciphertext)?;
                assigned.values.insert((key.secret, key.version), opened.as_slice().to_vec());
            }
            assigned.tasks.extend(part.tasks);
            if !part.more {
                return Ok(assigned);
            }
        }
    }
}

fn owned(list: Vec<impl AsRef<[u8]>>) -> Vec<Vec<u8>> {
    list.iter().map(|der| der.as_ref().to_vec()).collect()
}

async fn claim(api: &mut DispatchClient<Channel>, service: &str) -> Result<String> {
    let mut entropy = [0; 16];
    getrandom::fill(&mut entropy).map_err(|error| anyhow::anyhow!("{error}"))?;
    let id = TaskId::from_entropy(entropy).to_string();
    let request = v1::ClaimTaskRequest {
        id: id.clone(),
        service: service.to_owned(),
        cgroup: "/test".to_owned(),
    };
    let reply = api.claim_task(request).await?.into_inner();
    ensure!(reply.rejected.is_empty(), "claim of {service}: {}", reply.rejected);
    Ok(id)
}

fn collect(
    tasks: Vec<v1::AssignedTaskRecord>,
    values: &BTreeMap<(String, u64), Vec<u8>>,
) -> Result<AssignedFiles> {
    let mut files = AssignedFiles::new();
    for task in tasks {
        if !task.rejected.is_empty() {
            bail!("task {} of {} was rejected: {}", task.id, task.service, task.rejected);
        }
        for grant in task.grants {
            let key = grant.value.context("a grant without a value")?;
            let (secret, version) = (key.secret, key.version);
            let bytes = values.get(&(secret, version)).context("a grant whose value is missing")?;
            ensure!(bytes.len() == grant.size as usize, "{}: size {}", grant.target, grant.size);
            let file = AssignedFile { name: grant.name, version, bytes: bytes.clone() };
            files.insert((task.id.clone(), grant.target), file);
        }
    }
    Ok(files)
}
