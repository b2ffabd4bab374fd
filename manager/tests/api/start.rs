//! Starting: what is missing or wrong is one line that names the thing and the mend.

use std::time::Duration;

use keyhole_manager::app::{JoinManager, Manager, ManagerConfig};

use crate::support::*;

async fn refusal(config: ManagerConfig) -> String {
    let error = soon("starting", Manager::start(config)).await.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error:?}");
    error
}

#[track_caller]
fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{error:?} has no {word:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_is_initialised_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let config = ManagerConfig {
        listen: "127.0.0.1:0".into(),
        socket: folder.path().join("sock"),
        ..ManagerConfig::new(folder.path().join("data"))
    };
    says(&refusal(config.clone()).await, &["data", "--init"]);
    std::fs::create_dir(&config.data_dir).unwrap();
    says(&refusal(config.clone()).await, &["data", "--init"]);
    std::fs::write(config.data_dir.join("precious"), "x").unwrap();
    let init = ManagerConfig { init: true, ..config.clone() };
    says(&refusal(init.clone()).await, &["not empty", "precious"]);
    std::fs::remove_file(config.data_dir.join("precious")).unwrap();
    for again in 0..2 {
        let running = Manager::start(init.clone()).await.unwrap();
        assert!(again < 2, "--init on an initialised folder starts normally");
        running.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_managers_on_one_folder_and_a_taken_port_are_refused_by_name() {
    let manager = TestManager::init().await;
    let taken = manager.config();
    says(&refusal(taken.clone()).await, &["data", "in use by another manager"]);
    let other_folder = ManagerConfig { data_dir: manager.path("other"), init: true, ..taken };
    let refused = refusal(other_folder.clone()).await;
    says(&refused, &[&manager.address(), "in use", "--listen"]);
    assert!(!other_folder.data_dir.exists(), "nothing is made for one that can't start");
    let other_port = ManagerConfig { listen: "127.0.0.1:0".into(), ..other_folder };
    says(&refusal(other_port).await, &["manager.sock", "another process", "--socket"]);
    let mut operator = manager.operator().await;
    create(&mut operator, "still", b"served").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_file_and_options_out_of_range_are_refused_by_name() {
    let mut manager = TestManager::init().await;
    manager.stop().await;
    let config = manager.config();
    let kek = manager.path("data/kek");
    let kept = std::fs::read_to_string(&kek).unwrap();
    let other: String = format!("KH-KEK-1-{}\n", "5".repeat(64));
    std::fs::write(&kek, other).unwrap();
    says(&refusal(config.clone()).await, &["kek", "store.redb", "--kek-file"]);
    std::fs::remove_file(&kek).unwrap();
    says(&refusal(config.clone()).await, &["data/kek"]);
    std::fs::write(&kek, kept).unwrap();
    says(&refusal(config.clone()).await, &["kek", "chmod 600"]);
    let join = Some(JoinManager { address: "x:1".into(), token_file: "no/token".into() });
    let fresh = ManagerConfig { join, data_dir: manager.path("fresh"), ..config.clone() };
    says(&refusal(fresh).await, &["--token-file", "no/token"]);
    let short = ManagerConfig { cert_expiry: Duration::from_secs(9), ..config.clone() };
    says(&refusal(short).await, &["--cert-expiry", "9 s"]);
    let nonsense = ManagerConfig { listen: "nonsense".into(), ..config.clone() };
    says(&refusal(nonsense).await, &["nonsense", "--listen"]);
    let file = ManagerConfig { data_dir: kek, ..config };
    says(&refusal(file).await, &["data folder", "kek"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_stops_leaves_no_socket_and_frees_its_port_and_folder() {
    let mut manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    create(&mut operator, "db", b"one").await.unwrap();
    let node = manager.join("alpha").await;
    let mut stream = node.open(&manager, &[]).await;
    stream.next().await.unwrap();
    manager.stop().await;
    assert!(!manager.path("run/manager.sock").exists());
    stream.next().await.unwrap_err();
    manager.start(false).await;
    node.open(&manager, &[]).await.next().await.unwrap();
}
