//! Hardware addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An Ethernet hardware address of one interface: neither all zeros nor a group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

/// A text that is not an interface's hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hardware address such as 0a:58:0a:0a:01:06")]
pub struct InvalidMac(String);

impl Mac {
    /// The address that goes with `ip`: locally administered, `0a:58` and the four bytes of an
    /// IPv4 address, or four bytes of a hash over all of an IPv6 address.
    ///
    /// Whoever gets `ip` next gets the same hardware address, so no neighbour's entry for it
    /// is ever wrong.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::local(0x58, v4.octets()),
            // All 16 bytes count: two subnets differ in the front, two pods at the back.
            IpAddr::V6(v6) => Self::local(0x58, fold(&v6.octets())),
        }
    }

    /// A locally administered address: `0a`, `kind`, and four bytes.
    #[must_use]
    pub fn local(kind: u8, [a, b, c, d]: [u8; 4]) -> Self {
        Self([0x0a, kind, a, b, c, d])
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        // A bridge that never had a port has no address: all zeros.
        let mac: [u8; 6] = bytes.try_into().ok()?;
        (mac != [0; 6]).then_some(Self(mac))
    }

    pub(crate) fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// FNV-1a, 32 bits: stable across builds and machines, which std's hasher does not promise.
fn fold(bytes: &[u8]) -> [u8; 4] {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step).to_be_bytes()
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
        let grouped = in_groups(text);
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

/// An address in three groups of four digits, such as `0a58.0a0a.0106`, or in one of twelve, in the
/// usual form.
fn in_groups(text: &str) -> Option<String> {
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
    fn the_address_gives_the_hardware_address() {
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
    fn only_an_interfaces_address_is_taken() {
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
