//! Errors of the subnet file.

use std::io;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

/// The error for an invalid subnet file, or for a file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The value of a key is invalid.
    #[error("{key} is {value:?}, which is not {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// The value of the key.
        value: String,
        /// The valid form of the value.
        expected: &'static str,
    },
    /// The subnet or network is invalid.
    #[error("subnet {subnet} {reason}")]
    Subnet {
        /// The subnet.
        subnet: IpNetwork,
        /// The reason.
        reason: &'static str,
    },
    /// Required keys are missing.
    #[error("is missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// The content of the file is invalid.
    #[error("{path}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: Box<Error>,
    },
    /// The file could not be read or written.
    #[error("{doing} {path}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// True if the file may exist but could not be read, so that its content is unknown.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        !matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    }
}
