//! Masquerading by the programs `iptables` and `ip6tables`, for who needs it: a program is
//! started for each look, and two more for a change.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use cni::NetworkName;
use host_local::Store;
use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256, Sha512};

use crate::error::Error;
use crate::names::shortened;
use crate::programs::{self, Output, Stderr, find};

/// Seconds for which the programs wait for the lock that they share with kube-proxy and others.
const LOCK_WAIT: &str = "5";

/// Where they are, when the runtime has no `PATH`.
const DEFAULT_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The program of a family.
pub(crate) fn program(is_ipv6: bool) -> &'static str {
    if is_ipv6 { "ip6tables" } else { "iptables" }
}

/// What leaves `subnet` is masqueraded, but for what goes to one of `except` or to many.
pub(crate) struct Masquerade<'a> {
    network: &'a NetworkName,
    subnet: IpNetwork,
    except: Vec<IpNetwork>,
}

impl<'a> Masquerade<'a> {
    pub(crate) fn new(network: &'a NetworkName, subnet: IpNetwork, except: &[IpNetwork]) -> Self {
        let of_family = |other: &&IpNetwork| other.is_ipv4() == subnet.is_ipv4();
        Self {
            network,
            subnet,
            except: except.iter().filter(of_family).copied().collect(),
        }
    }

    /// Whether POSTROUTING leads to the rules.
    pub(crate) fn is_there(&self) -> Result<bool, Error> {
        let mut command = Command::new(path(self.program())?);
        command.args(["-w", LOCK_WAIT, "-t", "nat", "-C", "POSTROUTING"]);
        let (comment, chain) = (self.comment(), self.chain());
        let jump = ["-s", &self.subnet.to_string(), "-m", "comment", "--comment"];
        command.args(jump).args([&comment, "-j", &chain]);
        let output = output(&mut command, "")?;
        match output.status.code() {
            Some(0) => Ok(true),
            // There is no such rule, or not even the chain that it leads to. Other numbers say that
            // nobody could look.
            Some(1 | 2) => Ok(false),
            _ => succeeded(&output, self.program()).map(|_| false),
        }
    }

    /// Puts the rules there, in one transaction, in the place of those for other exceptions.
    pub(crate) fn ensure(&self, store: &Store) -> Result<(), Error> {
        if self.is_there()? {
            return Ok(());
        }
        // Rules do not exclude one another as links do: of two that find none, one is to wait.
        let _exclusive = store.exclusive()?;
        if self.is_there()? {
            return Ok(());
        }
        let (chain, subnet, comment) = (self.chain(), self.subnet, self.comment());
        let multicast = if subnet.is_ipv4() {
            "224.0.0.0/4"
        } else {
            "ff00::/8"
        };
        let keep = self
            .except
            .iter()
            .map(|network| format!("-A {chain} -d {network} -j RETURN\n"));
        let of_subnet = |jump: &Jump| jump.comment == comment && jump.source == Some(subnet);
        let before = removal(&jumps(self.program(), of_subnet)?);
        let rules = [
            format!("*nat\n:{chain} - [0:0]\n"),
            keep.collect(),
            format!("-A {chain} ! -d {multicast} -j MASQUERADE\n"),
            before,
            format!("-A POSTROUTING -s {subnet} -m comment --comment \"{comment}\" -j {chain}\n"),
            "COMMIT\n".to_owned(),
        ];
        restore(self.program(), &rules.concat())
    }

    fn program(&self) -> &'static str {
        program(self.subnet.is_ipv6())
    }

    fn comment(&self) -> String {
        comment(self.network)
    }

    /// Rules with other exceptions have another name. 28 characters are the programs' limit.
    fn chain(&self) -> String {
        let key = format!("{}/{}/{:?}", self.network, self.subnet, self.except);
        format!("HOSTGW-{:.16}", hex(&Sha256::digest(key)))
    }
}

/// Takes away the rules of `network`'s subnets of one family that nobody holds an address of.
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

/// Takes away what the `bridge` plugin made for containers: it made a chain for each. Where the
/// programs are missing, it made none.
pub(crate) fn remove_bridges(network: &NetworkName, container_ids: &[&str]) -> Result<(), Error> {
    let chain = |id: &&str| {
        let key = format!("{network}{id}");
        format!("CNI-{:.24}", hex(&Sha512::digest(key)))
    };
    let chains: Vec<_> = container_ids.iter().map(chain).collect();
    for is_ipv6 in [false, true] {
        if !chains.is_empty() && is_installed(program(is_ipv6))? {
            remove(program(is_ipv6), |jump| chains.contains(&jump.chain))?;
        }
    }
    Ok(())
}

/// Whether the program of a family is there.
pub(crate) fn is_available(is_ipv6: bool) -> Result<(), Error> {
    path(program(is_ipv6)).map(drop)
}

/// A rule of POSTROUTING that leads to a chain.
struct Jump {
    rule: String,
    chain: String,
    source: Option<IpNetwork>,
    comment: String,
}

impl Jump {
    /// Reads a line of `iptables-save`.
    fn parse(line: &str) -> Option<Self> {
        let rule = line.strip_prefix("-A POSTROUTING ")?;
        let after = |flag: &str| rule.split_once(flag).map(|(_, rest)| rest);
        let word = |flag: &str| after(flag)?.split(' ').next();
        let comment = after("--comment \"").and_then(|rest| rest.split('"').next());
        Some(Self {
            chain: word("-j ")?.to_owned(),
            source: word("-s ").and_then(|source| source.parse().ok()),
            // A comment of one word has no quotes.
            comment: comment
                .or(word("--comment "))
                .unwrap_or_default()
                .to_owned(),
            rule: rule.to_owned(),
        })
    }
}

fn remove(name: &str, is_unwanted: impl Fn(&Jump) -> bool) -> Result<(), Error> {
    let removal = removal(&jumps(name, is_unwanted)?);
    if removal.is_empty() {
        return Ok(());
    }
    restore(name, &format!("*nat\n{removal}COMMIT\n"))
}

/// The lines that take jumps away, and then the chains that they led to.
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

fn jumps(name: &str, is_meant: impl Fn(&Jump) -> bool) -> Result<Vec<Jump>, Error> {
    let mut command = Command::new(path(&format!("{name}-save"))?);
    let saved = succeeded(&output(command.args(["-t", "nat"]), "")?, name)?;
    let jumps = saved.lines().filter_map(Jump::parse);
    Ok(jumps.filter(is_meant).collect())
}

fn restore(name: &str, rules: &str) -> Result<(), Error> {
    let mut command = Command::new(path(&format!("{name}-restore"))?);
    let output = output(command.args(["-w", LOCK_WAIT, "--noflush"]), rules)?;
    succeeded(&output, name).map(drop)
}

fn succeeded(output: &Output, name: &str) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // go-cni takes a DEL that failed with these words for one that succeeded.
    let said = String::from_utf8_lossy(&output.stderr).replace("not found", "missing");
    Err(failed(name)(io::Error::other(format!(
        "{}: {}",
        output.status,
        said.trim()
    ))))
}

fn output(command: &mut Command, stdin: &str) -> Result<Output, Error> {
    let output = programs::run(command, stdin.as_bytes(), Stderr::Captured);
    output.map_err(failed("iptables"))
}

fn is_installed(name: &str) -> Result<bool, Error> {
    let found = find(name, DEFAULT_PATH).map_err(failed(name))?;
    Ok(found.is_some())
}

fn path(name: &str) -> Result<PathBuf, Error> {
    let found = find(name, DEFAULT_PATH).map_err(failed(name))?;
    found.ok_or_else(|| {
        let reason = format!("it is in none of {DEFAULT_PATH}");
        failed(name)(io::Error::other(reason))
    })
}

fn failed(name: &str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Iptables(name.to_owned(), source)
}

fn comment(network: &NetworkName) -> String {
    format!("cni-hostgw {}", shortened(network))
}

/// The first 32 digits of a hash.
fn hex(hash: &[u8]) -> String {
    let first = hash.first_chunk().expect("no hash is shorter");
    format!("{:032x}", u128::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_rule_is_understood() {
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
