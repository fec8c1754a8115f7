//! The state of a network that is kept between requests, besides its reservations.
//! The files are in the network's store, so that they are locked with it and end with it.

use std::fmt;

use host_local::{EmptyNetwork, Store, StoreError};
use ipnetwork::IpNetwork;
use kernel::{Mac, Port};

/// Something that a network has or had on the node in addition to its attachments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// Masquerading rules by netlink.
    Nftables,
    /// Masquerading rules by the program `iptables`.
    Iptables,
    /// Masquerading rules by the program `ip6tables`.
    Ip6tables,
    /// A container with a requested hardware address.
    RequestedMac,
    /// Addresses that the `host-local` plugin reserved.
    HostLocal,
}

impl Feature {
    const ALL: [Self; 5] = [
        Self::Nftables,
        Self::Iptables,
        Self::Ip6tables,
        Self::RequestedMac,
        Self::HostLocal,
    ];

    /// Its word in the store's file.
    fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
            Self::RequestedMac => "mac",
            Self::HostLocal => Store::HOST_LOCAL_FEATURE,
        }
    }

    /// Notes that the network has this. It must be noted before it is created, so that it is
    /// removed even after a crash.
    pub(crate) fn note(self, store: &Store) -> Result<(), StoreError> {
        store.add_feature(self.as_str())
    }

    /// The features that were noted.
    pub(crate) fn noted(store: &Store) -> Result<Vec<Self>, StoreError> {
        Ok(Self::read(&store.features()?))
    }

    /// The features of a network that has no attachment left.
    pub(crate) fn of_empty(network: &EmptyNetwork<'_>) -> Vec<Self> {
        Self::read(network.features())
    }

    fn read(marks: &[String]) -> Vec<Self> {
        let feature = |mark: &String| {
            let mut all = Self::ALL.into_iter();
            all.find(|feature| feature.as_str() == mark)
        };
        marks.iter().filter_map(feature).collect()
    }
}

/// The settings that the last ADD made the bridge and the network's ports with. To read the ports
/// themselves would cost 5 µs for each port of the node on every ADD, and the kernel does not tell
/// whether a bridge's hardware address was set.
pub(crate) struct Settings<'a> {
    pub(crate) bridge: &'a str,
    /// The bridge's index: a bridge that was created again has another.
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) port: Port,
    pub(crate) addresses: AddressSource,
}

/// Where the network's addresses come from.
pub(crate) enum AddressSource {
    /// These subnets. Other networks read them from here.
    Subnets(Vec<IpNetwork>),
    /// Another IPAM plugin; with the `ipam` that it gets.
    Delegate(String),
    None,
}

/// The start of the line that has the IPAM plugin's `ipam`.
const IPAM: &str = "ipam ";

impl Settings<'_> {
    /// True if the last ADD used the same settings.
    pub(crate) fn are_current(&self, store: &Store) -> Result<bool, StoreError> {
        Ok(store.settings()? == self.to_string())
    }

    /// Saves them.
    pub(crate) fn save(&self, store: &Store) -> Result<(), StoreError> {
        store.set_settings(&self.to_string())
    }

    /// Forgets them, so that the next ADD applies its settings.
    pub(crate) fn forget(store: &Store) -> Result<(), StoreError> {
        store.set_settings("")
    }

    /// The `ipam` that the IPAM plugin got from the last ADD.
    pub(crate) fn saved_ipam(store: &Store) -> Result<Option<String>, StoreError> {
        let settings = store.settings()?;
        let mut lines = settings.lines();
        let ipam = lines.find_map(|line| line.strip_prefix(IPAM));
        Ok(ipam.map(str::to_owned))
    }
}

impl fmt::Display for Settings<'_> {
    /// Formats the content of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bridge, index, mac, ..
        } = self;
        let Port { hairpin, isolated } = self.port;
        writeln!(
            f,
            "bridge {bridge} {index} {mac}: hairpin {hairpin}, isolated {isolated}"
        )?;
        match &self.addresses {
            AddressSource::Subnets(subnets) => {
                let subnets: Vec<_> = subnets.iter().map(ToString::to_string).collect();
                writeln!(f, "{}{}", Store::SUBNETS, subnets.join(" "))
            }
            AddressSource::Delegate(ipam) => writeln!(f, "{IPAM}{ipam}"),
            AddressSource::None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent or a plugin of an earlier release may have written it, and may read it.
    #[test]
    fn the_settings_have_a_fixed_format() {
        let settings = |addresses| Settings {
            bridge: "cni0",
            index: 7,
            mac: "0a:58:0a:0a:01:01".parse().expect("valid"),
            port: Port {
                hairpin: true,
                isolated: false,
            },
            addresses,
        };
        let subnets = ["10.10.1.0/24", "fd00::/64"].map(|text| text.parse().expect("a network"));
        let first = "bridge cni0 7 0a:58:0a:0a:01:01: hairpin true, isolated false\n";
        assert_eq!(
            settings(AddressSource::Subnets(subnets.to_vec())).to_string(),
            format!("{first}subnets 10.10.1.0/24 fd00::/64\n")
        );
        let ipam = r#"{"type":"dhcp"}"#.to_owned();
        assert_eq!(
            settings(AddressSource::Delegate(ipam)).to_string(),
            format!("{first}ipam {{\"type\":\"dhcp\"}}\n")
        );
        assert_eq!(settings(AddressSource::None).to_string(), first);
    }
}
