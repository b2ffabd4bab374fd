//! The format of what travels: each request says which one its sender speaks, and a receiver of an older format refuses
//! it by number instead of misreading it.
//!
//! It stands in the `user-agent` header, `keyhole/VERSION format/NUMBER`, so that a look at the wire shows it. Invariant:
//! the number goes up with each change that an older receiver would misread; a field that it may ignore is no change.

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// The format that this program speaks, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// What a client says of itself with each request.
pub const USER_AGENT: &str = concat!("keyhole/", env!("CARGO_PKG_VERSION"), " format/1");

/// A version is text of strangers; nobody needs a longer one.
const VERSION_LIMIT: usize = 32;

/// Lets a request through whose format is read here; one that names none is of the first.
///
/// # Errors
/// `FAILED_PRECONDITION` for a newer format, naming both; `INVALID_ARGUMENT` for what is no number.
pub fn check(request: Request<()>) -> Result<Request<()>, Status> {
    let Some(text) = token(request.metadata(), "format/") else { return Ok(request) };
    match text.parse::<u32>() {
        Ok(0) | Err(_) => {
            let shown: String = text.chars().take(VERSION_LIMIT).collect();
            Err(Status::invalid_argument(format!(
                "the request names the format {shown:?}, which is no number from 1 on"
            )))
        }
        Ok(format) if format > FORMAT => Err(Status::failed_precondition(format!(
            "the request is of format {format}, and this keyhole {} reads formats up to {FORMAT}: upgrade it first \
             (managers, then nodes, then the CLI)",
            env!("CARGO_PKG_VERSION")
        ))),
        Ok(_) => Ok(request),
    }
}

/// Which version of keyhole sent a request, as it says; empty if it does not, or not in a version's characters.
#[must_use]
pub fn version(metadata: &MetadataMap) -> &str {
    let fits = |text: &&str| {
        text.len() <= VERSION_LIMIT
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-".contains(&b))
    };
    token(metadata, "keyhole/").filter(fits).unwrap_or_default()
}

fn token<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    let agent = metadata.get("user-agent")?.to_str().ok()?;
    agent.split(' ').find_map(|token| token.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(agent: &str) -> Request<()> {
        let mut request = Request::new(());
        request.metadata_mut().insert("user-agent", agent.parse().unwrap());
        request
    }

    #[test]
    fn the_own_format_and_none_are_read() {
        assert!(USER_AGENT.ends_with(&format!("format/{FORMAT}")));
        assert!(check(from(USER_AGENT)).is_ok());
        assert!(check(from(&format!("{USER_AGENT} tonic/0.14.9"))).is_ok());
        assert!(check(from("grpc-go/1.70")).is_ok());
        assert!(check(Request::new(())).is_ok());
    }

    #[test]
    fn a_newer_format_is_refused_with_both_numbers() {
        let refused = check(from("keyhole/9.0.0 format/2 tonic/1")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        for part in ["format 2", "up to 1", "upgrade"] {
            assert!(refused.message().contains(part), "{refused}");
        }
        for bad in ["format/", "format/0", "format/-1", "format/x", "format/99999999999"] {
            assert_eq!(check(from(bad)).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_version_is_short_and_plain() {
        assert_eq!(version(from(USER_AGENT).metadata()), env!("CARGO_PKG_VERSION"));
        assert_eq!(version(from("keyhole/1.2.3-rc.1+g0 x").metadata()), "1.2.3-rc.1+g0");
        for bad in ["grpc-go/1", "keyhole/", "keyhole/1\t2", "keyhole/<b>"] {
            assert_eq!(version(from(bad).metadata()), "", "{bad}");
        }
        assert_eq!(version(from(&format!("keyhole/{}", "1".repeat(33))).metadata()), "");
    }
}
