//! Errors of requests to the kernel.

use std::io;

use nix::errno::Errno;

/// A failed request to the kernel: the operation and the reason. The text can follow "failed to".
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Error {
    doing: String,
    errno: Option<Errno>,
    may_have_leftovers: bool,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// An error reply from the kernel: its error number, and its message if it gives one.
#[derive(Debug, thiserror::Error)]
#[error("{}{} ({errno:?})", .words, if .words.is_empty() { .errno.desc() } else { "" })]
pub(crate) struct KernelError {
    pub(crate) errno: Errno,
    pub(crate) words: String,
}

/// A netlink exchange that was not completed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncompleteExchange {
    /// The request did not reach the kernel, so nothing was changed.
    #[error(transparent)]
    NotSent(io::Error),
    /// The kernel executed or rejected the request, but its reply was lost.
    #[error("the kernel's reply was lost")]
    ReplyLost(#[source] io::Error),
}

/// The error for a file that is not a network namespace.
#[derive(Debug, thiserror::Error)]
#[error("not a namespace, but a file on a file system of type {0:#x}")]
pub(crate) struct NotNamespace(pub(crate) i64);

impl Error {
    pub(crate) fn new(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let mut may_have_leftovers = false;
        let errno = if let Some(unfinished) = source.downcast_ref::<IncompleteExchange>() {
            let (IncompleteExchange::NotSent(error) | IncompleteExchange::ReplyLost(error)) =
                unfinished;
            may_have_leftovers = matches!(unfinished, IncompleteExchange::ReplyLost(_));
            error.raw_os_error().map(Errno::from_raw)
        } else if let Some(error) = source.downcast_ref::<KernelError>() {
            Some(error.errno)
        } else if let Some(errno) = source.downcast_ref::<Errno>() {
            Some(*errno)
        } else {
            let io = source.downcast_ref::<io::Error>();
            io.and_then(io::Error::raw_os_error).map(Errno::from_raw)
        };
        Self {
            doing: doing.into(),
            errno,
            may_have_leftovers,
            source,
        }
    }

    /// Marks the error: what was created before the failure could not be removed again.
    pub(crate) fn with_leftovers(mut self) -> Self {
        self.may_have_leftovers = true;
        self
    }

    /// True if something may have been changed in spite of the error: the kernel's reply was lost,
    /// or what was created could not be removed again.
    #[must_use]
    pub fn may_have_leftovers(&self) -> bool {
        self.may_have_leftovers
    }

    /// True if the kernel cannot add such a route, or cannot send packets along it: there is no
    /// address of its family, the gateway is unreachable, a blackhole route matches, or IPv6 is
    /// disabled.
    pub(crate) fn is_unroutable(&self) -> bool {
        matches!(
            self.errno,
            Some(
                Errno::ENETUNREACH
                    | Errno::EHOSTUNREACH
                    | Errno::ENETDOWN
                    | Errno::EINVAL
                    | Errno::EACCES
                    | Errno::ENODEV
                    | Errno::EAFNOSUPPORT
                    | Errno::EOPNOTSUPP
            )
        )
    }

    /// True if there is no network namespace: nothing exists at its path, or something that is not
    /// a namespace.
    #[must_use]
    pub fn is_namespace_missing(&self) -> bool {
        let is_none = |errno| {
            matches!(
                errno,
                Errno::ENOENT
                    | Errno::ENOTDIR
                    | Errno::ESRCH
                    | Errno::ENXIO
                    | Errno::ENODEV
                    | Errno::ELOOP
                    | Errno::ENAMETOOLONG
                    | Errno::EINVAL
            )
        };
        self.source.is::<NotNamespace>() || self.errno.is_some_and(is_none)
    }

    /// True if an object with this name already exists.
    #[must_use]
    pub fn already_exists(&self) -> bool {
        self.errno == Some(Errno::EEXIST)
    }

    /// True if an element to add to a set or a map of `nf_tables` exists, with this or another value.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self.errno, Some(Errno::EEXIST | Errno::EBUSY))
    }

    /// True if the file system is read-only, as `/proc/sys` is in a container.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.errno == Some(Errno::EROFS)
    }

    /// True if the object of the request does not exist, or no longer does.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(
            self.errno,
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL)
        )
    }
}
