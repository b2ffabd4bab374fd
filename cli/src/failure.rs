//! How a command fails: one line that says what, of which name, why and what to do; and the exit code.
//!
//! Invariant: a message never has a line break or a control character, whoever worded it.

use std::error::Error;
use std::fmt;
use std::io;

use keyhole_wire::http2;
use tonic::{Code, Status};

use crate::render::printable;

/// Why a command ends without having done its work.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    name: Option<String>,
}

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The command line makes no sense.
    Usage,
    /// It was refused or did not work.
    Failed,
    /// It was refused by the manager or the node, with this status.
    Status(Code),
    /// All was said already.
    Reported,
    /// Nobody reads our output any more.
    BrokenPipe,
    /// `run`: the command is there but cannot be executed.
    CannotExecute,
    /// `run`: there is no such command.
    CommandNotFound,
    /// `dev`: the command ended so, and has said why.
    Ended(u8),
}

impl Failure {
    /// The command line makes no sense.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::of(Kind::Usage, message)
    }

    /// Something was refused or did not work.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self::of(Kind::Failed, message)
    }

    /// Some of several things failed and were reported one by one.
    pub(crate) fn reported() -> Self {
        Self::of(Kind::Reported, "")
    }

    /// The command of `run` is there but cannot be executed.
    pub(crate) fn cannot_execute(message: impl fmt::Display) -> Self {
        Self::of(Kind::CannotExecute, message)
    }

    /// The command of `run` is not there.
    pub(crate) fn command_not_found(message: impl fmt::Display) -> Self {
        Self::of(Kind::CommandNotFound, message)
    }

    /// The command of `dev` has ended with this code.
    pub(crate) fn ended(code: u8) -> Self {
        Self::of(Kind::Ended(code), "")
    }

    fn of(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: printable(&message.to_string()), name: None }
    }

    /// It is about the thing of that name; programs are told.
    pub(crate) fn about(mut self, name: &str) -> Self {
        self.name.get_or_insert_with(|| name.to_owned());
        self
    }

    /// For programs: what went wrong, a word for it, the exit code, and the name of the thing if there is one.
    pub(crate) fn json(&self, exit: u8) -> serde_json::Value {
        let mut said =
            serde_json::json!({"error": self.message, "code": self.code(), "exit": exit});
        if let Some(name) = &self.name {
            said["name"] = name.as_str().into();
        }
        said
    }

    /// The exit code of operator commands: 0, 1 refused or failed, 2 usage.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::BrokenPipe => 0,
            Kind::Usage => 2,
            _ => 1,
        }
    }

    /// The exit code of `run` and `dev`, which tells its own failures from those of the command as docker's does.
    pub(crate) fn exit_code_of_run(&self) -> u8 {
        match self.kind {
            Kind::CannotExecute => 126,
            Kind::CommandNotFound => 127,
            Kind::Ended(code) => code,
            _ => 125,
        }
    }

    /// Whether a line is to be printed.
    pub(crate) fn has_message(&self) -> bool {
        !matches!(self.kind, Kind::Reported | Kind::BrokenPipe | Kind::Ended(_))
    }

    /// A word for programs.
    fn code(&self) -> String {
        match self.kind {
            Kind::Usage => "USAGE".to_owned(),
            Kind::Status(code) => code_name(code).to_owned(),
            _ => "FAILED".to_owned(),
        }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// Of a request that only asks how far something is that was done already: what is said of requests that change
    /// something would be wrong of it, and lead to doing it twice.
    pub(crate) fn while_waiting(done: &str, look: &str, status: &Status) -> Self {
        let message = format!(
            "{done}; waiting for it failed ({}): see how far it is with 'keyhole {look}'",
            why(status)
        );
        Self::of(Kind::Status(status.code()), message)
    }

    /// Of an unlock key that was shown, of which the managers could not be told that.
    pub(crate) fn unseen_unlock_key(status: &Status) -> Self {
        let message = format!(
            "the key was shown, but the managers do not know that, and keep their stores as they are ({}): run 'keyhole \
             cluster unlock-key' again",
            why(status)
        );
        Self::of(Kind::Status(status.code()), message)
    }
}

/// The other side's words, or its code's name.
fn why(status: &Status) -> &str {
    match status.message() {
        "" => code_name(status.code()),
        why => why,
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::of(Kind::Status(status.code()), wording(&status))
    }
}

/// The other side's own words, or what happened on the way to it.
fn wording(status: &Status) -> String {
    if http2::never_sent(status) {
        return "the other side closed the connection before it was asked for this, as one that stops does; nothing was \
                done: try again"
            .to_owned();
    }
    if let Some(cause) = status.source() {
        return format!(
            "the connection was lost before an answer came ({}); the change may have been made or not: look, then \
             repeat it if need be",
            root(cause)
        );
    }
    match (status.code(), status.message()) {
        (Code::Unimplemented, _) => {
            "the other side does not know this request; it runs another version of keyhole: update the older of the \
             two"
            .to_owned()
        }
        (Code::Cancelled, "Timeout expired") => {
            "no answer came in time; the change may have been made or not: look, then repeat it if need be".to_owned()
        }
        (code, "") => format!("refused with {} and no reason", code_name(code)),
        (_, message) => message.to_owned(),
    }
}

fn root<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Only the standard streams give these without more context.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::of(Kind::BrokenPipe, ""),
            _ => Self::new(format!("cannot write the answer: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        assert_eq!(Failure::usage("x").exit_code(), 2);
        assert_eq!(Failure::new("x").exit_code(), 1);
        assert_eq!(Failure::reported().exit_code(), 1);
        assert_eq!(Failure::from(Status::not_found("x")).exit_code(), 1);
        assert_eq!(Failure::new("x").exit_code_of_run(), 125);
        assert_eq!(Failure::usage("x").exit_code_of_run(), 125);
        assert_eq!(Failure::cannot_execute("x").exit_code_of_run(), 126);
        assert_eq!(Failure::command_not_found("x").exit_code_of_run(), 127);
    }

    #[test]
    fn a_status_speaks_with_its_own_words_on_one_line() {
        let failure = Failure::from(Status::not_found("secret\nx \x1b[31mnot found"));
        assert_eq!(failure.to_string(), "secret x  [31mnot found");
        assert_eq!(failure.code(), "NOT_FOUND");
        let silent = Failure::from(Status::internal(""));
        assert_eq!(silent.to_string(), "refused with INTERNAL and no reason");
    }

    /// It was made: who believes that nothing was done makes it twice.
    #[test]
    fn what_ends_while_something_is_waited_for_does_not_undo_it() {
        let gone = Status::unavailable("connection closed");
        let failure = Failure::while_waiting("root CA 2 is made", "cluster status", &gone);
        assert_eq!(
            failure.to_string(),
            "root CA 2 is made; waiting for it failed (connection closed): see how far it is with 'keyhole cluster \
             status'"
        );
        assert_eq!(failure.code(), "UNAVAILABLE");
        let silent = Failure::while_waiting("x", "y", &Status::internal(""));
        assert!(silent.to_string().contains("(INTERNAL)"), "{silent}");
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit_code(), failure.has_message()), (0, false));
    }
}
