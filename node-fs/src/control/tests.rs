//! Who may use the control socket.

use super::*;

#[test]
fn a_caller_whom_the_kernel_does_not_name_is_refused() {
    let status = only_root(Request::new(())).unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    let mut request = Request::new(());
    request.extensions_mut().insert(UdsConnectInfo { peer_addr: None, peer_cred: None });
    assert_eq!(only_root(request).unwrap_err().code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn root_is_served_by_what_the_kernel_says_of_the_peer() {
    let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
    let mut request = Request::new(());
    let peer_cred = ours.peer_cred().ok();
    request.extensions_mut().insert(UdsConnectInfo { peer_addr: None, peer_cred });
    assert!(only_root(request).is_ok(), "the tests run as root");
}

#[test]
fn waiting_has_a_default_and_an_end() {
    assert_eq!(wait(0), DEFAULT_WAIT);
    assert_eq!(wait(1500), Duration::from_millis(1500));
    assert_eq!(wait(u32::MAX), MAX_WAIT);
}
