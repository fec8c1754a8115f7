//! Limits of a container's traffic: the keys of the `bandwidth` plugin, and its capability if our
//! entry in the list declares it.
//!
//! The host veth limits the packets that it sends to the container. Packets from the container arrive at
//! the host veth, which redirects them through a link of kind `ifb`, which limits them.

use std::io;

use cni::{Call, NetworkName};
use kernel::{Link, Rate, RemoteAddress, Rtnl, ShapedSubnets, Shaping};
use netconf::{NetConf, SharedCapability};
use sha2::{Digest, Sha512};
use util::hex_128;

use crate::error::Error;
use crate::names::Names;
use crate::plugin_list::refuse_second_plugin;

/// The limits of a container's traffic.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    /// Limit of the traffic that it receives.
    ingress: Option<Rate>,
    /// Limit of the traffic that it sends.
    egress: Option<Rate>,
    subnets: ShapedSubnets,
}

impl Bandwidth {
    /// Checks the limits. Fails with code 7 if a rate or a burst is missing or out of range.
    pub(crate) fn read(conf: &NetConf) -> Result<Self, Error> {
        let keys = &conf.bandwidth;
        let (shaped, unshaped) = (&keys.shaped_subnets, &keys.unshaped_subnets);
        let subnets = match (shaped.as_slice(), unshaped.as_slice()) {
            ([], []) => ShapedSubnets::All,
            (_, []) => ShapedSubnets::Only(shaped.clone()),
            ([], _) => ShapedSubnets::Except(unshaped.clone()),
            _ => {
                let both = "shapedSubnets and unshapedSubnets cannot be used together";
                return Err(Error::Conflict(both));
            }
        };
        Ok(Self {
            ingress: rate(
                ("ingressRate", keys.ingress_rate),
                ("ingressBurst", keys.ingress_burst),
            )?,
            egress: rate(
                ("egressRate", keys.egress_rate),
                ("egressBurst", keys.egress_burst),
            )?,
            subnets,
        })
    }

    /// True if there is a limit.
    pub(crate) fn is_limited(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }

    /// Limits the traffic of a new host veth. Returns the link that limits what the container sends,
    /// if that is limited.
    pub(crate) fn apply(
        &self,
        host: &Rtnl,
        call: &Call,
        names: &Names,
        pod: Option<&str>,
    ) -> Result<Option<Link>, Error> {
        refuse_second_plugin(call, SharedCapability::Bandwidth)?;
        let veth = host.link(&names.veth)?;
        let veth = veth.ok_or(Error::Conflict(
            "the host veth was deleted during the setup",
        ))?;
        if let Some(rate) = self.ingress {
            host.shape(&veth, &self.shaping(rate, &veth, RemoteAddress::Source))?;
        }
        let Some(rate) = self.egress else {
            return Ok(None);
        };
        // One that is left of a killed ADD has no veth any more.
        host.delete_link(&names.ifb)?;
        let ifb = host.add_ifb(&names.ifb, veth.mtu, &names.ifb_alias(pod))?;
        host.shape(&ifb, &self.shaping(rate, &veth, RemoteAddress::Destination))?;
        host.redirect(&veth, &ifb)?;
        Ok(Some(ifb))
    }

    /// Compares the limits with the kernel. Returns the first difference.
    pub(crate) fn find_difference(
        &self,
        host: &Rtnl,
        veth: &Link,
        names: &Names,
    ) -> Result<Option<String>, Error> {
        if let Some(rate) = self.ingress
            && !self.is_shaped(host, veth, veth, rate)?
        {
            let text = format!(
                "what the container receives is not limited by {}",
                veth.name
            );
            return Ok(Some(text));
        }
        let Some(rate) = self.egress else {
            return Ok(None);
        };
        let Some(ifb) = host.link(&names.ifb)?.filter(|ifb| ifb.is_up) else {
            return Ok(Some(format!("link {} is gone or down", names.ifb)));
        };
        if host.redirection(veth)? != Some(ifb.index) {
            let text = format!(
                "packets of {} are not redirected to {}",
                veth.name, ifb.name
            );
            return Ok(Some(text));
        }
        let is_shaped = self.is_shaped(host, &ifb, veth, rate)?;
        let text = format!("what the container sends is not limited by {}", ifb.name);
        Ok((!is_shaped).then_some(text))
    }

    fn is_shaped(&self, host: &Rtnl, link: &Link, veth: &Link, rate: Rate) -> Result<bool, Error> {
        /// The kernel reports at most four minutes, in nanoseconds.
        const LONGEST: u64 = 240_000_000_000;
        let rate = self.shaping(rate, veth, RemoteAddress::Source).rate;
        let Some((found, time)) = host.shaped_rate(link)? else {
            return Ok(false);
        };
        // The kernel rounds times.
        let expected = rate.burst_time();
        let is_burst = expected > LONGEST || time.abs_diff(expected) <= expected / 100 + 1_000;
        Ok(found == rate.bytes_per_second && is_burst)
    }

    /// A burst must hold a whole frame, or no full packet would ever pass.
    fn shaping(&self, rate: Rate, veth: &Link, remote: RemoteAddress) -> Shaping<'_> {
        /// Ethernet header with a VLAN tag, in bytes.
        const HEADER: u32 = 18;
        Shaping {
            rate: Rate {
                burst: rate.burst.max(veth.mtu + HEADER),
                ..rate
            },
            subnets: &self.subnets,
            remote,
        }
    }
}

/// Checks a rate in bits per second, and its burst in bits. `None` if both are 0.
fn rate(
    (rate_key, rate): (&'static str, u64),
    (burst_key, burst): (&'static str, u64),
) -> Result<Option<Rate>, Error> {
    let invalid = |key, value: u64, rule: String| {
        Err(Error::Config {
            key,
            value: value.to_string(),
            source: io::Error::other(rule).into(),
        })
    };
    match (rate / 8, u32::try_from(burst / 8)) {
        _ if rate == 0 && burst == 0 => Ok(None),
        _ if rate == 0 => invalid(rate_key, rate, format!("must be set if {burst_key} is")),
        _ if burst == 0 => invalid(burst_key, burst, format!("must be set if {rate_key} is")),
        (0, _) => invalid(
            rate_key,
            rate,
            "must be at least 8 bits per second".to_owned(),
        ),
        (_, Err(_) | Ok(u32::MAX)) => invalid(
            burst_key,
            burst,
            "must be less than 34359738360 bits (4 GiB)".to_owned(),
        ),
        (bytes_per_second, Ok(burst)) => Ok(Some(Rate {
            bytes_per_second,
            burst,
        })),
    }
}

/// Deletes the host veth and the link that limits what the container sends, in one step. Returns
/// whether the host veth existed.
pub(crate) fn delete_both(host: &Rtnl, names: &Names, ifb: Link) -> Result<bool, Error> {
    let veth = host.link(&names.veth)?;
    let is_there = veth.is_some();
    let links: Vec<_> = veth.into_iter().chain([ifb]).collect();
    host.delete_links(&links)?;
    Ok(is_there)
}

/// The name of the link that the `bandwidth` plugin made for a container.
pub(crate) fn reference_ifb(network: &NetworkName, container_id: &str) -> String {
    let hash = hex_128(&Sha512::digest(format!("{network}{container_id}")));
    format!("bwp{hash:.12}")
}
