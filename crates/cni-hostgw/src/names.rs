//! The names of an attachment on the host, computed from what identifies it.
//!
//! So DEL, CHECK and whoever cleans up find them with nothing but the attachment.

use cni::{Attached, HOST_VETH_ALIAS, NetworkName};
use host_local::Attachment;
use kernel::{ALIAS_MAX, Link, Mac};
use sha2::{Digest, Sha256};

/// What an attachment's host end is called.
pub(crate) struct Names {
    /// The host veth's name: `veth` and 11 characters, 15 bytes in all.
    pub(crate) veth: String,
    /// The host veth's hardware address, apart from any container's.
    pub(crate) mac: Mac,
    /// A hardware address for the container's end that goes with the attachment: for one whose
    /// addresses are not known yet.
    pub(crate) container_mac: Mac,
    key: String,
}

impl Names {
    pub(crate) fn of(network: &NetworkName, attached: &Attached) -> Self {
        Self::hash(
            network,
            attached.container_id.as_str(),
            attached.ifname.as_str(),
        )
    }

    /// The same for an attachment that the store knows.
    pub(crate) fn of_reserved(network: &NetworkName, attachment: &Attachment) -> Self {
        Self::hash(network, attachment.container_id(), attachment.ifname())
    }

    fn hash(network: &NetworkName, container_id: &str, ifname: &str) -> Self {
        const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        // None of the three can hold a slash.
        let key = format!("{network}/{container_id}/{ifname}");
        let hash: [u8; 32] = Sha256::digest(&key).into();
        let digit = |byte: &u8| char::from(DIGITS[usize::from(byte & 31)]);
        Self {
            veth: "veth".chars().chain(hash[..11].iter().map(digit)).collect(),
            mac: Mac::local(0x59, [hash[28], hash[29], hash[30], hash[31]]),
            container_mac: Mac::local(0x5b, [hash[24], hash[25], hash[26], hash[27]]),
            key: format!("{}/{container_id}/{ifname}", shortened(network)),
        }
    }

    /// Whether a link is the attachment's host veth: by its name, or by its alias where somebody
    /// renamed it.
    pub(crate) fn is_of(&self, link: &Link) -> bool {
        let alias = link.alias.as_deref().unwrap_or_default();
        let rest = alias.strip_prefix(&self.alias(None));
        link.name == self.veth || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    /// The host veth's alias: network, container id and interface, and the pod where its name is
    /// known, for the people who read `ip link`.
    pub(crate) fn alias(&self, pod: Option<&str>) -> String {
        let pod = pod.map(|pod| format!(" {pod}")).unwrap_or_default();
        let mut alias = format!("{HOST_VETH_ALIAS}{}{pod}", self.key);
        while alias.len() > ALIAS_MAX {
            alias.pop();
        }
        alias
    }
}

/// A network's name where there is not room for every one: the first letters of a long one, and
/// a hash of all of them.
pub(crate) fn shortened(network: &NetworkName) -> String {
    /// The kernel gives a table's name 127 bytes, and ours begins with eleven.
    const LONGEST: usize = 116;
    let name = network.as_str();
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let hash: [u8; 32] = Sha256::digest(name).into();
    let first = hash.first_chunk().expect("it has 32 bytes");
    format!(
        "{}-{:016x}",
        &name[..LONGEST - 17],
        u64::from_be_bytes(*first)
    )
}

/// Whom a host veth is of, according to its alias; nothing where it is none of ours.
pub(crate) struct Owner<'a> {
    /// The network.
    network: &'a str,
    /// The pod, or where its name is not known the container's id.
    pub(crate) pod: &'a str,
}

/// Whether a link is the host veth of one of the network's attachments.
pub(crate) fn is_of(link: &Link, network: &NetworkName) -> bool {
    Owner::of(link).is_some_and(|owner| owner.network == shortened(network))
}

impl<'a> Owner<'a> {
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
    use cni::{ContainerId, IfName};

    use super::*;

    fn names(network: &str, id: &str, ifname: &str) -> Names {
        let attached = Attached {
            container_id: ContainerId::new(id).expect("valid"),
            ifname: IfName::new(ifname).expect("valid"),
            netns: None,
            args: String::new(),
        };
        Names::of(&NetworkName::new(network).expect("valid"), &attached)
    }

    #[test]
    fn names_are_stable_and_tell_attachments_apart() {
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
    fn the_longest_names_fit_into_the_kernels() {
        let network = "n".repeat(250);
        let long = names(&network, &"c".repeat(200), "fifteen-bytes-x");
        let alias = long.alias(None);
        assert_eq!((long.veth.len(), alias.len()), (15, ALIAS_MAX));
        let network = NetworkName::new(&network).expect("valid");
        let head = format!("{HOST_VETH_ALIAS}{}/", shortened(&network));
        assert!(alias.starts_with(&head), "the whole network can be told");
    }
}
