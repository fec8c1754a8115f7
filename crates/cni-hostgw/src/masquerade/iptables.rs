//! Masquerading with the programs `iptables` and `ip6tables`. For users who need it: each check
//! starts one program, and each change starts two more.

use std::collections::BTreeSet;

use cni::NetworkName;
use host_local::Store;
use ipnetwork::IpNetwork;
use programs::iptables::{self, Iptables};
use sha2::{Digest, Sha256, Sha512};
use subnet::Subnet;
use util::hex_128;

use crate::error::Error;
use crate::names::shortened;

const IPTABLES: Iptables = Iptables {
    name: "iptables",
    lock_wait: 5,
};

const IP6TABLES: Iptables = Iptables {
    name: "ip6tables",
    lock_wait: 5,
};

/// Returns the program for an address family.
fn program(is_ipv6: bool) -> Iptables {
    if is_ipv6 { IP6TABLES } else { IPTABLES }
}

/// Masquerading of packets that leave `subnet`, except those to multicast addresses and to the
/// networks in `except`.
pub(crate) struct Masquerade<'a> {
    network: &'a NetworkName,
    subnet: IpNetwork,
    except: Vec<IpNetwork>,
}

impl<'a> Masquerade<'a> {
    pub(crate) fn new(network: &'a NetworkName, subnet: IpNetwork, except: &[IpNetwork]) -> Self {
        let match_family = |other: &&IpNetwork| other.is_ipv4() == subnet.is_ipv4();
        Self {
            network,
            subnet,
            except: except.iter().filter(match_family).copied().collect(),
        }
    }

    /// Returns true if POSTROUTING has a jump to the rules.
    pub(crate) fn is_present(&self) -> Result<bool, Error> {
        let (subnet, comment, chain) = (self.subnet.to_string(), self.comment(), self.chain());
        let matches = ["-s", &subnet, "-m", "comment", "--comment", &comment];
        let rule = [&["POSTROUTING"][..], &matches, &["-j", &chain]].concat();
        let program = self.program();
        program.has_rule("nat", &rule).map_err(failed(program))
    }

    /// Installs the rules in one transaction. They replace rules with other exceptions.
    pub(crate) fn ensure(&self, store: &Store) -> Result<(), Error> {
        if self.is_present()? {
            return Ok(());
        }
        // Unlike links, duplicate rules are not rejected by the kernel. The lock makes a concurrent
        // request wait.
        let _exclusive = store.exclusive()?;
        if self.is_present()? {
            return Ok(());
        }
        let (chain, subnet, comment) = (self.chain(), self.subnet, self.comment());
        let multicast = Subnet::of(subnet).multicast();
        let keep = self
            .except
            .iter()
            .map(|network| format!("-A {chain} -d {network} -j RETURN\n"));
        let of_subnet = |jump: &Jump| jump.comment == comment && jump.source == Some(subnet);
        let before = removal(&jumps(self.program(), of_subnet)?);
        let rules = [
            format!(":{chain} - [0:0]\n"),
            keep.collect(),
            format!("-A {chain} ! -d {multicast} -j MASQUERADE\n"),
            before,
            format!("-A POSTROUTING -s {subnet} -m comment --comment \"{comment}\" -j {chain}\n"),
        ];
        let program = self.program();
        let rules = rules.concat();
        program.restore("nat", &rules).map_err(failed(program))
    }

    fn program(&self) -> Iptables {
        program(self.subnet.is_ipv6())
    }

    fn comment(&self) -> String {
        comment(self.network)
    }

    /// Returns the name of the chain. Other exceptions result in another name. The programs limit a
    /// name to 28 characters.
    fn chain(&self) -> String {
        let key = format!("{}/{}/{:?}", self.network, self.subnet, self.except);
        format!("HOSTGW-{:.16}", hex_128(&Sha256::digest(key)))
    }
}

/// Removes the rules of those subnets of `network` in one family in which no address is held.
pub(crate) fn retain(
    network: &NetworkName,
    is_ipv6: bool,
    is_held: impl Fn(IpNetwork) -> bool,
) -> Result<(), Error> {
    let comment = comment(network);
    remove(program(is_ipv6), |jump| {
        jump.comment == comment && !jump.source.is_some_and(&is_held)
    })
}

/// Removes the chains that the `bridge` plugin created, one for each container. If the programs are
/// not installed, there are no chains.
pub(crate) fn remove_bridge_plugin_chains(
    network: &NetworkName,
    container_ids: &[&str],
) -> Result<(), Error> {
    let chain = |id: &&str| {
        let key = format!("{network}{id}");
        format!("CNI-{:.24}", hex_128(&Sha512::digest(key)))
    };
    let chains: Vec<_> = container_ids.iter().map(chain).collect();
    for is_ipv6 in [false, true] {
        let program = program(is_ipv6);
        if !chains.is_empty() && program.is_installed().map_err(failed(program))? {
            remove(program, |jump| chains.contains(&jump.chain))?;
        }
    }
    Ok(())
}

/// Checks that the program for a family is installed.
pub(crate) fn is_available(is_ipv6: bool) -> Result<(), Error> {
    let program = program(is_ipv6);
    program.check_installed().map_err(failed(program))
}

/// A rule in POSTROUTING that jumps to a chain.
struct Jump {
    rule: String,
    chain: String,
    source: Option<IpNetwork>,
    comment: String,
}

impl Jump {
    /// Parses a line of the output of `iptables-save`.
    fn parse(line: &str) -> Option<Self> {
        let rule = line.strip_prefix("-A POSTROUTING ")?;
        let after = |flag: &str| rule.split_once(flag).map(|(_, rest)| rest);
        let word = |flag: &str| after(flag)?.split(' ').next();
        let comment = after("--comment \"").and_then(|rest| rest.split('"').next());
        Some(Self {
            chain: word("-j ")?.to_owned(),
            source: word("-s ").and_then(|source| source.parse().ok()),
            // iptables-save does not quote a comment without spaces.
            comment: comment
                .or(word("--comment "))
                .unwrap_or_default()
                .to_owned(),
            rule: rule.to_owned(),
        })
    }
}

fn remove(program: Iptables, is_unwanted: impl Fn(&Jump) -> bool) -> Result<(), Error> {
    let removal = removal(&jumps(program, is_unwanted)?);
    if removal.is_empty() {
        return Ok(());
    }
    program.restore("nat", &removal).map_err(failed(program))
}

/// Returns the lines that delete the jumps, and then the chains that they jumped to.
fn removal(jumps: &[Jump]) -> String {
    let chains: BTreeSet<_> = jumps.iter().map(|jump| &jump.chain).collect();
    let jumps = jumps
        .iter()
        .map(|jump| format!("-D POSTROUTING {}\n", jump.rule));
    let chains = chains
        .iter()
        .map(|chain| format!("-F {chain}\n-X {chain}\n"));
    jumps.chain(chains).collect()
}

fn jumps(program: Iptables, is_selected: impl Fn(&Jump) -> bool) -> Result<Vec<Jump>, Error> {
    let saved = program.save("nat").map_err(failed(program))?;
    let jumps = saved.lines().filter_map(Jump::parse);
    Ok(jumps.filter(is_selected).collect())
}

fn failed(program: Iptables) -> impl Fn(iptables::Error) -> Error {
    move |mut error| {
        // go-cni treats a DEL error that contains "not found" as a success.
        if let iptables::Error::Failed { stderr, .. } = &mut error {
            *stderr = stderr.replace("not found", "missing");
        }
        Error::Iptables(program.name, error)
    }
}

fn comment(network: &NetworkName) -> String {
    format!("cni-hostgw {}", shortened(network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_iptables_save_is_parsed() {
        let rule = "-s 10.10.1.0/24 -m comment --comment \"cni-hostgw cbr0\" -j HOSTGW-0011";
        let jump = Jump::parse(&format!("-A POSTROUTING {rule}")).expect("leads to a chain");
        assert_eq!(jump.source, "10.10.1.0/24".parse().ok());
        assert_eq!(
            (&*jump.comment, &*jump.chain),
            ("cni-hostgw cbr0", "HOSTGW-0011")
        );
        assert_eq!(
            removal(&[jump]),
            format!("-D POSTROUTING {rule}\n-F HOSTGW-0011\n-X HOSTGW-0011\n")
        );
        assert!(Jump::parse(":POSTROUTING ACCEPT [0:0]").is_none());
        assert!(Jump::parse("-A PREROUTING -j X").is_none());
    }
}
