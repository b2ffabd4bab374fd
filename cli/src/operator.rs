//! The verbs of operators: what they ask of a manager and how its answers are shown.
//!
//! [`Manager`] is the connection; each noun has its module. Rules live in the manager: here is only what a
//! command line adds, so that every client is refused alike.

pub(crate) mod backup;
pub(crate) mod cluster;
pub(crate) mod labels;
pub(crate) mod lock;
pub(crate) mod manager;
pub(crate) mod node;
pub(crate) mod operators;
mod own_ca;
pub(crate) mod secret;
pub(crate) mod service;
mod tasks;
#[cfg(test)]
mod testing;

use std::path::Path;

use keyhole_proto::v1;
use keyhole_proto::v1::operator_client::OperatorClient;
use keyhole_wire::tls;
use tonic::transport::Channel;

use crate::args::Global;
use crate::console::Console;
use crate::context::kept::{Context, Contexts};
use crate::credentials;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::value::Receiver;

/// Answers are as long as the store is large.
const MAX_ANSWER: usize = 1 << 30;

/// A connection to a manager.
pub(crate) struct Manager {
    /// Its requests.
    pub(crate) api: OperatorClient<Channel>,
    exporter: Option<[u8; 32]>,
}

impl Manager {
    /// Connects now.
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        if let Some(context) = Contexts::chosen(global)? {
            return Self::of_context(&context).await;
        }
        let (channel, exporter) = match &global.host {
            None => (host::manager_over_unix(Path::new(host::MANAGER_SOCKET)).await?, None),
            Some(Host::Unix(path)) => (host::manager_over_unix(path).await?, None),
            Some(Host::Tcp(address)) => {
                let live = credentials::load(global)?;
                let (channel, exporter) = tls::connect(address, &live).await.map_err(|error| {
                    Failure::new(format!("cannot reach the manager at tcp://{error}"))
                })?;
                (channel, Some(exporter))
            }
        };
        Ok(Self::on(channel, exporter))
    }

    /// Connects to a manager of the context.
    pub(crate) async fn of_context(context: &Context) -> Result<Self, Failure> {
        let (channel, exporter) = context.connect().await?;
        Ok(Self::on(channel, Some(exporter)))
    }

    fn on(channel: Channel, exporter: Option<[u8; 32]>) -> Self {
        let api = OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Self { api, exporter }
    }

    /// The key that this manager takes values under.
    pub(crate) async fn receiver(&mut self) -> Result<Receiver, Failure> {
        let key = self.api.get_seal_key(v1::GetSealKeyRequest {}).await?;
        Receiver::new(key.get_ref(), self.exporter.as_ref())
    }
}

/// A request about one object.
fn object(text: &str) -> v1::ObjectRequest {
    v1::ObjectRequest { object: text.to_owned() }
}

/// Turns an error into a failure about the thing of that name.
fn about<E: Into<Failure>>(name: &str) -> impl Fn(E) -> Failure {
    move |error| error.into().about(name)
}

/// Does `work` for each name, goes on after a failure, reports each, and fails in the end if one did.
async fn for_each<T>(
    console: &mut Console,
    names: &[String],
    mut work: impl AsyncFnMut(&mut Console, &str) -> Result<T, Failure>,
) -> (Vec<T>, Result<(), Failure>) {
    let mut done = Vec::new();
    let mut outcome = Ok(());
    for name in names {
        match work(console, name).await {
            Ok(result) => done.push(result),
            Err(failure) => {
                console.report(&failure.about(name), 1);
                outcome = Err(Failure::reported());
            }
        }
    }
    (done, outcome)
}
