//! What holds addresses: an attachment, in one boot of the machine.

use std::time::{Duration, SystemTime};
use std::{fs, io};

/// (container id, ifname): what holds addresses within a network.
#[derive(Clone, Debug, PartialEq, Eq)]
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

    /// Whether an address file's `content` is this attachment's. The oldest host-local wrote
    /// the container's id alone.
    pub(crate) fn is_named_by(&self, content: &str) -> bool {
        let content = content.trim();
        content == self.container_id
            || content
                .strip_prefix(&self.container_id)
                .and_then(|rest| rest.strip_prefix("\r\n"))
                == Some(&self.ifname)
    }
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
