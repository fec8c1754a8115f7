//! The record of a pod's mappings: a file for each attachment, and a symbolic link for each address
//! of the pod.
//!
//! The files are in `/run`, because mappings do not survive a boot. The kernel's table can be written
//! again from them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use util::{none_if_not_found, retry_on_eintr};

use crate::mapping::Mapping;

/// The directory with everything about host ports.
pub(crate) const DIRECTORY: &str = "/run/cni-hostgw/host-ports";
/// The lock for all changes of mappings.
pub(crate) const LOCK: &str = "/run/cni-hostgw/host-ports/lock";
/// The table as it was written last.
const TABLE: &str = "/run/cni-hostgw/host-ports/table";
/// The records, by the name of the host veth.
const PODS: &str = "/run/cni-hostgw/host-ports/pods";
/// The records whose ports are closed, while flows to them may be left.
const CLOSED: &str = "/run/cni-hostgw/host-ports/closed";
/// The links to the records, by the pod's address.
const ADDRESSES: &str = "/run/cni-hostgw/host-ports/addresses";

/// Which connections to a mapping get an address of the node as their source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Masquerade {
    /// None (`snat: false`).
    None,
    /// Those from the pod's own subnet and from the node's loopback addresses, which would get no
    /// answer otherwise.
    #[default]
    Subnet,
    /// All (`masqAll: true`).
    All,
}

/// The mappings of one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Name of the network.
    pub network: String,
    /// Container id.
    pub container_id: String,
    /// Name of the interface in the container.
    pub ifname: String,
    /// Name of the pod, if the runtime gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Name of the host veth as our plugin computes it. It identifies the attachment.
    pub veth: String,
    /// Name of the host veth if another plugin made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_link: Option<String>,
    /// The start of the host veth's alias, which stays if someone renames it.
    pub alias: String,
    /// Name of the bridge.
    pub bridge: String,
    /// Addresses of the pod, with the prefix lengths of their subnets.
    pub addresses: Vec<IpNetwork>,
    /// Which connections are masqueraded.
    pub masquerade: Masquerade,
    /// The mappings.
    pub mappings: Vec<Mapping>,
    /// True if the ports are closed, and only flows to them may be left.
    #[serde(skip)]
    pub is_closed: bool,
}

impl Record {
    /// The pod's name, or the container id if the name is unknown.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.pod.as_deref().unwrap_or(&self.container_id)
    }

    /// The comment of the record's elements in the kernel, of less than 120 bytes: the host veth,
    /// network, container id and interface, and the pod.
    pub(crate) fn comment(&self) -> String {
        const MAX_LEN: usize = 119;
        let short = |text: &str, length| text.chars().take(length).collect::<String>();
        let mut comment = format!(
            "{} {}/{}/{}",
            self.veth,
            short(&self.network, 24),
            short(&self.container_id, 12),
            self.ifname
        );
        if let Some(pod) = &self.pod {
            comment = format!("{comment} {pod}");
        }
        while comment.len() > MAX_LEN {
            comment.pop();
        }
        comment
    }

    /// Writes the record, and the links from the pod's addresses. On failure, nothing is left.
    ///
    /// The file is not replaced atomically: it is read and written only under the lock, and one that
    /// a killed process left incomplete counts as a record without mappings.
    pub(crate) fn write(&self) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("a record has only text keys");
        let write = || {
            create_directories_if_missing(|| fs::write(path(&self.veth), &text))?;
            let mut addresses = self.addresses.iter();
            addresses.try_for_each(|address| self.write_link(address.ip()))
        };
        write().inspect_err(|_| drop(self.remove()))
    }

    /// Notes that the ports are closed, if that is not noted yet.
    pub(crate) fn close(mut self) -> io::Result<Self> {
        if !self.is_closed {
            fs::rename(path(&self.veth), Path::new(CLOSED).join(&self.veth))?;
            self.is_closed = true;
        }
        Ok(self)
    }

    fn write_link(&self, address: IpAddr) -> io::Result<()> {
        let link = address_link(address);
        let create = || symlink(Path::new("../pods").join(&self.veth), &link);
        match create() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&link)?;
                create()
            }
            other => other,
        }
    }

    /// Removes the record and the links that lead to it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for address in &self.addresses {
            let link = address_link(address.ip());
            let owner = none_if_not_found(fs::read_link(&link))?;
            if owner.is_some_and(|owner| owner.ends_with(&self.veth)) {
                none_if_not_found(fs::remove_file(link))?;
            }
        }
        remove(&self.veth)
    }

    /// Reads the record of a host veth. `None` if it has none.
    pub(crate) fn read(veth: &str) -> io::Result<Option<Self>> {
        for (directory, is_closed) in [(PODS, false), (CLOSED, true)] {
            if let Some(text) = none_if_not_found(fs::read(Path::new(directory).join(veth)))? {
                let record: Self = serde_json::from_slice(&text)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                return Ok(Some(Self {
                    is_closed,
                    ..record
                }));
            }
        }
        Ok(None)
    }
}

/// Returns whether a host veth has a record, without reading it.
pub(crate) fn exists(veth: &str) -> io::Result<bool> {
    let is_in = |directory| -> io::Result<bool> {
        let file = fs::symlink_metadata(Path::new(directory).join(veth));
        Ok(none_if_not_found(file)?.is_some())
    };
    Ok(is_in(PODS)? || is_in(CLOSED)?)
}

/// Removes the record of a host veth. Succeeds if there is none.
pub(crate) fn remove(veth: &str) -> io::Result<()> {
    for directory in [PODS, CLOSED] {
        none_if_not_found(fs::remove_file(Path::new(directory).join(veth)))?;
    }
    Ok(())
}

/// Returns the host veth to whose record the link of an address leads, if there is one.
pub(crate) fn veth_of(address: IpAddr) -> io::Result<Option<String>> {
    let link = none_if_not_found(fs::read_link(address_link(address)))?;
    let name = link.as_deref().and_then(Path::file_name);
    Ok(name.map(|name| name.to_string_lossy().into_owned()))
}

/// Removes the link of an address.
pub(crate) fn remove_link(address: IpAddr) -> io::Result<()> {
    none_if_not_found(fs::remove_file(address_link(address))).map(drop)
}

/// Returns the host veths that have records. `None` if there never was one since the boot.
pub(crate) fn veths() -> io::Result<Option<Vec<String>>> {
    let mut veths = Vec::new();
    for directory in [PODS, CLOSED] {
        let list = || fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>();
        let Some(entries) = none_if_not_found(retry_on_eintr(list))? else {
            return Ok(None);
        };
        let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        veths.extend(entries.iter().map(name));
    }
    Ok(Some(veths))
}

/// The table as it was written last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// The fingerprint of its chains.
    pub(crate) fingerprint: u64,
    /// The bridges that may route loopback addresses.
    pub(crate) bridges: Vec<String>,
}

impl Written {
    /// Saves it.
    pub(crate) fn save(&self) -> io::Result<()> {
        let text = format!("{} {}\n", self.fingerprint, self.bridges.join(" "));
        create_directories_if_missing(|| fs::write(TABLE, &text))
    }

    /// Returns what was saved. `None` if the table was never written, or is not ours any more.
    pub(crate) fn saved() -> io::Result<Option<Self>> {
        let text = none_if_not_found(fs::read_to_string(TABLE))?.unwrap_or_default();
        let mut words = text.split_whitespace();
        let fingerprint = words.next().and_then(|word| word.parse().ok());
        Ok(fingerprint.map(|fingerprint| Self {
            fingerprint,
            bridges: words.map(str::to_owned).collect(),
        }))
    }

    /// Forgets it.
    pub(crate) fn forget() -> io::Result<()> {
        none_if_not_found(fs::remove_file(TABLE)).map(drop)
    }
}

/// Runs `write`, and again with the directories if they are missing.
fn create_directories_if_missing(write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match write() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for directory in [PODS, CLOSED, ADDRESSES] {
                fs::create_dir_all(directory)?;
            }
            write()
        }
        other => other,
    }
}

fn path(veth: &str) -> PathBuf {
    Path::new(PODS).join(veth)
}

fn address_link(address: IpAddr) -> PathBuf {
    Path::new(ADDRESSES).join(address.to_string())
}
