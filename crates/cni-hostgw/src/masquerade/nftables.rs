//! Masquerading by netlink: one chain of `nf_tables` for each subnet, in one table for each network.

use ipnetwork::IpNetwork;
use kernel::Error;
use kernel::nftables::{self, Attempt, Chain, Family, Hook, Rule, Transaction};
use subnet::Subnet;

/// Number of attempts if other processes make changes at the same time.
const MAX_TRIES: usize = 8;

/// The start of the name of each chain.
const CHAIN: &str = "masquerade-";

/// Masquerades the packets that leave `subnet`, except those to the networks in `except` and to
/// multicast addresses. The comment of the chain lists the exceptions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Masquerade<'a> {
    /// Name of the table. Its family is that of the subnet.
    pub(super) table: &'a str,
    pub(super) subnet: IpNetwork,
    /// Networks of the other family are ignored.
    pub(super) except: &'a [IpNetwork],
}

/// State of a chain in the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Outdated,
    UpToDate,
}

impl Masquerade<'_> {
    /// Makes sure that the rules exist: with a single request if the chain is as it should be, and
    /// else with one transaction that replaces the chain.
    pub(super) fn ensure(&self) -> Result<(), Error> {
        let mut last = None;
        for _ in 0..MAX_TRIES {
            let state = self.state()?;
            if state == State::UpToDate {
                return Ok(());
            }
            match self.transaction(state).try_commit(&self.doing()) {
                Attempt::Applied => return Ok(()),
                // Another process created or deleted the chain meanwhile.
                Attempt::Refused(error)
                    if error.already_exists() && state == State::Missing
                        || error.is_gone() && state == State::Outdated =>
                {
                    last = Some(error);
                }
                Attempt::Refused(error) => return Err(error),
                // The next attempt finds out whether it was applied.
                Attempt::Unknown(error) => last = Some(error),
            }
        }
        Err(last.expect("every attempt failed"))
    }

    /// True if the chain has the expected comment and number of rules.
    pub(super) fn is_present(&self) -> Result<bool, Error> {
        Ok(self.state()? == State::UpToDate)
    }

    fn state(&self) -> Result<State, Error> {
        let Some(chain) = nftables::chain(self.family(), self.table, &self.chain())? else {
            return Ok(State::Missing);
        };
        let rules = usize::try_from(chain.rules).unwrap_or(usize::MAX);
        let is_expected =
            rules == self.rules().len() && chain.comment.as_ref() == Some(&self.comment());
        Ok(if is_expected {
            State::UpToDate
        } else {
            State::Outdated
        })
    }

    /// The table, the chain and its rules. An outdated chain is deleted first: appending to it would
    /// duplicate the rules.
    fn transaction(&self, state: State) -> Transaction {
        let (family, name) = (self.family(), self.chain());
        let mut transaction = Transaction::new();
        transaction.ensure_table(family, self.table);
        if state == State::Outdated {
            transaction.delete_base_chain(family, self.table, &name);
        }
        let chain = Chain {
            name: &name,
            hook: Some(Hook::Postrouting),
            comment: &self.comment(),
            rules: self.rules(),
        };
        transaction.add_chain(family, self.table, &chain);
        transaction
    }

    fn rules(&self) -> Vec<Rule> {
        let kept = self
            .exceptions()
            .chain([Subnet::of(self.subnet).multicast()]);
        let mut rules: Vec<_> = kept
            .map(|network| Rule::new().to(network).return_from_chain())
            .collect();
        rules.push(Rule::new().from(self.subnet).masquerade(false));
        rules
    }

    fn family(&self) -> Family {
        Family::of(self.subnet)
    }

    fn exceptions(&self) -> impl Iterator<Item = IpNetwork> {
        let of_family = |other: &&IpNetwork| other.is_ipv4() == self.subnet.is_ipv4();
        self.except.iter().filter(of_family).copied()
    }

    /// The chain's name. nft prints names unquoted and cannot read back the slash and the colons of
    /// a network, so there are dashes in their place.
    fn chain(&self) -> String {
        format!("{CHAIN}{}", self.subnet).replace(['/', ':'], "-")
    }

    /// The chain's comment, within the 128 bytes that nft allows.
    fn comment(&self) -> String {
        let list: Vec<_> = self
            .exceptions()
            .map(|network| network.to_string())
            .collect();
        let text = format!("but for {}", list.join(", "));
        if text.len() < 120 {
            return text;
        }
        // Different networks must only give a different comment.
        let hash = util::fnv1a_64(text.as_bytes());
        format!("but for {} networks ({hash:016x})", list.len())
    }

    fn doing(&self) -> String {
        let Self { table, subnet, .. } = self;
        format!("masquerade {subnet} in nf_tables table {table}")
    }
}

/// Deletes the chains of a table for whose subnet `is_wanted` returns false, and the table with its
/// last chain. Succeeds if the table does not exist.
pub(super) fn retain(table: &str, is_wanted: impl Fn(IpNetwork) -> bool) -> Result<(), Error> {
    let doing = format!("clean up nf_tables table {table}");
    for family in [Family::Ipv4, Family::Ipv6] {
        let chains = nftables::chains(family, table)?;
        let is_unwanted = |chain: &&String| {
            let subnet = subnet_of(chain);
            subnet.is_some_and(|subnet| !is_wanted(subnet))
        };
        let unwanted: Vec<_> = chains.iter().filter(is_unwanted).collect();
        let mut transaction = Transaction::new();
        if !unwanted.is_empty() && unwanted.len() == chains.len() {
            transaction.delete_table(family, table);
        } else {
            for chain in unwanted {
                transaction.delete_base_chain(family, table, chain);
            }
        }
        match transaction.commit(&doing) {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The subnet in a chain's name.
fn subnet_of(chain: &str) -> Option<IpNetwork> {
    let (address, prefix) = chain.strip_prefix(CHAIN)?.rsplit_once('-')?;
    let network = |address: &str| format!("{address}/{prefix}").parse().ok();
    network(address).or_else(|| network(&address.replace('-', ":")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_can_be_read_from_the_chain_name() {
        for subnet in ["10.10.1.0/24", "fd00:10:10:1::/64", "::/0"] {
            let subnet: IpNetwork = subnet.parse().expect("a network");
            let masquerade = Masquerade {
                table: "t",
                subnet,
                except: &[],
            };
            assert_eq!(subnet_of(&masquerade.chain()), Some(subnet));
        }
        assert_eq!(subnet_of("forward"), None);
    }
}
