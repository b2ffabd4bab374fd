//! An operator's certificate, key and CA from PEM files, for a manager at a port.

use std::path::{Path, PathBuf};

use keyhole_secmem::SecretBytes;
use keyhole_wire::tls::{Identity, LiveTls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize;

use crate::args::Global;
use crate::failure::Failure;

/// Reads the files of `--cert`, `--key` and `--ca`; all three are needed.
pub(crate) fn load(global: &Global) -> Result<LiveTls, Failure> {
    let chain = certificates(needed("cert", &global.cert)?)?;
    let roots = certificates(needed("ca", &global.ca)?)?;
    let key_file = needed("key", &global.key)?;
    let identity =
        Identity::new(chain, private_key(key_file)?).map_err(|error| unusable(key_file, error))?;
    LiveTls::new(Some(identity), roots).map_err(Failure::new)
}

fn needed<'a>(option: &str, path: &'a Option<PathBuf>) -> Result<&'a Path, Failure> {
    path.as_deref().ok_or_else(|| {
        Failure::usage(format!(
            "--{option} FILE is required with tcp://: a manager at a port wants an operator's --cert, --key and --ca"
        ))
    })
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("cannot use {}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map(|list: Vec<CertificateDer<'static>>| list);
    let found = found.map_err(|error| unusable(path, error))?;
    if found.is_empty() {
        return Err(unusable(path, "it has no CERTIFICATE section"));
    }
    Ok(found.into_iter().map(|der| der.to_vec()).collect())
}

fn private_key(path: &Path) -> Result<SecretBytes, Failure> {
    let key = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| unusable(path, error))?;
    let mut der = key.secret_pkcs8_der().to_vec();
    let locked = SecretBytes::copy_from(&mut der).map_err(Failure::new);
    der.zeroize();
    locked
}
