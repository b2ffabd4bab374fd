//! A relay in front of a manager's port that counts what passes, both ways: what a change costs on the wire, TLS included.
//!
//! The manager is told to advertise the relay's address, so that nodes come through it however they learned of the manager.
//! Invariant: every byte is counted before it is passed on, so what an end has received is in the count.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::cluster::free_address;

/// The relay; its threads end with the process.
#[derive(Debug)]
pub struct Tap {
    listener: TcpListener,
    bytes: Arc<AtomicU64>,
}

impl Default for Tap {
    fn default() -> Self {
        let listener = TcpListener::bind(free_address()).expect("a loopback address");
        Self { listener, bytes: Arc::new(AtomicU64::new(0)) }
    }
}

impl Tap {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// From now on each connection is passed on to `target`.
    pub fn pass_to(&self, target: SocketAddr) {
        let listener = self.listener.try_clone().expect("a descriptor is left");
        let count = Arc::clone(&self.bytes);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // A target that is not there is a connection that ends, as it would without us.
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let ends = from.try_clone().and_then(|from| Ok((from, to.try_clone()?)));
                    let (from, to) = ends.expect("descriptors are left");
                    let count = Arc::clone(&count);
                    thread::spawn(move || pass(from, to, &count));
                }
            }
        });
    }

    /// How much has passed, both ways.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        count.fetch_add(read as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = to.shutdown(Shutdown::Write);
}
