//! A relay in front of a manager's port that counts what passes, both ways, TLS included, and may be as slow as a long line.
//!
//! The manager is told to advertise the relay's address, so that all come through it however they learned of the manager.
//! Invariant: every byte is counted before it is passed on, so what an end has received is in the count.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::free_address;

/// Pieces on their way in one direction; then the sender has to wait.
const ON_THE_WAY: usize = 1024;

/// How what passes is held up.
#[derive(Debug, Clone, Copy)]
struct Way {
    delay: Duration,
    /// Bytes a second, on each connection in either direction.
    rate: Option<u32>,
}

impl Way {
    fn takes(&self, bytes: usize) -> Duration {
        let rated = |rate| Duration::from_secs_f64(bytes as f64 / f64::from(rate));
        self.rate.map_or(Duration::ZERO, rated)
    }
}

/// The relay; its threads end with the process.
#[derive(Debug)]
pub struct Tap {
    listener: TcpListener,
    bytes: Arc<AtomicU64>,
    way: Way,
}

impl Default for Tap {
    fn default() -> Self {
        Self::far(Duration::ZERO)
    }
}

impl Tap {
    /// One that all needs so long to pass, in either direction.
    pub fn far(delay: Duration) -> Self {
        Self::on(Way { delay, rate: None })
    }

    /// One that lets so many bytes a second pass, on each connection in either direction.
    pub fn slow(rate: u32) -> Self {
        Self::on(Way { delay: Duration::ZERO, rate: Some(rate) })
    }

    fn on(way: Way) -> Self {
        let listener = TcpListener::bind(free_address()).expect("a loopback address");
        Self { listener, bytes: Arc::new(AtomicU64::new(0)), way }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// From now on each connection is passed on to `target`.
    pub fn pass_to(&self, target: SocketAddr) {
        let listener = self.listener.try_clone().expect("a descriptor is left");
        let (count, way) = (Arc::clone(&self.bytes), self.way);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                thread::spawn(move || {
                    // The way there and back that TCP itself takes to connect.
                    thread::sleep(way.delay * 2);
                    // A target that is not there is a connection that ends, as it would without us.
                    let Ok(far) = TcpStream::connect(target) else { return };
                    for (from, to) in [(&near, &far), (&far, &near)] {
                        for end in [from, to] {
                            end.set_nodelay(true).expect("a TCP connection");
                        }
                        let ends = from.try_clone().and_then(|from| Ok((from, to.try_clone()?)));
                        let (from, to) = ends.expect("descriptors are left");
                        let count = Arc::clone(&count);
                        thread::spawn(move || pass(from, to, &count, way));
                    }
                });
            }
        });
    }

    /// How much has passed, both ways.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64, way: Way) {
    let (leave, arrive) = sync_channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    thread::spawn(move || {
        for (at, bytes) in arrive {
            thread::sleep(at.saturating_duration_since(Instant::now()) + way.takes(bytes.len()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // Either may be closed already.
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        count.fetch_add(read as u64, Ordering::SeqCst);
        if leave.send((Instant::now() + way.delay, buffer[..read].to_vec())).is_err() {
            break;
        }
    }
}
