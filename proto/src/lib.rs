//! The wire and disk formats: code generated from `keyhole/v1/*.proto`, and nothing else.

/// Package `keyhole.v1`.
#[expect(
    missing_docs,
    clippy::large_enum_variant,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files are the documentation"
)]
pub mod v1 {
    tonic::include_proto!("keyhole.v1");
}
