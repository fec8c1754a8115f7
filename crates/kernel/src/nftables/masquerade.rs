//! What the plugin masquerades: one chain for each subnet.

use std::io;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::packet_core::NlasIterator;
use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};

use super::message::{
    ACK, APPEND, CREATE, DELETE_CHAIN, DELETE_TABLE, DUMP, EXCL, GET_CHAIN, NEW_CHAIN, NEW_RULE,
    NEW_TABLE, USER_DATA, attribute, comment, exchange, message, messages, nest, number, text,
    transaction,
};
use super::rule::Rule;
use crate::Error;

/// How often others may get in between.
const TRIES: usize = 8;

/// The families of tables that addresses of pods are in: `ip` and `ip6`.
const FAMILIES: [u8; 2] = [IPV4, IPV6];
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Has what leaves `subnet` masqueraded, but for what goes to one of `except` or to many.
///
/// The rules of one subnet are one chain of `table`, whose comment says what it excepts. The
/// namespace of the calling thread is meant.
#[derive(Clone, Copy, Debug)]
pub struct Masquerade<'a> {
    /// The table's name, in the family of the subnet.
    pub table: &'a str,
    /// Whose packets are masqueraded.
    pub subnet: IpNetwork,
    /// Where they keep their source address; networks of the other family do not matter.
    pub except: &'a [IpNetwork],
}

/// Deletes the chains of `table` whose subnet nobody wants any more, and with the last of them
/// the table. Says how many went. What is not there is fine.
pub fn retain_masquerade(
    table: &str,
    is_wanted: impl Fn(IpNetwork) -> bool,
) -> Result<usize, Error> {
    let failed = |error: io::Error| Error::new(format!("clean up nf_tables table {table}"), error);
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    let mut deleted = 0;
    for family in FAMILIES {
        let chains = chains(&socket, family, table).map_err(failed)?;
        let unwanted: Vec<_> = chains
            .iter()
            .filter(|chain| subnet_of(chain).is_some_and(|subnet| !is_wanted(subnet)))
            .collect();
        if unwanted.is_empty() {
            continue;
        }
        let name = |chain: Option<&str>| {
            let mut body = vec![family, 0, 0, 0];
            text(&mut body, 1, table);
            if let Some(chain) = chain {
                text(&mut body, 3, chain);
            }
            body
        };
        let mut changes = Vec::new();
        if unwanted.len() == chains.len() {
            changes.extend(message(DELETE_TABLE, ACK, &name(None)));
        } else {
            for chain in &unwanted {
                changes.extend(message(DELETE_CHAIN, ACK, &name(Some(chain))));
            }
        }
        let answer = exchange(&socket, &transaction(&changes)).map_err(failed)?;
        match answer.refusal {
            None => deleted += unwanted.len(),
            Some(Errno::ENOENT) => {}
            Some(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(deleted)
}

/// The names of the chains of `table`.
fn chains(socket: &Socket, family: u8, table: &str) -> io::Result<Vec<String>> {
    const INTERRUPTED: u16 = 0x10;
    for _ in 0..TRIES {
        let answer = exchange(socket, &message(GET_CHAIN, DUMP, &[family, 0, 0, 0]))?;
        if let Some(errno) = answer.refusal {
            return Err(errno.into());
        }
        // A list that changed while it was read is read again.
        if messages(&answer.text).all(|(_, flags, _)| flags & INTERRUPTED == 0) {
            return Ok(names_in(&answer.text, table));
        }
    }
    Err(Errno::EINTR.into())
}

fn names_in(answer: &[u8], table: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (kind, _, body) in messages(answer) {
        if kind != NEW_CHAIN {
            continue;
        }
        let (mut its_table, mut name) = (None, None);
        for attribute in NlasIterator::new(body.get(4..).unwrap_or_default()).flatten() {
            let text = || {
                String::from_utf8_lossy(attribute.value())
                    .trim_end_matches('\0')
                    .to_owned()
            };
            match attribute.kind() {
                1 => its_table = Some(text()),
                3 => name = Some(text()),
                _ => {}
            }
        }
        if its_table.as_deref() == Some(table) {
            names.extend(name);
        }
    }
    names
}

/// What a chain's name says. nft prints a name as it is and would not read back the slash and
/// the colons of a network, so they are dashes.
fn subnet_of(chain: &str) -> Option<IpNetwork> {
    let (address, prefix) = chain.strip_prefix(CHAIN)?.rsplit_once('-')?;
    let network = |address: &str| format!("{address}/{prefix}").parse().ok();
    network(address).or_else(|| network(&address.replace('-', ":")))
}

const CHAIN: &str = "masquerade-";

impl Masquerade<'_> {
    /// Puts the rules there. Where they are there with as many rules as there should be, this
    /// is one request; where they are not, they are made anew, in one transaction.
    pub fn ensure(&self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::new(self.doing(), error);
        let mut unanswered = None;
        for _ in 0..TRIES {
            // What is left of an exchange without its answer must not be taken for the next one's.
            let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
            let is_there = match self.look(&socket).map_err(failed)? {
                Found::Right => return Ok(()),
                Found::Wrong => true,
                Found::Nothing => false,
            };
            let made = exchange(&socket, &self.batch(is_there));
            let Ok(made) = made.inspect_err(|error| unanswered = Some(error.to_string())) else {
                // Whether it was done, a look says.
                continue;
            };
            match made.refusal {
                None => return Ok(()),
                // Another process made it, or took it away, in between: look again. Of one
                // batch all or nothing is done.
                Some(Errno::EEXIST) if !is_there => {}
                Some(Errno::ENOENT) if is_there => {}
                Some(errno) => return Err(failed(errno.into())),
            }
        }
        let reason = unanswered.unwrap_or("other processes change it all the time".to_owned());
        Err(Error::new(self.doing(), reason))
    }

    /// Whether the rules are there as they should be.
    pub fn is_there(&self) -> Result<bool, Error> {
        let look = || self.look(&Socket::new(NETLINK_NETFILTER)?);
        let found = look().map_err(|error| Error::new(self.doing(), error))?;
        Ok(matches!(found, Found::Right))
    }

    fn look(&self, socket: &Socket) -> io::Result<Found> {
        let chain = exchange(socket, &self.get_chain())?;
        match chain.refusal {
            None if self.are_in(&chain.text) => Ok(Found::Right),
            None => Ok(Found::Wrong),
            Some(Errno::ENOENT) => Ok(Found::Nothing),
            Some(errno) => Err(errno.into()),
        }
    }

    fn doing(&self) -> String {
        let Self { table, subnet, .. } = self;
        format!("masquerade {subnet} in nf_tables table {table}")
    }

    fn chain(&self) -> String {
        format!("{CHAIN}{}", self.subnet).replace(['/', ':'], "-")
    }

    /// What the chain excepts, in the 128 bytes that nft gives a comment.
    fn comment(&self) -> String {
        let list: Vec<_> = self
            .exceptions()
            .map(|network| network.to_string())
            .collect();
        let text = format!("but for {}", list.join(", "));
        if text.len() < 120 {
            return text;
        }
        // FNV-1a: what counts is that other networks give another text.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        format!("but for {} networks ({hash:016x})", list.len())
    }

    /// Whether the kernel's `answer` about the chain is what it should be.
    fn are_in(&self, answer: &[u8]) -> bool {
        const USE: u16 = 6;
        const HEADERS: usize = 20;
        let rules = self.exceptions().count() + 2;
        let rules = u32::try_from(rules).expect("fewer").to_be_bytes();
        let attributes = NlasIterator::new(answer.get(HEADERS..).unwrap_or_default());
        // Behind the chain comes the acknowledgement, which is no list of attributes.
        let (mut has_rules, mut has_comment) = (false, false);
        for attribute in attributes.map_while(Result::ok) {
            has_rules |= attribute.kind() == USE && attribute.value() == rules;
            has_comment |= attribute.kind() == USER_DATA && attribute.value() == self.user_data();
        }
        has_rules && has_comment
    }

    fn user_data(&self) -> Vec<u8> {
        comment(&self.comment())
    }

    fn exceptions(&self) -> impl Iterator<Item = IpNetwork> {
        let of_family = |other: &&IpNetwork| other.is_ipv4() == self.subnet.is_ipv4();
        self.except.iter().filter(of_family).copied()
    }

    fn get_chain(&self) -> Vec<u8> {
        let mut body = self.header();
        text(&mut body, 1, self.table);
        text(&mut body, 3, &self.chain());
        message(GET_CHAIN, ACK, &body)
    }

    /// Table, chain and rules in one transaction. The chain must be new: appended to one that
    /// is there, the rules would stand twice.
    fn batch(&self, is_there: bool) -> Vec<u8> {
        let mut table = self.header();
        text(&mut table, 1, self.table);
        let mut chain = self.header();
        text(&mut chain, 1, self.table);
        text(&mut chain, 3, &self.chain());
        // At postrouting (4), where source addresses are translated (100).
        nest(&mut chain, 4, |hook| {
            number(hook, 1, 4);
            number(hook, 2, 100);
        });
        text(&mut chain, 7, "nat");
        attribute(&mut chain, USER_DATA, &self.user_data());
        let mut batch = message(NEW_TABLE, CREATE | ACK, &table);
        if is_there {
            let mut old = self.header();
            text(&mut old, 1, self.table);
            text(&mut old, 3, &self.chain());
            batch.extend(message(DELETE_CHAIN, ACK, &old));
        }
        batch.extend(message(NEW_CHAIN, CREATE | EXCL | ACK, &chain));
        let multicast = if self.subnet.is_ipv4() {
            "224.0.0.0/4"
        } else {
            "ff00::/8"
        };
        let multicast: IpNetwork = multicast.parse().expect("the multicast network");
        for network in self.exceptions().chain([multicast]) {
            batch.extend(self.rule(&Rule::new().to(network).leave()));
        }
        batch.extend(self.rule(&Rule::new().from(self.subnet).masquerade(false)));
        transaction(&batch)
    }

    fn rule(&self, rule: &Rule) -> Vec<u8> {
        let mut body = self.header();
        text(&mut body, 1, self.table);
        text(&mut body, 2, &self.chain());
        rule.write(&mut body);
        message(NEW_RULE, CREATE | APPEND | ACK, &body)
    }

    /// The family, which is that of the table.
    fn header(&self) -> Vec<u8> {
        let family = if self.subnet.is_ipv4() { IPV4 } else { IPV6 };
        vec![family, 0, 0, 0]
    }
}

/// What is there of the rules.
enum Found {
    Nothing,
    Wrong,
    Right,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chains_name_says_its_subnet() {
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
