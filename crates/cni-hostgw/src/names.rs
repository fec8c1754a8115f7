//! The names of an attachment on the host. They are computed from what identifies it, so DEL, CHECK
//! and GC find them without a result or a file.

use cni::{AttachmentHash, HOST_VETH_ALIAS, NetworkName, Parameters};
use host_local::Attachment;
use kernel::{ALIAS_MAX, Link, Mac};
use sha2::{Digest, Sha256};

/// The second byte of hardware addresses that the plugin computes or chooses. It differs for
/// different uses. Addresses that are computed from an IP address have 0x58
/// ([`Mac::of`]).
#[derive(Clone, Copy)]
pub(crate) enum MacKind {
    HostVeth = 0x59,
    Bridge = 0x5a,
    Container = 0x5b,
}

impl MacKind {
    /// The hardware address with these last four bytes.
    pub(crate) fn with(self, bytes: [u8; 4]) -> Mac {
        Mac::local(self as u8, bytes)
    }
}

/// The attachment that ADD, DEL or CHECK is about.
pub(crate) fn attachment(parameters: &Parameters) -> Attachment {
    let Parameters {
        container_id,
        ifname,
        ..
    } = parameters;
    Attachment::new(container_id.as_str(), ifname.as_str())
}

/// The names of an attachment's host veth, and hardware addresses for both ends.
pub(crate) struct Names {
    /// Name of the host veth: `veth` and 11 characters, 15 bytes in all.
    pub(crate) veth: String,
    /// Name of the link that limits what the container sends: `bwp`, as for the `bandwidth` plugin,
    /// and 12 characters.
    pub(crate) ifb: String,
    /// Hardware address of the host veth.
    pub(crate) mac: Mac,
    /// Hardware address for the container's end while its IP addresses are unknown.
    pub(crate) container_mac: Mac,
    key: String,
}

impl Names {
    /// Computes the names of `attachment` in `network`.
    pub(crate) fn of(network: &NetworkName, attachment: &Attachment) -> Self {
        let (container_id, ifname) = (attachment.container_id(), attachment.ifname());
        let hash = AttachmentHash::of(network.as_str(), container_id, ifname);
        let [container, host] = hash.numbers();
        Self {
            veth: hash.host_veth(),
            ifb: hash.name("bwp"),
            mac: MacKind::HostVeth.with(host),
            container_mac: MacKind::Container.with(container),
            key: format!("{}/{container_id}/{ifname}", shortened(network)),
        }
    }

    /// True if a link is the attachment's host veth: by its name, or by its alias if someone renamed
    /// it.
    pub(crate) fn is_of(&self, link: &Link) -> bool {
        let alias = link.alias.as_deref().unwrap_or_default();
        let rest = alias.strip_prefix(&self.alias(None));
        link.name == self.veth || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    /// The alias of the host veth: network, container id and interface, and the pod if its name is
    /// known. It is for people who read `ip link`, too.
    pub(crate) fn alias(&self, pod: Option<&str>) -> String {
        self.alias_after(HOST_VETH_ALIAS, pod)
    }

    /// The same for the link that limits what the container sends.
    pub(crate) fn ifb_alias(&self, pod: Option<&str>) -> String {
        self.alias_after(IFB_ALIAS, pod)
    }

    fn alias_after(&self, prefix: &str, pod: Option<&str>) -> String {
        let pod = pod.map(|pod| format!(" {pod}")).unwrap_or_default();
        let mut alias = format!("{prefix}{}{pod}", self.key);
        while alias.len() > ALIAS_MAX {
            alias.pop();
        }
        alias
    }
}

/// A network's name for places with a limited length: a long name is cut, and gets a hash of the whole
/// name.
pub(crate) fn shortened(network: &NetworkName) -> String {
    /// A table's name has at most 127 bytes, and ours starts with eleven.
    const MAX_LEN: usize = 116;
    let name = network.as_str();
    if name.len() <= MAX_LEN {
        return name.to_owned();
    }
    let hash: [u8; 32] = Sha256::digest(name).into();
    let first = hash.first_chunk().expect("the hash has 32 bytes");
    format!(
        "{}-{:016x}",
        &name[..MAX_LEN - 17],
        u64::from_be_bytes(*first)
    )
}

/// The owner of a host veth, according to its alias.
pub(crate) struct Owner<'a> {
    /// Name of the network, shortened.
    network: &'a str,
    /// The pod's name, or the container id if the name is unknown.
    pub(crate) pod: &'a str,
}

/// The start of the alias of a link that limits what a container sends.
const IFB_ALIAS: &str = "cni-hostgw-bandwidth ";

/// True if a link limits what a container in this network sends.
pub(crate) fn is_ifb_of(link: &Link, network: &NetworkName) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    let key = alias.strip_prefix(IFB_ALIAS);
    let owner = key.and_then(|key| key.split('/').next());
    owner.is_some_and(|owner| owner == shortened(network))
}

/// True if a link is the host veth of an attachment in this network.
pub(crate) fn belongs_to(link: &Link, network: &NetworkName) -> bool {
    Owner::of(link).is_some_and(|owner| owner.network == shortened(network))
}

impl<'a> Owner<'a> {
    /// Reads a link's alias. `None` if the link is not a host veth of ours.
    pub(crate) fn of(link: &'a Link) -> Option<Self> {
        let key = link.alias.as_deref()?.strip_prefix(HOST_VETH_ALIAS)?;
        let (network, rest) = key.split_once('/')?;
        let container_id = rest.split('/').next()?;
        let pod = rest.split_once(' ').map(|(_, pod)| pod);
        Some(Self {
            network,
            pod: pod.unwrap_or(container_id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(network: &str, id: &str, ifname: &str) -> Names {
        let network = NetworkName::new(network).expect("valid");
        Names::of(&network, &Attachment::new(id, ifname))
    }

    #[test]
    fn names_are_stable_and_distinguish_attachments() {
        let one = names("cbr0", "pod1", "eth0");
        assert_eq!(one.veth, "veths4w6iapwsjz");
        assert_eq!(one.alias(None), "cni-hostgw cbr0/pod1/eth0");
        let with_pod = one.alias(Some("default/web"));
        assert_eq!(with_pod, "cni-hostgw cbr0/pod1/eth0 default/web");
        for other in [
            names("cbr1", "pod1", "eth0"),
            names("cbr0", "pod2", "eth0"),
            names("cbr0", "pod1", "eth1"),
        ] {
            assert_ne!(one.veth, other.veth);
            assert_ne!(one.mac, other.mac);
        }
    }

    #[test]
    fn the_longest_names_fit_into_the_kernels_limits() {
        let network = "n".repeat(250);
        let long = names(&network, &"c".repeat(200), "fifteen-bytes-x");
        let alias = long.alias(None);
        assert_eq!((long.veth.len(), alias.len()), (15, ALIAS_MAX));
        let network = NetworkName::new(&network).expect("valid");
        let head = format!("{HOST_VETH_ALIAS}{}/", shortened(&network));
        assert!(
            alias.starts_with(&head),
            "the alias contains the whole network name"
        );
    }
}
