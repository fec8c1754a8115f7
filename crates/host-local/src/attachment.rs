//! The holders of addresses: attachments, and the boot that they belong to.

use std::time::{Duration, SystemTime};
use std::{fmt, fs, io};

/// An attachment, which holds addresses in a network: the container ID and the interface name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    container_id: String,
    ifname: String,
}

impl Attachment {
    /// Returns an attachment. Both names must be valid according to the CNI SPEC; they contain
    /// neither `/` nor `:`.
    #[must_use]
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    /// Returns the container ID.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Returns the interface name in the container.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// The holder of an address, as read from the file of the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An attachment.
    Attachment(Attachment),
    /// All attachments of a container: old versions of host-local wrote only the container ID.
    Container(String),
}

impl Holder {
    /// Parses the file of an address. Returns `None` if it names no holder, as after a crash: the
    /// file is empty, incomplete, or filled with zeros by a file system that did not write the data
    /// in time.
    pub(crate) fn parse(content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?;
        match text.split_once("\r\n") {
            Some((id, ifname)) if is_identifier(id.trim()) && !ifname.trim().is_empty() => Some(
                Self::Attachment(Attachment::new(id.trim(), ifname.trim_end())),
            ),
            None if !text.contains('\r') && is_identifier(text.trim()) => {
                Some(Self::Container(text.trim().to_owned()))
            }
            _ => None,
        }
    }

    /// True if this is `who`, or the container of `who`.
    #[must_use]
    pub fn is(&self, who: &Attachment) -> bool {
        match self {
            Self::Attachment(attachment) => attachment == who,
            Self::Container(id) => *id == who.container_id,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attachment(who) => {
                write!(
                    f,
                    "container {}, interface {}",
                    who.container_id, who.ifname
                )
            }
            Self::Container(id) => write!(f, "container {id}"),
        }
    }
}

/// True if the CNI SPEC allows this text as a container ID.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The current boot of the machine. Network namespaces do not survive a reboot, so reservations do
/// not either.
#[derive(Clone, Debug)]
pub struct Boot {
    pub(crate) id: String,
}

impl Boot {
    /// Reads the boot ID of the running kernel.
    pub fn current() -> io::Result<Self> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            id: id.trim().to_owned(),
        })
    }

    /// Returns the time of the boot. Used only for the reservations whose boot is not recorded.
    pub(crate) fn started() -> io::Result<SystemTime> {
        let uptime = fs::read_to_string("/proc/uptime")?;
        let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
        let seconds = seconds.ok_or_else(|| io::Error::other("/proc/uptime contains no number"))?;
        Ok(SystemTime::now() - Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_never_panic() {
        random_input::never_panics(&[b"pod1\r\neth0", b"pod1", b"\0\0\0\0"], |content| {
            if let Some(Holder::Container(id)) = Holder::parse(content) {
                assert!(is_identifier(&id), "{id:?}");
            }
        });
    }
}
