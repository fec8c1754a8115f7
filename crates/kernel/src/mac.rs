//! Hardware addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A unicast Ethernet hardware address, not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

/// The error for a text that is not the hardware address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address such as 0a:58:0a:0a:01:06")]
pub struct InvalidMac(String);

impl Mac {
    /// Returns the hardware address derived from `ip`. It is locally administered: `0a:58`, then
    /// the four bytes of an IPv4 address, or a 4-byte hash of an IPv6 address.
    ///
    /// The next user of `ip` gets the same hardware address, so the neighbour entries of others
    /// stay correct.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::local(0x58, v4.octets()),
            // All 16 bytes are hashed: subnets differ in the first bytes, pods in the last ones.
            IpAddr::V6(v6) => Self::local(0x58, util::fnv1a_32(&v6.octets()).to_be_bytes()),
        }
    }

    /// Returns a locally administered address: `0a`, `kind`, and four bytes.
    #[must_use]
    pub fn local(kind: u8, [a, b, c, d]: [u8; 4]) -> Self {
        Self([0x0a, kind, a, b, c, d])
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        // A bridge that never had a port has the address of all zeros.
        let mac: [u8; 6] = bytes.try_into().ok()?;
        (mac != [0; 6]).then_some(Self(mac))
    }

    pub(crate) fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let mut bytes = [0; 6];
        let grouped = to_colon_form(text);
        let text = grouped.as_deref().unwrap_or(text);
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(is_byte).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        let is_one_interface = bytes != [0; 6] && bytes[0] & 1 == 0;
        if parts.next().is_some() || !is_one_interface {
            return Err(invalid());
        }
        Ok(Self(bytes))
    }
}

/// Converts an address in three groups of four digits, such as `0a58.0a0a.0106`, or one of twelve
/// digits, to the colon-separated form.
fn to_colon_form(text: &str) -> Option<String> {
    let groups: Vec<_> = text.split('.').collect();
    let lengths: Vec<_> = groups.iter().map(|group| group.len()).collect();
    if !text.is_ascii() || !matches!(lengths[..], [4, 4, 4] | [12]) {
        return None;
    }
    let digits = groups.concat();
    let bytes: Vec<_> = (0..6).map(|i| &digits[2 * i..2 * i + 2]).collect();
    Some(bytes.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ip: &str) -> String {
        Mac::of(ip.parse().expect("an address")).to_string()
    }

    #[test]
    fn the_hardware_address_is_derived_from_the_ip_address() {
        assert_eq!(of("10.10.1.6"), "0a:58:0a:0a:01:06");
        assert_ne!(of("fd00:10:10:1::6"), of("fd00:10:10:2::6"));
        assert_ne!(of("fd00:10:10:1::6"), of("fd00:10:10:1::7"));
        assert_eq!(
            of("fd00:10:10:1::6"),
            "0a:58:c0:85:dd:1d",
            "stable for ever"
        );
    }

    #[test]
    fn only_unicast_addresses_are_accepted() {
        for good in [
            "0a:58:0a:0a:01:06",
            "02-00-00-00-00-01",
            "0a58.0a0a.0106",
            "0a580a0a0106",
        ] {
            assert!(good.parse::<Mac>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "0a:58",
            "0a:58:0a:0a:01:06:07",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "0a58.0a0a",
            "0a58.0a0a.01",
            "0a58.0a0a.010g",
            "00é.0a0a.0106",
            "+a:58:0a:0a:01:06",
            "é0:00:00:00:00:00",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
