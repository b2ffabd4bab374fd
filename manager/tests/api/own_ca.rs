//! A root CA of the operator's own (docs/MANAGERS.md): each kind of key that peers believe is taken, and everything else
//! is refused with its reason before anything changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyhole_manager::seal::InputFor;
use keyhole_proto::v1;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, GeneralSubtree, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256,
};
use tonic::{Code, Status};

use crate::support::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// From an hour ago, for a hundred days.
fn root() -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now - DAY / 24;
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + DAY * 100;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params
}

async fn bring(
    operator: &mut Operator,
    certificate: &[u8],
    key: &str,
) -> Result<v1::ClusterInfo, Status> {
    let key = Some(sealed(operator, InputFor::RotateCa, "CA key", key.as_bytes()).await);
    let brought = Some(v1::BroughtCa { certificate: certificate.to_vec().into(), key });
    operator.rotate_ca(v1::RotateCaRequest { brought }).await.map(tonic::Response::into_inner)
}

/// G26, with a root that the operator brings, after each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_with_each_kind_of_key_is_taken_and_signs_for_newcomers() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let first = manager.join("first").await;
    let kinds = [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ECDSA_P521_SHA512,
        &PKCS_ED25519,
        &PKCS_RSA_SHA256,
    ];
    for (before, kind) in (0..).zip(kinds) {
        let key = KeyPair::generate_for(kind).unwrap();
        let certificate = root().self_signed(&key).unwrap();
        let now = bring(&mut operator, certificate.der(), &key.serialize_pem()).await.unwrap();
        assert_eq!((now.ca_number, &now.ca_certificate[..]), (before + 1, &certificate.der()[..]));
        // The token pins the new root, which the newcomer alone knows; who knows the first one alone goes by the crosses.
        manager.join("newcomer").await.dispatch(&manager).await;
        first.dispatch(&manager).await;
    }
    let own = operator.rotate_ca(v1::RotateCaRequest::default()).await.unwrap().into_inner();
    assert_eq!(own.ca_number, 6);
    manager.join("newcomer").await.dispatch(&manager).await;
    first.dispatch(&manager).await;
    let lines = manager.audit_lines();
    let rotated = lines.iter().filter(|line| line["action"] == "cluster.ca.rotate");
    assert_eq!(rotated.count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_peers_would_not_believe_is_refused_with_the_reason() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let key = KeyPair::generate().unwrap();
    let pem = key.serialize_pem();
    let mut refuse = async |change: &dyn Fn(&mut CertificateParams), why: &str| {
        let mut params = root();
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        let answer = bring(&mut operator, certificate.der(), &pem).await;
        refused(answer, Code::InvalidArgument, why);
    };
    refuse(&|it| it.is_ca = IsCa::ExplicitNoCa, "CA:TRUE").await;
    refuse(&|it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), "pathlen:0").await;
    refuse(&|it| it.key_usages = vec![KeyUsagePurpose::CrlSign], "keyCertSign").await;
    let none = KeyIdMethod::PreSpecified(Vec::new());
    refuse(&|it| it.key_identifier_method = none.clone(), "subjectKeyIdentifier").await;
    let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
    refuse(&|it| it.distinguished_name.push(again.clone(), "x"), "each once at most").await;
    refuse(&|it| it.not_before += DAY, "does not hold yet").await;
    // The thirty days in which the CA before is believed are over then, but not the life of the last certificates.
    refuse(
        &|it| it.not_after -= DAY * 70 + DAY / 24,
        "it holds for 29 more days, and 31 are needed",
    )
    .await;
    refuse(&|it| it.not_after -= DAY * 101, "it holds for 0 more days").await;
    let elsewhere = GeneralSubtree::DnsName("example.org".to_owned());
    let constraints =
        NameConstraints { permitted_subtrees: vec![elsewhere], excluded_subtrees: Vec::new() };
    refuse(&|it| it.name_constraints = Some(constraints.clone()), "nameConstraints").await;
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1, 1], vec![5, 0]);
    unknown.set_criticality(true);
    refuse(
        &|it| it.custom_extensions = vec![unknown.clone()],
        "critical extension 1.3.6.1.4.1.1.1",
    )
    .await;
    assert_eq!(status(&mut operator).await.ca_number, 0, "nothing changed");
}

async fn status(operator: &mut Operator) -> v1::ClusterInfo {
    operator.cluster_status(v1::ClusterStatusRequest {}).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_roots_own_or_known_already_is_refused() {
    let manager = TestManager::init().await;
    let mut operator = manager.operator().await;
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = root().self_signed(&key).unwrap();
    let bad = Code::InvalidArgument;
    let pem = key.serialize_pem();
    let refused_key = async |operator: &mut Operator, key: &str, why: &str| {
        let answer = bring(operator, certificate.der(), key).await;
        assert!(!format!("{answer:?}").contains(&pem[40..60]), "nothing of a key");
        refused(answer, bad, why);
    };
    let pkcs8 = "openssl pkcs8 -topk8 -nodes";
    refused_key(&mut operator, "rubbish", pkcs8).await;
    refused_key(&mut operator, &pem.replace("PRIVATE", "EC PRIVATE"), pkcs8).await;
    refused_key(&mut operator, &pem.replace("PRIVATE", "ENCRYPTED PRIVATE"), pkcs8).await;
    refused_key(&mut operator, &pem.replace("MIG", "MIH"), pkcs8).await;
    refused_key(&mut operator, &format!("{}{pem}", "\n".repeat(16 << 10)), pkcs8).await;
    refused_key(&mut operator, &other.serialize_pem(), "does not belong to the CA's certificate")
        .await;

    let above = root();
    let below = root().signed_by(&key, &Issuer::from_params(&above, &other)).unwrap();
    refused(bring(&mut operator, below.der(), &pem).await, bad, "not signed by its own key");
    refused(bring(&mut operator, b"rubbish", &pem).await, bad, "no X.509 certificate");
    refused(bring(&mut operator, &[], &pem).await, bad, "no X.509 certificate");
    let mut large = root();
    large.distinguished_name.push(DnType::LocalityName, "x".repeat(9000));
    let large = large.self_signed(&key).unwrap();
    refused(bring(&mut operator, large.der(), &pem).await, bad, "8192 are the most");

    // Sealed for another request, or not at all.
    let sent = async |operator: &mut Operator, key: Option<v1::SealedInput>| {
        let brought = Some(v1::BroughtCa { certificate: certificate.der().to_vec().into(), key });
        operator.rotate_ca(v1::RotateCaRequest { brought }).await
    };
    let another = sealed(&mut operator, InputFor::Backup, "CA key", pem.as_bytes()).await;
    refused(sent(&mut operator, Some(another)).await, Code::FailedPrecondition, "does not open");
    refused(sent(&mut operator, None).await, bad, "key was not sent");
    assert_eq!(status(&mut operator).await.ca_number, 0, "nothing changed");

    // Once it is believed, neither it nor another certificate of its key is a new one; a node that does not renew keeps
    // it believed when another follows.
    manager.join("keeps-it-up").await;
    bring(&mut operator, certificate.der(), &pem).await.unwrap();
    let known = "which the cluster believes already";
    refused(bring(&mut operator, certificate.der(), &pem).await, bad, known);
    let renewed = root().self_signed(&key).unwrap();
    refused(bring(&mut operator, renewed.der(), &pem).await, bad, known);
    let next = root().self_signed(&other).unwrap();
    bring(&mut operator, next.der(), &other.serialize_pem()).await.unwrap();
    refused(bring(&mut operator, certificate.der(), &pem).await, bad, known);
}
