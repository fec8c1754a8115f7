//! The plugin's host ports. The plugin opens and closes them; the agent writes their table again if
//! somebody deletes or changes it, and closes ports of pods that are gone.

use host_ports::{HostPorts, TABLE};
use kernel::{Rtnl, nftables};

use super::Firewall;
use crate::error::Result;
use crate::observe::LogLimiter;

impl Firewall {
    /// Compares the table with the records of the plugin, and writes it again if it differs. Does
    /// nothing on a node where no pod had a host port since the boot.
    pub(crate) fn restore_host_ports(&mut self, kernel: &Rtnl, log: &mut LogLimiter) -> Result<()> {
        if !host_ports::has_records()? || nftables::is_available().is_err() {
            return Ok(());
        }
        let Some(ports) = HostPorts::lock_existing(kernel)? else {
            return Ok(());
        };
        let restored = ports.restore()?;
        if restored.table {
            self.restored += 1;
            let text = format!(
                "restored table inet {TABLE} (host ports of pods) after an external change"
            );
            log.warn("restored the table of host ports", &text);
        }
        if restored.removed > 0 {
            let text = format!(
                "closed the host ports of {} pod(s) that are gone",
                restored.removed
            );
            log.info("closed host ports of pods that are gone", &text);
        }
        Ok(())
    }
}
