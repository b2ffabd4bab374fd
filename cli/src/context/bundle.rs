//! The file that makes somebody an operator from elsewhere: certificate and key, whom to trust, where the managers are.
//!
//! `operator create` writes it, `context create` takes it in, and each context is one. Invariant: nobody but its owner can
//! read it, and it is written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use keyhole_proto::v1;
use keyhole_secmem::SecretBytes;
use keyhole_wire::tls::{Identity, LiveTls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::failure::Failure;
use crate::operator::operators::role_word;

const FORMAT: u32 = 1;

/// The file's content.
#[derive(Serialize, Deserialize)]
pub(crate) struct Bundle {
    format: u32,
    /// For people.
    #[serde(default)]
    pub(crate) description: String,
    /// The operator's name.
    pub(crate) operator: String,
    /// And id.
    pub(crate) id: String,
    /// As it was when this was written; what counts is what the cluster has.
    pub(crate) role: String,
    /// Likewise.
    pub(crate) secrets: Vec<String>,
    /// Likewise.
    pub(crate) services: Vec<String>,
    /// The cluster's id.
    pub(crate) cluster: String,
    /// `HOST:PORT` of each manager.
    pub(crate) managers: Vec<String>,
    /// Whether its owner said where they are, and not the cluster.
    #[serde(default)]
    pub(crate) managers_given: bool,
    certificate: String,
    ca: String,
    key: String,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Bundle {
    /// What a manager answered, with the key that stayed here.
    pub(crate) fn new(answer: &v1::OperatorCertificate, key: &SecretBytes) -> Self {
        let operator = answer.operator.clone().unwrap_or_default();
        Self {
            format: FORMAT,
            description: String::new(),
            role: role_word(operator.role()).to_owned(),
            operator: operator.name,
            id: operator.id,
            secrets: operator.secrets,
            services: operator.services,
            cluster: answer.cluster.clone(),
            managers: answer.managers.clone(),
            managers_given: false,
            certificate: answer.chain.iter().map(|der| encode("CERTIFICATE", der)).collect(),
            ca: answer.roots.iter().map(|der| encode("CERTIFICATE", der)).collect(),
            key: encode("PRIVATE KEY", key.as_slice()),
        }
    }

    /// Whether it is of the same root CA.
    pub(crate) fn is_of_ca_of(&self, other: &Self) -> bool {
        self.ca == other.ca
    }

    /// Takes over what its owner said of the one before it.
    pub(crate) fn follow(&mut self, before: &Self) {
        self.description.clone_from(&before.description);
        if before.managers_given {
            self.managers.clone_from(&before.managers);
            self.managers_given = true;
        }
    }

    /// Reads a file that only its owner can read.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |error: io::Error| Failure::new(format!("cannot read {shown}: {error}"));
        let mode = fs::metadata(path).map_err(failed)?.mode();
        if mode & 0o077 != 0 {
            return Err(Failure::new(format!(
                "{shown} has an operator's key, and others than its owner can read it; chmod 600 it"
            )));
        }
        let mut text = fs::read_to_string(path).map_err(failed)?;
        let bundle = toml::from_str::<Self>(&text).map_err(|error| {
            // The error's own words may have a line of the file, which may be the key's.
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            Failure::new(format!(
                "{shown}, line {line}: it is no file of 'keyhole operator create'"
            ))
        });
        text.zeroize();
        let bundle = bundle?;
        match bundle.format {
            FORMAT => Ok(bundle),
            other => Err(Failure::new(format!(
                "{shown} has format {other}, this keyhole knows format {FORMAT}; use a newer keyhole"
            ))),
        }
    }

    /// Writes it in place of what is there.
    pub(crate) fn replace(&self, path: &Path) -> Result<(), Failure> {
        let new = path.with_extension("new");
        let failed =
            |error: io::Error| Failure::new(format!("cannot write {}: {error}", path.display()));
        let _ = fs::remove_file(&new);
        let mut file = NewFile::create(&new)?;
        file.write(self)?;
        fs::rename(&new, path).map_err(failed)?;
        file.keep();
        Ok(())
    }

    /// The certificate with its key.
    pub(crate) fn identity(&self) -> Result<Identity, String> {
        let chain = certificates(&self.certificate)?;
        Identity::new(chain, self.key()?).map_err(|error| error.to_string())
    }

    /// The key, PKCS #8 in DER.
    pub(crate) fn key(&self) -> Result<SecretBytes, String> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(self.key.as_bytes());
        let key = key.map_err(|error| error.to_string())?;
        let mut der = key.secret_pkcs8_der().to_vec();
        SecretBytes::copy_from(&mut der).map_err(|error| error.to_string())
    }

    /// TLS as this operator.
    pub(crate) fn live(&self) -> Result<LiveTls, String> {
        let roots = certificates(&self.ca)?;
        LiveTls::new(Some(self.identity()?), roots).map_err(|error| error.to_string())
    }
}

fn encode(tag: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(tag, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|error| error.to_string())?;
    match found.is_empty() {
        true => Err("it has no certificate".to_owned()),
        false => Ok(found.into_iter().map(|der: CertificateDer<'_>| der.to_vec()).collect()),
    }
}

/// A file that is made before there is anything to write: if it can't be, nothing was asked of the cluster yet. It goes
/// again unless it is kept.
pub(crate) struct NewFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    /// Makes it, 0600; it must not be there.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| {
            let mend = match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    "; it is not overwritten: remove it, or give another name"
                }
                _ => "",
            };
            Failure::new(format!("cannot make {}: {error}{mend}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), file, kept: false })
    }

    /// Writes a bundle, to the disk.
    pub(crate) fn write(&mut self, bundle: &Bundle) -> Result<(), Failure> {
        let shown = self.path.display().to_string();
        let mut text = toml::to_string_pretty(bundle).map_err(Failure::new)?;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        text.zeroize();
        written.map_err(|error| Failure::new(format!("cannot write {shown}: {error}")))
    }

    /// It stays.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody is left who could be told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use keyhole_domain::ClusterId;
    use keyhole_wire::tls::Role;
    use keyhole_wire::tls::certificate::{csr_public_key, key_and_csr, leaf_params};
    use rcgen::Issuer;

    use super::*;

    /// An operator's bundle, whose certificate ends at that Unix second.
    pub(crate) fn bundle(name: &str, not_after: u64) -> Bundle {
        let cluster = ClusterId::from_entropy([7; 16]);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let ca = keyhole_wire::tls::certificate::ca_params(&cluster, 0, not_after).unwrap();
        let root = ca.self_signed(&ca_key).unwrap();
        let (key, csr) = key_and_csr().unwrap();
        let id = "o".repeat(25);
        let leaf = leaf_params(&cluster, Role::Operator, &id, 0, not_after).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let leaf = leaf.signed_by(&csr_public_key(&csr).unwrap(), &issuer).unwrap();
        let operator = v1::OperatorInfo {
            id,
            name: name.to_owned(),
            role: v1::OperatorRole::Writer.into(),
            secrets: vec!["web-*".to_owned()],
            ..Default::default()
        };
        let answer = v1::OperatorCertificate {
            operator: Some(operator),
            cluster: cluster.to_string(),
            chain: vec![leaf.der().to_vec().into()],
            roots: vec![root.der().to_vec().into()],
            managers: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
        };
        Bundle::new(&answer, &key)
    }

    #[test]
    fn a_bundle_is_the_same_after_it_was_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ann.toml");
        let made = bundle("ann", 4_000_000_000);
        let mut file = NewFile::create(&path).unwrap();
        file.write(&made).unwrap();
        file.keep();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let read = Bundle::read(&path).unwrap();
        assert_eq!((&*read.operator, &*read.role), ("ann", "writer"));
        assert_eq!((&read.managers, &read.secrets), (&made.managers, &made.secrets));
        assert_eq!(read.identity().unwrap().subject().not_after, 4_000_000_000);
        read.live().unwrap();
        let taken = NewFile::create(&path).err().unwrap().to_string();
        assert!(taken.contains("not overwritten"), "{taken}");
        drop(NewFile::create(&folder.path().join("dropped")).unwrap());
        assert!(!folder.path().join("dropped").exists());
    }

    #[test]
    fn managers_that_the_owner_named_stay_and_others_are_learned() {
        let mut before = bundle("ann", 4_000_000_000);
        before.managers = vec!["jump.example.org:7070".to_owned()];
        for given in [true, false] {
            before.managers_given = given;
            let mut renewed = bundle("ann", 4_000_000_000);
            let learned = renewed.managers.clone();
            renewed.follow(&before);
            assert_eq!(renewed.managers, if given { before.managers.clone() } else { learned });
            assert_eq!(renewed.managers_given, given, "the next renewal knows it too");
        }
    }

    #[test]
    fn a_file_that_others_read_or_that_is_none_is_refused_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "format = 1\nkey = \"canary").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let open = Bundle::read(&path).err().unwrap().to_string();
        assert!(open.contains("chmod 600"), "{open}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let broken = Bundle::read(&path).err().unwrap().to_string();
        assert!(broken.contains("line 2") && !broken.contains("canary"), "{broken}");
        let mut newer = bundle("ann", 4_000_000_000);
        newer.format = 2;
        newer.replace(&path).unwrap();
        let newer = Bundle::read(&path).err().unwrap().to_string();
        assert!(newer.contains("format 2"), "{newer}");
    }

    /// What a fuzzer tries first, here where none reaches: a program has no library to call.
    #[test]
    fn a_bundle_that_was_cut_or_changed_is_taken_as_a_whole_or_refused_without_its_key() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("ann.toml");
        let made = bundle("ann", 4_000_000_000);
        made.replace(&path).unwrap();
        let text = fs::read(&path).unwrap();
        let secret = made.key.lines().nth(1).unwrap();
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let read = Bundle::read(&path).map_err(|failure| failure.to_string());
            let used = read.and_then(|read| read.live().and(read.key()).map(drop));
            let error = used.err().unwrap_or_default();
            assert!(!error.contains(secret) && !error.contains(char::is_control), "{error:?}");
            error.is_empty()
        };
        assert!(read(&text));
        for at in 0..text.len() {
            read(&text[..at]);
            for bit in [0, 3, 7] {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                read(&changed);
            }
        }
    }
}
