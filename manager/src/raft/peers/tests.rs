//! Calls to a manager that is as far away, and as silent, as a test wants it. Time moves only when all wait for it.
use super::*;
use keyhole_proto::v1::append_reply::Outcome;
use keyhole_proto::v1::peer_server::{Peer as PeerCalls, PeerServer};
use keyhole_state::State;
use keyhole_wire::tls::{ConnectError, Identity, ManagerConnection, PeerIdentity, Role};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use tokio::time::{sleep, timeout};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Streaming};

const HEARTBEAT: Duration = Duration::from_millis(200);

fn cluster() -> ClusterId {
    ClusterId::from_entropy([1; 16])
}

/// The manager at the other end. Clones are the same one.
#[derive(Clone)]
struct Other(Arc<There>);

struct There {
    /// How long it takes to connect to it.
    away: Duration,
    refuses: AtomicBool,
    silent: AtomicBool,
    dialled: AtomicUsize,
}

impl Other {
    fn new(away: Duration) -> Self {
        let (refuses, silent, dialled) = Default::default();
        Self(Arc::new(There { away, refuses, silent, dialled }))
    }

    fn dialled(&self) -> usize {
        self.0.dialled.load(SeqCst)
    }

    fn is_silent(&self, silent: bool) {
        self.0.silent.store(silent, SeqCst);
    }

    fn refuses(&self, refuses: bool) {
        self.0.refuses.store(refuses, SeqCst);
    }

    /// The way to it.
    fn peers(&self) -> Peers {
        let peers = Peers::default();
        let live = Live::new(State::default(), Arc::new(|_| {}));
        peers.open(cluster(), live, Arc::new(self.clone()));
        peers
    }
}

#[tonic::async_trait]
impl Dial for Other {
    fn identity(&self) -> Option<Arc<Identity>> {
        None
    }

    async fn dial(&self, address: &str) -> Result<ManagerConnection, ConnectError> {
        self.0.dialled.fetch_add(1, SeqCst);
        sleep(self.0.away).await;
        if self.0.refuses.load(SeqCst) {
            return Err(ConnectError::Refused { addr: address.to_owned() });
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        let far = futures::stream::iter([io::Result::Ok(far)]);
        let server = Server::builder().add_service(PeerServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(far));
        let channel = http2::speak(Endpoint::from_static("http://manager"), near).await.unwrap();
        let manager = PeerIdentity {
            cluster: cluster(),
            role: Role::Manager,
            id: peer().name,
            serial: String::new(),
            not_before: 0,
            not_after: u64::MAX,
            authority: Vec::new(),
            public_key: [0; 32],
            expired: false,
        };
        Ok(ManagerConnection { channel, exporter: [0; 32], manager })
    }
}

type Reply<T> = Result<Response<T>, Status>;

fn not_here<T>() -> Reply<T> {
    Err(Status::unimplemented("no part of these tests"))
}

#[tonic::async_trait]
impl PeerCalls for Other {
    type WatchSessionsStream = ReceiverStream<Result<v1::WatchSessionsReply, Status>>;

    async fn append(&self, _request: Request<v1::AppendRequest>) -> Reply<v1::AppendReply> {
        if self.0.silent.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::AppendReply { outcome: Some(Outcome::Success(true)) }))
    }

    async fn vote(&self, _request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        not_here()
    }

    async fn pre_vote(&self, _request: Request<v1::VoteRequest>) -> Reply<v1::VoteReply> {
        not_here()
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Reply<v1::SnapshotReply> {
        let mut parts = request.into_inner();
        while parts.message().await?.is_some() {}
        Ok(Response::new(v1::SnapshotReply { vote: Some(vote_out(&Vote::new(3, 1))) }))
    }

    async fn transfer_leader(
        &self,
        _request: Request<v1::TransferLeaderRequest>,
    ) -> Reply<v1::TransferLeaderReply> {
        not_here()
    }

    async fn propose(&self, _request: Request<v1::ProposeRequest>) -> Reply<v1::ProposeReply> {
        not_here()
    }

    async fn read_index(&self, _: Request<v1::ReadIndexRequest>) -> Reply<v1::ReadIndexReply> {
        not_here()
    }

    async fn progress(&self, _request: Request<v1::ProgressRequest>) -> Reply<v1::ProgressReply> {
        if self.0.silent.load(SeqCst) {
            std::future::pending().await
        }
        Ok(Response::new(v1::ProgressReply::default()))
    }

    async fn hand_over(&self, _request: Request<v1::HandOverRequest>) -> Reply<v1::HandOverReply> {
        not_here()
    }

    async fn sessions(&self, _request: Request<v1::SessionsRequest>) -> Reply<v1::SessionsReply> {
        not_here()
    }

    async fn watch_sessions(
        &self,
        _request: Request<v1::WatchSessionsRequest>,
    ) -> Reply<Self::WatchSessionsStream> {
        not_here()
    }
}

fn peer() -> Peer {
    Peer { address: "there:1".to_owned(), name: "the-other".to_owned() }
}

/// Ends it as openraft does.
async fn heartbeat(line: &mut PeerLine) -> Result<(), String> {
    let (prev_log_id, leader_commit, entries) = Default::default();
    let call = AppendEntriesRequest { vote: Vote::new(3, 1), prev_log_id, leader_commit, entries };
    let answer = line.append_entries(call, RPCOption::new(HEARTBEAT));
    match timeout(HEARTBEAT, answer).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("cut".to_owned()),
    }
}

#[test]
fn a_removal_is_told_from_other_refusals() {
    assert!(is_removal(&removed("gone".to_owned())));
    assert!(!is_removal(&Status::permission_denied("no")), "another refusal");
    let elsewhere = Status::with_details(Code::Unavailable, "x", Bytes::from_static(REMOVED));
    assert!(!is_removal(&elsewhere));
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_made_though_each_heartbeat_has_less_time_than_that_takes() {
    let other = Other::new(HEARTBEAT * 3);
    let mut line = other.peers().new_heartbeat_client(2, &peer()).await;
    for _ in 0..2 {
        assert_eq!(heartbeat(&mut line).await, Err("cut".to_owned()));
    }
    sleep(HEARTBEAT).await;
    assert_eq!(heartbeat(&mut line).await, Ok(()));
    assert_eq!(other.dialled(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_are_told_of_a_failure_and_who_comes_later_tries_anew() {
    let other = Other::new(HEARTBEAT / 4);
    other.refuses(true);
    let peers = other.peers();
    let mut lines = [
        peers.clone().new_heartbeat_client(2, &peer()).await,
        peers.clone().new_heartbeat_client(2, &peer()).await,
    ];
    let [one, another] = &mut lines;
    let (one, another) = tokio::join!(heartbeat(one), heartbeat(another));
    for refused in [one.unwrap_err(), another.unwrap_err()] {
        assert!(refused.contains("connection refused"), "{refused}");
    }
    assert_eq!(other.dialled(), 1);
    // Nobody waits for this one until it fails; what came of it is not for those who come later.
    let _ = timeout(HEARTBEAT / 8, heartbeat(&mut lines[0])).await.unwrap_err();
    sleep(HEARTBEAT).await;
    other.refuses(false);
    assert_eq!(heartbeat(&mut lines[0]).await, Ok(()));
    assert_eq!(other.dialled(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_kept_until_it_was_silent_for_long() {
    let other = Other::new(Duration::ZERO);
    let mut line = other.peers().new_heartbeat_client(2, &peer()).await;
    // Silent for 0.8 s, as on a line that is slow at times, and again after an answer.
    for _ in 0..3 {
        other.is_silent(true);
        for _ in 0..4 {
            let late = heartbeat(&mut line).await.unwrap_err();
            assert!(late.contains("no answer within 150 ms"), "{late}");
            sleep(HEARTBEAT / 4).await;
        }
        other.is_silent(false);
        assert_eq!(heartbeat(&mut line).await, Ok(()));
    }
    assert_eq!(other.dialled(), 1);
    // Packets are lost without a word.
    other.is_silent(true);
    for _ in 0..8 {
        heartbeat(&mut line).await.unwrap_err();
    }
    other.is_silent(false);
    assert_eq!(heartbeat(&mut line).await, Ok(()));
    assert_eq!(other.dialled(), 2);
}

/// Its connection may be alive: only the one who was asked is not.
#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_answers_ends() {
    let other = Other::new(Duration::ZERO);
    let (peers, peer) = (other.peers(), peer());
    let ask = || {
        let question = |mut client: PeerClient<Channel>| async move {
            client.progress(v1::ProgressRequest {}).await
        };
        timeout(2 * ASKED, peers.ask((2, &peer), question))
    };
    assert!(ask().await.unwrap().is_ok());
    other.is_silent(true);
    let silent = ask().await.expect("it ends by itself").unwrap_err();
    assert!(silent.to_string().contains("no answer within 5000 ms"), "{silent}");
    // It may be the connection after all.
    other.is_silent(false);
    assert!(ask().await.unwrap().is_ok());
    assert_eq!(other.dialled(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_hours_as_long_as_parts_of_it_are_taken() {
    let other = Other::new(Duration::ZERO);
    let line = other.peers().new_snapshot_client(2, &peer()).await;
    let start = line.snapshot_start(&Vote::new(3, 1));
    let part = v1::SnapshotPart { part: Some(v1::snapshot_part::Part::Start(start)) };
    let parts = futures::stream::unfold(0, move |sent| {
        let part = part.clone();
        async move {
            sleep(Duration::from_secs(20)).await;
            (sent < 1000).then_some((part, sent + 1))
        }
    });
    let began = tokio::time::Instant::now();
    line.install(parts).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(20_000));
}
