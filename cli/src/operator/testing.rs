//! A manager's and a node's answers, given over a real socket, so that tests see what the whole CLI prints.
//!
//! It has no rules: it opens what was sealed for it, remembers what it was asked, and gives the same answers
//! always. The rules are tested where they live.

mod fake;
mod golden;
mod golden_more;
mod machine;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::{CommandFactory, FromArgMatches};
use keyhole_proto::v1::control_server::ControlServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

use crate::args::Cli;
use crate::console::Console;
use fake::Fake;
use machine::FakeNode;

/// 2023-11-14T22:13:20Z, in nanoseconds; the clock of these tests stands two minutes later.
const THEN: u64 = 1_700_000_000_000_000_000;

fn now() -> u64 {
    THEN + 120_000_000_000
}

/// What one command printed, and its exit code.
#[derive(Debug)]
struct Ran {
    out: String,
    err: String,
    code: u8,
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Runs one command line against `fake`, which listens as long as that takes.
fn keyhole_at(fake: &Fake, words: &[&str]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("manager.sock");
    let host = format!("unix://{}", socket.display());
    let node_socket = folder.path().join("node.sock");
    let node = node_socket.display().to_string();
    let places = ["keyhole", "--host", &host, "--node-socket", &node];
    let argv = places.into_iter().chain(words.iter().copied());
    let matches = crate::config::layer(Cli::command(), toml::Table::new())
        .unwrap()
        .try_get_matches_from(argv)
        .unwrap_or_else(|error| panic!("{error}"));
    let cli = Cli::from_arg_matches(&matches).unwrap();
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut console = Console::of(Box::new(out.clone()), Box::new(err.clone()), now);
    console.output = cli.global.output;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(fake.service())
            .serve_with_incoming(listener);
        let server = tokio::spawn(server);
        let listener = UnixListenerStream::new(UnixListener::bind(&node_socket).unwrap());
        let node = tonic::transport::Server::builder()
            .add_service(ControlServer::new(FakeNode))
            .serve_with_incoming(listener);
        let node = tokio::spawn(node);
        let outcome = crate::ask(cli.command, &cli.global, &mut console).await;
        server.abort();
        node.abort();
        outcome
    });
    let code = outcome.map_or_else(
        |failure| {
            let exit = failure.exit_code();
            console.report(&failure, exit);
            exit
        },
        |()| 0,
    );
    Ran { out: out.text(), err: err.text(), code }
}

fn keyhole(words: &[&str]) -> Ran {
    keyhole_at(&Fake::new(), words)
}
