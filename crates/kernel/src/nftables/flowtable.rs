//! Flowtables: packets of established flows between two devices of a flowtable skip most of the kernel's
//! way for forwarded packets.
//!
//! When a device is deleted, its flows leave the flowtable. Since Linux 6.16, its name stays there, and the
//! next device with this name takes its place.

use std::io;

use nix::errno::Errno;

use super::listing::{bodies, dump_on, has_text};
use super::message::{
    ACK, CREATE, DELETE_FLOWTABLE, DUMP, Family, GET_FLOWTABLE, GET_GENERATION, NEW_FLOWTABLE,
    attributes, connect, message, nest, number, object, request_on, text, text_in,
};
use super::rule::Rule;
use super::transaction::Transaction;
use super::uapi::{
    DEVICE_NAME, FLOW_TABLE_NAME, FLOWTABLE_HOOK, FLOWTABLE_HOOK_DEVS, FLOWTABLE_HOOK_NUM,
    FLOWTABLE_HOOK_PRIORITY, FLOWTABLE_NAME, FLOWTABLE_TABLE, hook,
};
use crate::Error;

impl Transaction {
    /// Creates a flowtable without devices, unless it exists. The transaction fails with
    /// [`Error::is_gone`] if the kernel has no flowtables.
    pub fn ensure_flowtable(&mut self, family: Family, table: &str, flowtable: &str) {
        let body = flowtable_object(family, table, flowtable, &[]);
        self.add(NEW_FLOWTABLE, CREATE, &body);
    }

    /// Deletes a flowtable, to which no rule may add flows any more. Its flows continue without it.
    pub fn delete_flowtable(&mut self, family: Family, table: &str, flowtable: &str) {
        let mut body = object(family, FLOWTABLE_TABLE, table);
        text(&mut body, FLOWTABLE_NAME, flowtable);
        self.add(DELETE_FLOWTABLE, 0, &body);
    }

    /// Adds a device to a flowtable, unless the flowtable has it. The flows of other devices stay. Before Linux
    /// 6.16, the transaction fails if the device does not exist.
    pub fn add_flowtable_device(
        &mut self,
        family: Family,
        table: &str,
        flowtable: &str,
        device: &str,
    ) {
        let body = flowtable_object(family, table, flowtable, &[device]);
        self.add(NEW_FLOWTABLE, CREATE, &body);
    }

    /// Deletes a device from a flowtable. Its flows stay until they are idle, but packets that come in by it take
    /// the usual way. The transaction fails if the flowtable does not have the device.
    pub fn delete_flowtable_device(
        &mut self,
        family: Family,
        table: &str,
        flowtable: &str,
        device: &str,
    ) {
        let body = flowtable_object(family, table, flowtable, &[device]);
        self.add(DELETE_FLOWTABLE, 0, &body);
    }
}

impl Rule {
    /// Adds the packet's flow to a flowtable of the same table. Only flows of TCP and UDP can be added;
    /// for others, and for packets that the flowtable does not support, nothing happens.
    #[must_use]
    pub fn offload(mut self, flowtable: &str) -> Self {
        self.expression("flow_offload", |data| {
            text(data, FLOW_TABLE_NAME, flowtable);
        });
        self
    }
}

/// Returns the names of a flowtable's devices. `None` if it does not exist.
pub fn flowtable_devices(
    family: Family,
    table: &str,
    flowtable: &str,
) -> Result<Option<Vec<String>>, Error> {
    let failed = |error: io::Error| Error::new(format!("read flowtable {flowtable}"), error);
    let get = message(GET_FLOWTABLE, DUMP, &object(family, FLOWTABLE_TABLE, table));
    // All devices are in one message. The kernel gives it only a page, which has room for about 180, unless it saw
    // before that this socket receives longer messages.
    let socket = connect().map_err(failed)?;
    request_on(&socket, &message(GET_GENERATION, ACK, &[0; 4])).map_err(failed)?;
    let answer = match dump_on(&socket, &get) {
        Ok(Some(answer)) => answer,
        Ok(None) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut found = bodies(&answer, NEW_FLOWTABLE).filter(|body| {
        has_text(body, FLOWTABLE_TABLE, table) && has_text(body, FLOWTABLE_NAME, flowtable)
    });
    Ok(found.next().map(devices))
}

/// Decodes the devices of a flowtable.
pub(super) fn devices(body: &[u8]) -> Vec<String> {
    let inside = |(_, value)| attributes(value);
    attributes(body)
        .filter(|(kind, _)| *kind == FLOWTABLE_HOOK)
        .flat_map(inside)
        .filter(|(kind, _)| *kind == FLOWTABLE_HOOK_DEVS)
        .flat_map(inside)
        .filter(|(kind, _)| *kind == DEVICE_NAME)
        .map(|(_, name)| text_in(name))
        .collect()
}

/// Returns a message about some devices of a flowtable, which looks at their incoming packets.
fn flowtable_object(family: Family, table: &str, flowtable: &str, devices: &[&str]) -> Vec<u8> {
    let mut body = object(family, FLOWTABLE_TABLE, table);
    text(&mut body, FLOWTABLE_NAME, flowtable);
    nest(&mut body, FLOWTABLE_HOOK, |inner| {
        number(inner, FLOWTABLE_HOOK_NUM, hook::NETDEV_INGRESS);
        number(inner, FLOWTABLE_HOOK_PRIORITY, 0);
        if !devices.is_empty() {
            nest(inner, FLOWTABLE_HOOK_DEVS, |list| {
                for device in devices {
                    text(list, DEVICE_NAME, device);
                }
            });
        }
    });
    body
}
