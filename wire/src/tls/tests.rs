//! Real sockets on loopback: who gets through a handshake, and what the two ends learn.

mod harness;

use std::time::Duration;

use harness::{ID, OTHER_ID, Server, TestCa, call, day, now};
use rustls::pki_types::ServerName;
use rustls::{NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;

use super::*;
use crate::http2::never_sent;

fn live(ca: &TestCa, role: Role, id: &str) -> LiveTls {
    LiveTls::new(Some(ca.identity(role, id)), vec![ca.der()]).unwrap()
}

#[tokio::test]
async fn both_ends_know_each_other_and_share_an_exporter() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let (channel, exporter) =
        connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap();
    let seen = call(&channel, "Who").await.unwrap();
    let hex: String = exporter.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(seen, format!("node {OTHER_ID} expired=false {hex}"));
    let (_, second) = connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap();
    assert_ne!(exporter, second);
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_let_in_as_nobody() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let anonymous = LiveTls::new(None, vec![ca.der()]).unwrap();
    let (channel, _) = connect(&server.addr, &anonymous).await.unwrap();
    assert!(call(&channel, "Who").await.unwrap().starts_with("nobody "));
}

#[tokio::test]
async fn an_unpinned_call_reaches_a_manager_of_any_ca() {
    let server = Server::start(live(&TestCa::new(), Role::Manager, ID)).await;
    let channel = fetch_unpinned(&server.addr).await.unwrap();
    assert!(call(&channel, "Who").await.unwrap().starts_with("nobody "));
}

#[tokio::test]
async fn the_connection_is_tls_1_3_with_hybrid_key_exchange_and_http_2() {
    let ca = TestCa::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = live(&ca, Role::Manager, ID);
    let mut accepted = incoming(listener, server, Limits::default(), Connections::new());
    let tcp = TcpStream::connect(addr).await.unwrap();
    let config = live(&ca, Role::Node, OTHER_ID).client_config();
    let name = ServerName::try_from("manager").unwrap();
    let client = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let conn = accepted.next().await.unwrap().unwrap();
    let group = conn.tls().negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(conn.tls().protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let server = Server::start(live(&TestCa::new(), Role::Manager, ID)).await;
    let mut tcp = TcpStream::connect(&server.addr).await.unwrap();
    tcp.write_all(&harness::tls_1_2_client_hello()).await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    // A fatal (2) alert (21): protocol_version (70).
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]));
}

#[tokio::test]
async fn another_ca_is_refused_on_both_sides() {
    let (ca, foreign) = (TestCa::new(), TestCa::new());
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let refused = connect(&server.addr, &live(&foreign, Role::Node, OTHER_ID)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Foreign { .. }), "{refused}");

    let identity = foreign.identity(Role::Node, OTHER_ID);
    let intruder = LiveTls::new(Some(identity), vec![ca.der()]).unwrap();
    let refused = connect(&server.addr, &intruder).await.unwrap_err();
    assert!(matches!(refused, ConnectError::OwnCertificate { .. }), "{refused}");
    assert!(refused.to_string().contains("joined to another cluster"), "{refused}");
}

#[tokio::test]
async fn only_a_manager_certificate_serves() {
    let ca = TestCa::new();
    for role in [Role::Node, Role::Operator] {
        let server = Server::start(live(&ca, role, ID)).await;
        let refused = connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap_err();
        assert!(matches!(refused, ConnectError::NotAManager { .. }), "{refused}");
    }
}

#[tokio::test]
async fn identity_and_roots_change_without_a_restart() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let server_tls = live(&old, Role::Manager, ID);
    let server = Server::start(server_tls.clone()).await;
    let node = live(&old, Role::Node, OTHER_ID);
    let (before, _) = connect(&server.addr, &node).await.unwrap();

    server_tls.set_roots(vec![old.der(), new.der()]).unwrap();
    server_tls.set_identity(new.identity(Role::Manager, ID)).unwrap();
    let refused = connect(&server.addr, &node).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Foreign { .. }), "{refused}");
    assert!(call(&before, "Who").await.unwrap().starts_with("node "), "it was alive before");

    node.set_roots(vec![old.der(), new.der()]).unwrap();
    let (after, _) = connect(&server.addr, &node).await.unwrap();
    assert!(call(&after, "Who").await.unwrap().starts_with("node "));

    server_tls.set_roots(vec![new.der()]).unwrap();
    let refused = connect(&server.addr, &node).await.unwrap_err();
    assert!(matches!(refused, ConnectError::OwnCertificate { .. }), "{refused}");
    node.set_identity(new.identity(Role::Node, OTHER_ID)).unwrap();
    connect(&server.addr, &node).await.unwrap();
}

/// Who has the key of a former root can't pass off what it signs as the current one's.
#[tokio::test]
async fn a_leaf_is_of_the_root_that_it_names() {
    let (old, new, unknown) = (TestCa::new(), TestCa::new(), TestCa::new());
    let server_tls = live(&old, Role::Manager, ID);
    server_tls.set_roots(vec![old.der(), new.der()]).unwrap();
    let server = Server::start(server_tls.clone()).await;
    let node = |ca: &TestCa| {
        let identity = ca.identity(Role::Node, OTHER_ID);
        LiveTls::new(Some(identity), vec![old.der()]).unwrap()
    };
    let refused = connect(&server.addr, &node(&old.posing_as(&new))).await.unwrap_err();
    assert!(matches!(refused, ConnectError::OwnCertificate { .. }), "{refused}");
    let mut channels = Vec::new();
    for ca in [&old, &old.posing_as(&unknown), &new] {
        let (channel, _) = connect(&server.addr, &node(ca)).await.unwrap();
        assert!(call(&channel, "Who").await.unwrap().starts_with("node "));
        channels.push(channel);
    }
    assert_eq!(server.connections.strange(&server_tls).close(), 0);
    server_tls.set_roots(vec![new.der()]).unwrap();
    assert_eq!(server.connections.strange(&server_tls).close(), 2);
    for ended in &channels[..2] {
        call(ended, "Who").await.unwrap_err();
    }
    call(&channels[2], "Who").await.unwrap();
}

/// The one that names a root which its manager does not know yet is judged once that does.
#[tokio::test]
async fn a_leaf_that_named_a_root_to_come_is_judged_when_it_has_come() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let server_tls = live(&old, Role::Manager, ID);
    let server = Server::start(server_tls.clone()).await;
    let (channel, _) =
        connect(&server.addr, &live(&old.posing_as(&new), Role::Node, OTHER_ID)).await.unwrap();
    call(&channel, "Who").await.unwrap();
    server_tls.set_roots(vec![new.der(), old.der()]).unwrap();
    assert_eq!(server.connections.strange(&server_tls).close(), 1);
}

/// When a root is forgotten, a handshake that began before ends with the connections that it had let in.
#[tokio::test]
async fn a_handshake_under_way_is_judged_by_the_roots_of_its_end() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let server_tls = live(&old, Role::Manager, ID);
    let server = Server::start(server_tls.clone()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = live(&old, Role::Node, OTHER_ID);
    let calling = tokio::spawn(async move {
        let (channel, _) = connect(&address, &node).await.map_err(|error| error.to_string())?;
        call(&channel, "Who").await.map_err(|status| status.to_string())
    });
    let (mut client, _) = listener.accept().await.unwrap();
    let mut manager = TcpStream::connect(&server.addr).await.unwrap();
    // The server has answered the first message, and waits for the certificate.
    let mut bytes = [0; 16 << 10];
    let hello = client.read(&mut bytes).await.unwrap();
    manager.write_all(&bytes[..hello]).await.unwrap();
    let answer = manager.read(&mut bytes).await.unwrap();
    server_tls.set_roots(vec![new.der()]).unwrap();
    assert_eq!(server.connections.strange(&server_tls).close(), 0);
    client.write_all(&bytes[..answer]).await.unwrap();
    let relaying = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut manager).await;
    });
    timeout(Duration::from_secs(10), calling).await.unwrap().unwrap().unwrap_err();
    relaying.abort();
    assert_eq!(server.connections.count(), 0);
}

#[tokio::test]
async fn a_client_expired_for_less_than_thirty_days_is_let_in_and_marked() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let node = |from, to| {
        let identity = ca.identity_valid(Role::Node, OTHER_ID, from, to);
        LiveTls::new(Some(identity), vec![ca.der()]).unwrap()
    };
    for ended in [10, 29 * day()] {
        let (channel, _) =
            connect(&server.addr, &node(now() - 60 * day(), now() - ended)).await.unwrap();
        let seen = call(&channel, "Who").await.unwrap();
        assert!(seen.starts_with(&format!("node {OTHER_ID} expired=true ")), "{seen}");
    }
    for (from, to) in [
        (now() - 60 * day(), now() - 30 * day()),
        (now() - 60 * day(), now() - 31 * day()),
        (now() + day(), now() + 2 * day()),
    ] {
        let refused = connect(&server.addr, &node(from, to)).await.unwrap_err();
        assert!(matches!(refused, ConnectError::OwnCertificate { .. }), "{refused}");
        assert!(refused.to_string().contains("check the clocks"), "{refused}");
    }
}

#[tokio::test]
async fn the_grace_forgives_nothing_but_the_end() {
    let (ca, foreign) = (TestCa::new(), TestCa::new());
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let (from, to) = (now() - 60 * day(), now() - day());
    let identity = foreign.identity_valid(Role::Node, OTHER_ID, from, to);
    let tls = LiveTls::new(Some(identity), vec![ca.der()]).unwrap();
    let refused = connect(&server.addr, &tls).await.unwrap_err();
    assert!(matches!(refused, ConnectError::OwnCertificate { .. }), "{refused}");

    let nameless = ca.identity_with(Role::Node, OTHER_ID, from, to, |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
    });
    let tls = LiveTls::new(Some(nameless), vec![ca.der()]).unwrap();
    let refused = connect(&server.addr, &tls).await.unwrap_err();
    assert!(matches!(refused, ConnectError::OwnCertificate { .. }), "{refused}");
}

#[tokio::test]
async fn a_manager_outside_its_time_is_refused_with_a_word_on_clocks() {
    let ca = TestCa::new();
    let spans = [
        (now() - 2 * day(), now() - 10, "expired"),
        (now() + day(), now() + 2 * day(), "not valid yet"),
    ];
    for (from, to, state) in spans {
        let identity = ca.identity_valid(Role::Manager, ID, from, to);
        let tls = LiveTls::new(Some(identity), vec![ca.der()]).unwrap();
        let server = Server::start(tls).await;
        let refused = connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Clock { .. }), "{refused}");
        assert!(refused.to_string().contains(state), "{refused}");
        assert!(refused.to_string().contains(&server.addr), "{refused}");
    }
}

#[tokio::test]
async fn closing_a_peer_ends_its_calls_and_nobody_elses() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let node = live(&ca, Role::Node, OTHER_ID);
    let (revoked, _) = connect(&server.addr, &node).await.unwrap();
    let (idle, _) = connect(&server.addr, &node).await.unwrap();
    let (kept, _) = connect(&server.addr, &live(&ca, Role::Operator, ID)).await.unwrap();
    assert_eq!(server.connections.count(), 3);
    let hanging = tokio::spawn({
        let revoked = revoked.clone();
        async move { call(&revoked, "Hang").await }
    });
    server.hung.notified().await;

    let stays = |id: &str| id == OTHER_ID;
    assert_eq!(server.connections.gone(Role::Node, stays).close(), 0);
    assert_eq!(server.connections.gone(Role::Manager, |_| false).close(), 0);
    assert_eq!(server.connections.of_peer(OTHER_ID).close(), 2);
    // At once: long before the keepalive would notice.
    timeout(Duration::from_secs(3), hanging).await.unwrap().unwrap().unwrap_err();
    call(&idle, "Who").await.unwrap_err();
    assert!(call(&kept, "Who").await.unwrap().starts_with("operator "));
    assert_eq!(server.connections.count(), 1);
    assert_eq!(server.connections.gone(Role::Operator, stays).close(), 1);
    call(&kept, "Who").await.unwrap_err();
}

#[tokio::test]
async fn closing_chosen_connections_leaves_those_that_were_made_since() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let node = live(&ca, Role::Node, OTHER_ID);
    let (before, _) = connect(&server.addr, &node).await.unwrap();
    call(&before, "Who").await.unwrap();
    let chosen = server.connections.of_peer(OTHER_ID);
    let (since, _) = connect(&server.addr, &node).await.unwrap();
    assert_eq!(chosen.close(), 1);
    call(&before, "Who").await.unwrap_err();
    call(&since, "Who").await.unwrap();
}

#[tokio::test]
async fn a_channel_never_reconnects() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let (channel, _) = connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap();
    assert_eq!(server.connections.close_all(), 1);
    for _ in 0..3 {
        call(&channel, "Who").await.unwrap_err();
    }
    assert_eq!(server.connections.count(), 0);
}

/// What was on its way may have been done; what comes after is known to be not.
#[tokio::test]
async fn a_call_that_was_never_sent_is_told_from_one_that_was_lost() {
    let ca = TestCa::new();
    let server = Server::start(live(&ca, Role::Manager, ID)).await;
    let (channel, _) = connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap();
    let hanging = tokio::spawn({
        let channel = channel.clone();
        async move { call(&channel, "Hang").await }
    });
    server.hung.notified().await;
    assert_eq!(server.connections.close_all(), 1);
    let lost = hanging.await.unwrap().unwrap_err();
    assert!(!never_sent(&lost), "{lost:?}");
    let late = call(&channel, "Who").await.unwrap_err();
    assert!(never_sent(&late), "{late:?}");
}

#[tokio::test]
async fn a_silent_caller_is_let_go() {
    let ca = TestCa::new();
    let limits = Limits { handshake_timeout: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start_with(live(&ca, Role::Manager, ID), limits).await;
    let mut silent = TcpStream::connect(&server.addr).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn silent_callers_keep_nobody_out() {
    let ca = TestCa::new();
    let handshake_timeout = Duration::from_secs(3600);
    let limits = Limits { handshake_timeout, handshakes: 2, strangers: 2 };
    let server = Server::start_with(live(&ca, Role::Manager, ID), limits).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(&server.addr).await.unwrap());
    }
    let (node, _) = connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap();
    for gone in &mut silent[..2] {
        assert_eq!(gone.read(&mut [0; 1]).await.unwrap(), 0, "the oldest made room");
    }
    let nobody = LiveTls::new(None, vec![ca.der()]).unwrap();
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let (channel, _) = connect(&server.addr, &nobody).await.unwrap();
        call(&channel, "Who").await.unwrap();
        strangers.push(channel);
    }
    call(&strangers[0], "Who").await.unwrap_err();
    for stays in [&strangers[1], &strangers[2], &node] {
        call(stays, "Who").await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_manager_is_named() {
    let ca = TestCa::new();
    let node = live(&ca, Role::Node, OTHER_ID);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let web_server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        assert!(tcp.read(&mut [0; 100]).await.unwrap() > 0);
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        listener.accept().await.unwrap();
    });
    let refused = connect(&addr, &node).await.unwrap_err();
    assert!(matches!(refused, ConnectError::NotTls { .. }), "{refused}");
    let refused = connect(&addr, &node).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Closed { .. }), "{refused}");
    web_server.await.unwrap();
    let refused = connect(&addr, &node).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
    for bad in ["127.0.0.1", "no such host:1", ""] {
        let refused = connect(bad, &node).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Address { .. }), "{bad}: {refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_never_answers_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let refused = connect(&addr, &live(&TestCa::new(), Role::Node, ID)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::TimedOut { .. }), "{refused}");
}

#[tokio::test]
async fn without_a_certificate_nothing_is_served() {
    let ca = TestCa::new();
    let tls = LiveTls::new(None, vec![ca.der()]).unwrap();
    assert!(matches!(tls.server_config(), Err(TlsError::NoIdentity)));
    let server = Server::start(tls.clone()).await;
    connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap_err();
    tls.set_identity(ca.identity(Role::Manager, ID)).unwrap();
    connect(&server.addr, &live(&ca, Role::Node, OTHER_ID)).await.unwrap();
}

#[test]
fn an_unusable_root_is_an_error_and_changes_nothing() {
    let ca = TestCa::new();
    assert!(matches!(LiveTls::new(None, vec![]), Err(TlsError::NoRoots)));
    let tls = live(&ca, Role::Manager, ID);
    let refused = tls.set_roots(vec![ca.der(), b"rubbish".to_vec()]).unwrap_err();
    assert!(matches!(refused, TlsError::BadRoot { index: 1, .. }), "{refused}");
    assert!(refused.to_string().contains("certificate 2"), "{refused}");
    assert_eq!(tls.roots(), vec![ca.der()]);
}

#[test]
fn a_key_of_another_certificate_makes_no_identity() {
    let ca = TestCa::new();
    let (one, other) = (ca.identity(Role::Node, ID), ca.identity(Role::Node, ID));
    let chain = || one.chain().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let key = |of: &Identity| {
        keyhole_secmem::SecretBytes::copy_from(&mut of.key().as_slice().to_vec()).unwrap()
    };
    assert!(Identity::new(chain(), key(&one)).is_ok());
    assert!(matches!(Identity::new(chain(), key(&other)), Err(IdentityError::Key(_))));
    assert!(matches!(Identity::new(vec![], key(&one)), Err(IdentityError::NoCertificate)));
    assert!(!format!("{one:?}").replace("public_key", "").contains("key"));
}
