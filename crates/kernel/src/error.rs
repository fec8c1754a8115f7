//! A request that the kernel refused.

use std::io;

use nix::errno::Errno;

/// What we asked for, and why the kernel refused. Fit to follow "failed to".
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Error {
    doing: String,
    errno: Option<Errno>,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The kernel's answer: its number, and its own words where it gives some.
#[derive(Debug, thiserror::Error)]
#[error("{}{} ({errno:?})", .words, if .words.is_empty() { .errno.desc() } else { "" })]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) words: String,
}

impl Error {
    pub(crate) fn new(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let errno = if let Some(refusal) = source.downcast_ref::<Refusal>() {
            Some(refusal.errno)
        } else if let Some(errno) = source.downcast_ref::<Errno>() {
            Some(*errno)
        } else {
            let io = source.downcast_ref::<io::Error>();
            io.and_then(io::Error::raw_os_error).map(Errno::from_raw)
        };
        Self {
            doing: doing.into(),
            errno,
            source,
        }
    }

    /// There is one of that name already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno == Some(Errno::EEXIST)
    }

    /// It lies where nothing can be written, as `/proc/sys` does in a container.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.errno == Some(Errno::EROFS)
    }

    /// What we asked about is gone, or was never there.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(
            self.errno,
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL)
        )
    }
}
