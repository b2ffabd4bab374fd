//! Compiles the `.proto` files with protox (a compiler written in Rust), so that no system `protoc` is needed.
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("keyhole/v1"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "proto"));
    files.sort();
    println!("cargo:rerun-if-changed=keyhole/v1");
    let descriptors = protox::compile(&files, [&root])?;
    // What lies on disks has one form: their maps are sorted.
    let sorted = ["SealedKey", "MemberKeys", "StoreKeys", "ClusterRow", "Membership"];
    let configured = tonic_prost_build::configure().bytes(".");
    let configured = sorted
        .iter()
        .fold(configured, |configured, name| configured.btree_map(format!(".keyhole.v1.{name}")));
    configured.compile_fds(descriptors)?;
    Ok(())
}
