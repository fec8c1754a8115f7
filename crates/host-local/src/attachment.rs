//! What holds addresses: an attachment, in one boot of the machine.

use std::time::{Duration, SystemTime};
use std::{fmt, fs, io};

/// (container id, ifname): what holds addresses within a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    container_id: String,
    ifname: String,
}

impl Attachment {
    /// Both are names that the protocol has checked: neither holds `/` or `:`.
    #[must_use]
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    /// The container's id.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface's name in the container.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// Who holds an address, according to its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An attachment.
    Attachment(Attachment),
    /// A container: the oldest host-local wrote its id alone.
    Container(String),
}

impl Holder {
    /// Reads an address file. What names nobody is what a crash leaves: nothing, or half a file,
    /// or the zeros of a file system that had no time to write it.
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

    /// Whether that is `who`, or all of the container that `who` is of.
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

/// What the protocol allows for a container's id.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The boot of the machine that we run in. No network namespace survives a boot, so neither
/// does a reservation.
#[derive(Clone, Debug)]
pub struct Boot {
    pub(crate) id: String,
}

impl Boot {
    /// The running kernel's.
    pub fn current() -> io::Result<Self> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            id: id.trim().to_owned(),
        })
    }

    /// When it began. Only asked for when a boot has passed.
    pub(crate) fn started() -> io::Result<SystemTime> {
        let uptime = fs::read_to_string("/proc/uptime")?;
        let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
        let seconds = seconds.ok_or_else(|| io::Error::other("/proc/uptime holds no number"))?;
        Ok(SystemTime::now() - Duration::from_secs(seconds))
    }
}
