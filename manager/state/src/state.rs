//! The whole state: its tables, and how it is loaded from rows and written back as rows.

use std::collections::{BTreeMap, BTreeSet};

use keyhole_domain::{NodeId, Revision, SecretId, SecretName, ServiceId, ServiceName, TaskId};

use crate::keyring::ValueCount;
use crate::{Cluster, Member, Node, Operator, Row, RowKey, Secret, Service, Task, Versions};

/// The cluster's state at one log index. Equal logs make equal states.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    pub(crate) index: u64,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) secrets: BTreeMap<SecretId, Secret>,
    pub(crate) secret_names: BTreeMap<SecretName, SecretId>,
    pub(crate) services: BTreeMap<ServiceId, Service>,
    pub(crate) service_names: BTreeMap<ServiceName, ServiceId>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) operators: BTreeMap<NodeId, Operator>,
    /// All kept values together.
    pub(crate) values: ValueCount,
}

impl State {
    /// The index of the last applied command.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The point in history that this state is.
    pub fn revision(&self) -> Revision {
        let incarnation = self.cluster.as_ref().map_or(0, |cluster| cluster.incarnation);
        Revision { incarnation, index: self.index }
    }

    /// The cluster, once it is initialised.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The managers, by member id.
    pub fn members(&self) -> &BTreeMap<u64, Member> {
        &self.members
    }

    /// All secrets, by id.
    pub fn secrets(&self) -> &BTreeMap<SecretId, Secret> {
        &self.secrets
    }

    /// All services, by id.
    pub fn services(&self) -> &BTreeMap<ServiceId, Service> {
        &self.services
    }

    /// All tasks, by id, the remembered ended ones too.
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// All operators, by id.
    pub fn operators(&self) -> &BTreeMap<NodeId, Operator> {
        &self.operators
    }

    /// Bytes of all kept values together.
    pub fn value_bytes(&self) -> u64 {
        self.values.bytes
    }

    /// The state that rows make, as of a log index. Rows may come in any order.
    ///
    /// A version whose secret has no row is left out; the invariants of the store make that impossible.
    pub fn from_rows(index: u64, rows: impl IntoIterator<Item = Row>) -> Self {
        let mut state = Self { index, ..Self::default() };
        // A map that is made of a list is full; one that grows row by row leaves a third of its memory empty, or half of
        // it where they come in order.
        let (mut secrets, mut versions) = (Vec::new(), Vec::new());
        let (mut services, mut tasks) = (Vec::new(), Vec::new());
        for row in rows {
            match row {
                Row::Cluster(cluster) => state.cluster = Some(*cluster),
                Row::Member(member) => {
                    state.members.insert(member.id, member);
                }
                Row::Secret(secret) => secrets.push((secret.id, secret)),
                Row::Version(id, number, version) => {
                    state.values.add(&version.value);
                    versions.push((id, number, version));
                }
                Row::Service(service) => services.push((service.id, service)),
                Row::Task(task) => tasks.push((task.id, task)),
                Row::Node(node) => {
                    state.nodes.insert(node.id, node);
                }
                Row::Operator(operator) => {
                    state.operators.insert(operator.id, operator);
                }
            }
        }
        versions.sort_unstable_by_key(|(id, number, _)| (*id, *number));
        let mut versions = versions.into_iter().peekable();
        secrets.sort_unstable_by_key(|(id, _)| *id);
        for (id, secret) in &mut secrets {
            while versions.next_if(|(of, ..)| of < id).is_some() {}
            while let Some((_, number, version)) = versions.next_if(|(of, ..)| of == id) {
                secret.versions.insert(number, version);
            }
        }
        state.secret_names =
            secrets.iter().map(|(id, secret)| (secret.name.clone(), *id)).collect();
        state.secrets = secrets.into_iter().collect();
        state.service_names =
            services.iter().map(|(id, service)| (service.name.clone(), *id)).collect();
        state.services = services.into_iter().collect();
        state.tasks = tasks.into_iter().collect();
        state
    }

    /// The row of a key now, or nothing if it was removed. A secret's row comes without its versions.
    pub fn row(&self, key: RowKey) -> Option<Row> {
        match key {
            RowKey::Cluster => self.cluster.clone().map(Box::new).map(Row::Cluster),
            RowKey::Member(id) => self.members.get(&id).cloned().map(Row::Member),
            RowKey::Secret(id) => self.secrets.get(&id).map(|secret| {
                let bare = Secret {
                    versions: Versions::default(),
                    name: secret.name.clone(),
                    labels: secret.labels.clone(),
                    ..*secret
                };
                Row::Secret(bare)
            }),
            RowKey::Version(id, version) => {
                let kept = self.secrets.get(&id)?.versions.get(version)?;
                Some(Row::Version(id, version, kept.clone()))
            }
            RowKey::Service(id) => self.services.get(&id).cloned().map(Row::Service),
            RowKey::Task(id) => self.tasks.get(&id).cloned().map(Row::Task),
            RowKey::Node(id) => self.nodes.get(&id).cloned().map(Row::Node),
            RowKey::Operator(id) => self.operators.get(&id).cloned().map(Row::Operator),
        }
    }

    /// The keys of all rows, in order.
    pub fn row_keys(&self) -> BTreeSet<RowKey> {
        let versions = self.secrets.values().flat_map(|secret| {
            secret.versions.numbers().map(|version| RowKey::Version(secret.id, version))
        });
        let mut keys: BTreeSet<RowKey> = versions.collect();
        keys.extend(self.cluster.iter().map(|_| RowKey::Cluster));
        keys.extend(self.members.keys().map(|id| RowKey::Member(*id)));
        keys.extend(self.secrets.keys().map(|id| RowKey::Secret(*id)));
        keys.extend(self.services.keys().map(|id| RowKey::Service(*id)));
        keys.extend(self.tasks.keys().map(|id| RowKey::Task(*id)));
        keys.extend(self.nodes.keys().map(|id| RowKey::Node(*id)));
        keys.extend(self.operators.keys().map(|id| RowKey::Operator(*id)));
        keys
    }
}
