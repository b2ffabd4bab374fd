//! The daemons' log lines: to standard error, as text or JSON.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What the daemons say.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogOptions {
    /// Which lines: error, warn, info, debug, trace, or a filter such as keyhole_manager=debug
    #[arg(long, value_name = "LEVEL", default_value = "info,openraft=warn")]
    log_level: String,
    /// How they look
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

impl LogOptions {
    /// The arguments that say the same, for a process that is started in turn.
    pub(crate) fn arguments(&self) -> [String; 4] {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        ["--log-level", &self.log_level, "--log-format", format].map(str::to_owned)
    }

    /// From here on lines are written.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        let filter: EnvFilter = self.log_level.parse().map_err(|error| {
            Failure::usage(format!(
                "--log-level {:?} is no level or filter: {error}",
                self.log_level
            ))
        })?;
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(crate::console::colours(&std::io::stderr()));
        let started = match self.log_format {
            LogFormat::Text => lines.try_init(),
            LogFormat::Json => lines.json().try_init(),
        };
        started.map_err(|error| Failure::new(format!("cannot start the log: {error}")))
    }
}
