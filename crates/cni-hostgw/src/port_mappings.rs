//! Host ports: the capability `portMappings`, if our entry in the plugin list declares it.
//!
//! The crate `host-ports` has the table and the records. Here are the configuration, and what each verb
//! does. DEL also removes what the `portmap` plugin made for an attachment, because a node's list may
//! have had that plugin before.

use cni::{Call, NetworkName};
use host_local::Attachment;
use host_ports::{
    HostPorts, Masquerade, PortRequest, Record, Removed, portmap, resolve, route_localnet,
};
use ipnetwork::IpNetwork;
use kernel::{Rtnl, sysctl};
use netconf::{LenientConf, NetConf, SharedCapability};

use crate::config::Config;
use crate::error::Error;
use crate::names::Names;
use crate::plugin_list::refuse_second_plugin;

/// The requested host ports.
#[derive(Debug, Default)]
pub(crate) struct PortMappings {
    /// True if our entry in the list declares the capability.
    is_declared: bool,
    requests: Vec<PortRequest>,
    masquerade: Masquerade,
}

impl PortMappings {
    /// Checks the requested mappings. There are none if our entry does not declare the capability:
    /// then another plugin of the list handles it.
    pub(crate) fn read(conf: &NetConf) -> Result<Self, Error> {
        if !conf.capabilities.port_mappings {
            return Ok(Self::default());
        }
        let mappings = conf.runtime_config.port_mappings.iter().enumerate();
        let request = |(index, mapping): (usize, &netconf::PortMapping)| {
            let ports = (mapping.host_port, mapping.container_port);
            PortRequest::new(&mapping.protocol, &mapping.host_ip, ports.0, ports.1)
                .map_err(|source| Error::PortMapping { index, source })
        };
        let keys = &conf.port_map;
        Ok(Self {
            is_declared: true,
            requests: mappings.map(request).collect::<Result<_, _>>()?,
            masquerade: match (keys.snat, keys.masq_all) {
                (Some(false), _) => Masquerade::None,
                (_, Some(true)) => Masquerade::All,
                _ => Masquerade::Subnet,
            },
        })
    }

    /// The record of an attachment with these addresses. `None` if no port is requested.
    pub(crate) fn record(
        &self,
        network: &NetworkName,
        attachment: &Attachment,
        names: &Names,
        config: &Config,
        addresses: Vec<IpNetwork>,
    ) -> Result<Option<Record>, Error> {
        if self.requests.is_empty() {
            return Ok(None);
        }
        let ips: Vec<_> = addresses.iter().map(IpNetwork::ip).collect();
        Ok(Some(Record {
            network: network.to_string(),
            container_id: attachment.container_id().to_owned(),
            ifname: attachment.ifname().to_owned(),
            pod: config.pod.clone(),
            veth: names.veth.clone(),
            alias: names.alias(None),
            host_link: None,
            bridge: config.bridge.clone(),
            mappings: resolve(&self.requests, &ips)?,
            addresses,
            masquerade: self.masquerade,
            is_closed: false,
        }))
    }

    /// Opens the ports of a record.
    pub(crate) fn add(&self, host: &Rtnl, call: &Call, record: &Record) -> Result<(), Error> {
        refuse_second_plugin(call, SharedCapability::PortMappings)?;
        HostPorts::lock(host)?.add(record)?;
        // Answers to the node's loopback address come in by the bridge. The table drops such packets
        // if they do not belong to a connection of the node, so it comes first.
        if self.masquerade != Masquerade::None && record.addresses.iter().any(IpNetwork::is_ipv4) {
            sysctl::set(&route_localnet(&record.bridge), "1")?;
        }
        Ok(())
    }

    /// Fails if the node cannot open ports.
    pub(crate) fn is_available(&self, call: &Call) -> Result<(), Error> {
        if !self.is_declared {
            return Ok(());
        }
        refuse_second_plugin(call, SharedCapability::PortMappings)?;
        Ok(kernel::nftables::is_available()?)
    }
}

/// Closes the ports of an attachment: ours, and those of the `portmap` plugin. The result has to be
/// finished before the attachment's addresses are free.
pub(crate) fn remove(
    host: &Rtnl,
    call: &Call,
    conf: &LenientConf,
    attachment: &Attachment,
    names: &Names,
) -> Result<Removed, Error> {
    if let Some(removed) = host_ports::remove(host, &names.veth)? {
        if removed.was_moved() {
            portmap::remove(call.network.as_str(), attachment.container_id())?;
        }
        return Ok(removed);
    }
    if conf.maps_ports && conf.has_port_mappings {
        host_ports::remove_without_record(host, &names.veth)?;
    }
    if conf.maps_ports {
        portmap::remove(call.network.as_str(), attachment.container_id())?;
    }
    Ok(Removed::default())
}

/// Compares the ports of an attachment with the kernel. Returns the first difference.
pub(crate) fn find_difference(host: &Rtnl, record: &Record) -> Result<Option<String>, Error> {
    let difference = HostPorts::lock(host)?.find_difference(record)?;
    if difference.is_some()
        || record.masquerade == Masquerade::None
        || !record.addresses.iter().any(IpNetwork::is_ipv4)
    {
        return Ok(difference);
    }
    let setting = route_localnet(&record.bridge);
    let is_set = sysctl::get(&setting)? == "1";
    Ok((!is_set).then(|| format!("{setting} is not 1: 127.0.0.1 does not reach host ports")))
}

/// Closes the ports of attachments that are not wanted, and of pods that are gone. Returns everything
/// that failed.
pub(crate) fn collect(host: &Rtnl, is_wanted: impl Fn(&Record) -> bool) -> Vec<Error> {
    match HostPorts::lock_existing(host) {
        Ok(Some(ports)) => ports
            .collect(is_wanted)
            .into_iter()
            .map(Error::from)
            .collect(),
        Ok(None) => Vec::new(),
        Err(error) => vec![error.into()],
    }
}

/// Closes the ports of pods that are gone.
pub(crate) fn collect_gone(host: &Rtnl) -> Result<(), Error> {
    if let Some(ports) = HostPorts::lock_existing(host)? {
        ports.restore()?;
    }
    Ok(())
}
