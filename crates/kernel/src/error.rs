//! A request that the kernel refused.

use std::io;

use nix::errno::Errno;

/// What we asked for, and why the kernel refused. Fit to follow "failed to".
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Error {
    doing: String,
    errno: Option<Errno>,
    may_remain: bool,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The kernel's answer: its number, and its own words where it gives some.
#[derive(Debug, thiserror::Error)]
#[error("{}{} ({errno:?})", .words, if .words.is_empty() { .errno.desc() } else { "" })]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) words: String,
}

/// An exchange with the kernel that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfinished {
    /// The request did not reach the kernel: nothing was changed.
    #[error(transparent)]
    NotSent(io::Error),
    /// The kernel carried the request out, or refused it, and its answer is lost.
    #[error("the kernel's answer is lost")]
    NoAnswer(#[source] io::Error),
}

/// A file that is not a network namespace.
#[derive(Debug, thiserror::Error)]
#[error("it is not a namespace, but a file of type {0:#x}")]
pub(crate) struct NotNamespace(pub(crate) i64);

impl Error {
    pub(crate) fn new(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let mut may_remain = false;
        let errno = if let Some(unfinished) = source.downcast_ref::<Unfinished>() {
            let (Unfinished::NotSent(error) | Unfinished::NoAnswer(error)) = unfinished;
            may_remain = matches!(unfinished, Unfinished::NoAnswer(_));
            error.raw_os_error().map(Errno::from_raw)
        } else if let Some(refusal) = source.downcast_ref::<Refusal>() {
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
            may_remain,
            source,
        }
    }

    /// The same, where what was made before it failed could not be taken away again.
    pub(crate) fn remaining(mut self) -> Self {
        self.may_remain = true;
        self
    }

    /// Whether it is not known that nothing was changed: the kernel's answer is lost, or what
    /// was made could not be taken away.
    #[must_use]
    pub fn may_remain(&self) -> bool {
        self.may_remain
    }

    /// Whether the kernel has no way to take such a route, or packets there: no address of its family,
    /// no way to its gateway, a blackhole, IPv6 turned off.
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

    /// Whether there is no network namespace: nothing at its path, or something else.
    #[must_use]
    pub fn is_no_namespace(&self) -> bool {
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

/// Calls again while a signal interrupts. A call that is interrupted for ever fails.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 1000;
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    call()
}
