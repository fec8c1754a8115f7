//! The fast path: packets of established flows between the uplink and pods skip most of the kernel's way for
//! forwarded packets, by a flowtable of `nf_tables`.
//!
//! The flowtable's devices are the uplink and the host ends of pods' veths. They are added and deleted one by
//! one, so that a pod that comes or goes leaves other pods' flows alone. A flow is added to it after all filters
//! accepted its packets; when others change their rules, the flowtable is flushed, and every flow has to pass
//! them again.

mod checker;
mod lab;
mod policy;
mod status;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::time::Duration;

use kernel::{Link, conntrack};
use tokio::time::Instant;
use tracing::debug;

pub(crate) use lab::{CANNOT_RUN, CheckError, check};
pub(crate) use status::Status;
pub(crate) use table::{TABLE, delete as delete_table};

use crate::error::{Error, Result, causes};
use crate::files;
use crate::firewall::FirewallRules;
use crate::observe::LogLimiter;
use checker::{Checker, Finding};
use policy::ForeignRules;
use table::Listing;

/// The reason if the user does not want it.
const OFF: &str = "--fast-path=off";
/// After a failure, the next attempt is not sooner than this.
const REST: Duration = Duration::from_secs(9);

/// When the fast path is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// If the kernel has one, and a check shows that packets arrive.
    Auto,
    /// If the kernel has one, and no check shows that packets do not arrive. A warning says why not.
    On,
    /// Never.
    Off,
}

/// The links and networks of this node's pods.
#[derive(Clone, Copy)]
pub(crate) struct PodNetwork<'a> {
    pub(crate) rules: &'a FirewallRules,
    pub(crate) uplink: &'a Link,
    /// All links of this node.
    pub(crate) links: &'a [Link],
    /// The bridges of this node's pods.
    pub(crate) bridges: &'a [Link],
}

/// Keeps the fast path as it should be.
pub(crate) struct FastPath {
    mode: Mode,
    checker: Checker,
    foreign: ForeignRules,
    /// The rules as the kernel listed them after they were written.
    written: Option<Listing>,
    /// The devices that the kernel refused, and why.
    refused: BTreeMap<String, String>,
    status: Status,
    /// True if the last attempt failed.
    has_failed: bool,
    flushes: u64,
    /// After a failure, nothing is tried until then.
    rests_until: Option<Instant>,
}

impl FastPath {
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            mode,
            checker: Checker::new(),
            foreign: ForeignRules::default(),
            written: None,
            refused: BTreeMap::new(),
            status: match mode {
                Mode::Off => Status::Off(OFF.to_owned()),
                Mode::Auto | Mode::On => Status::BeingChecked,
            },
            has_failed: false,
            flushes: 0,
            rests_until: None,
        }
    }

    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    /// The number of times that all flows had to pass the rules of others again.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Waits until there is something to do that no event tells of: a check ended, or rules that changed may be read.
    pub(crate) async fn due(&mut self) {
        tokio::select! {
            () = self.checker.ended() => {}
            () = self.foreign.due() => {}
        }
    }

    /// Why the fast path is off although the user wants it, or what failed.
    pub(crate) fn warning(&self) -> Option<String> {
        let mode = match self.mode {
            Mode::On => "on",
            Mode::Auto if self.has_failed => "auto",
            _ => return None,
        };
        match &self.status {
            Status::Off(reason) => Some(format!(
                "the fast path is off (--fast-path={mode}): {reason}"
            )),
            _ => None,
        }
    }

    /// Makes the table and its devices what they should be. `is_event` says that firewall rules may have changed.
    pub(crate) fn ensure(
        &mut self,
        pods: PodNetwork<'_>,
        is_event: bool,
        is_resync: bool,
        log: &mut LogLimiter,
    ) {
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.rests_until = None;
        let result = self.try_ensure(pods, is_event, is_resync, log);
        self.has_failed = result.is_err();
        let status = match result {
            Ok(status) => status,
            Err(error) => {
                // A flow must not stay on a fast path that nobody looks after.
                drop(self.turn_off(log));
                self.rests_until = Some(Instant::now() + REST);
                Status::Off(error.text())
            }
        };
        if self.mode != Mode::Off && status.is_news_after(&self.status) {
            let text = format!("fast path: {status}");
            log.info_in("state of the fast path", &text);
        }
        self.status = status;
    }

    fn try_ensure(
        &mut self,
        pods: PodNetwork<'_>,
        is_event: bool,
        is_resync: bool,
        log: &mut LogLimiter,
    ) -> Result<Status> {
        if let Some(obstacle) = self.obstacle()? {
            self.turn_off(log)?;
            return Ok(obstacle);
        }
        match self.ensure_table(pods.rules, log) {
            Err(error) if error.is_gone() => {
                self.turn_off(log)?;
                self.rests_until = Some(Instant::now() + REST);
                let reason = format!("the kernel has no flowtables ({})", causes(&error));
                return Ok(Status::Off(reason));
            }
            other => other?,
        }
        // A flow that is added before its devices are would have one direction only on the fast path.
        let devices = self.ensure_devices(pods)?;
        if let Some(refused) = self.refused.get(&pods.uplink.name) {
            let reason = format!("the kernel refuses the uplink: {refused}");
            self.turn_off(log)?;
            self.rests_until = Some(Instant::now() + REST);
            return Ok(Status::Off(reason));
        }
        if self.foreign.changed(is_event)? {
            self.flush()?;
        }
        let flows = match &self.status {
            Status::On { flows, .. } if !is_resync => *flows,
            _ => conntrack::count_offloaded().ok(),
        };
        Ok(Status::On {
            devices,
            flows,
            remarks: self.remarks(),
        })
    }

    fn flush(&mut self) -> Result<(), kernel::Error> {
        if table::flush()? {
            self.flushes += 1;
        }
        Ok(())
    }

    /// The state if there cannot be a fast path now. Starts a check that is due.
    fn obstacle(&mut self) -> Result<Option<Status>> {
        if self.mode == Mode::Off {
            return Ok(Some(Status::Off(OFF.to_owned())));
        }
        if has_ipvs_services()? {
            let reason = "IPVS has services, whose packets must not skip it";
            return Ok(Some(Status::Off(reason.to_owned())));
        }
        self.checker.poll();
        Ok(match self.checker.finding() {
            Some(Finding::Works) => None,
            Some(Finding::Unknown(_)) if self.mode == Mode::On => None,
            Some(Finding::Fails(reason) | Finding::Unknown(reason)) => Some(Status::Off(reason)),
            // The table of an earlier run stays in use.
            None if table::exists().unwrap_or(false) => None,
            None => Some(Status::BeingChecked),
        })
    }

    /// Writes the table, unless it is there as this or an earlier run wrote it.
    fn ensure_table(
        &mut self,
        rules: &FirewallRules,
        log: &mut LogLimiter,
    ) -> Result<(), kernel::Error> {
        let networks: Vec<_> = rules.pairs().collect();
        let present = Listing::read()?.filter(|listing| listing.is_for(&networks));
        let is_right = match (&present, &self.written) {
            (Some(present), Some(written)) => present == written,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_right && table::devices()?.is_some() {
            self.written = present;
            return Ok(());
        }
        let was_for = |written: &Listing| written.is_for(&networks);
        if self.written.as_ref().is_some_and(was_for) {
            let text = format!("restored table inet {TABLE} after an external change");
            log.warn("restored the table of the fast path", &text);
        }
        table::write(&networks)?;
        // Flows may be added from now on: once the devices are, all flows have to pass the rules again.
        self.foreign = ForeignRules::default();
        self.written = Listing::read()?;
        Ok(())
    }

    /// Adds the devices that are missing, and deletes those of no pod. Returns the number of devices.
    fn ensure_devices(&mut self, pods: PodNetwork<'_>) -> Result<usize, kernel::Error> {
        let present = BTreeSet::from_iter(table::devices()?.unwrap_or_default());
        let wanted = pods.devices();
        let gone: Vec<_> = present.difference(&wanted).collect();
        if !gone.is_empty() {
            table::delete_devices(&gone)?;
            debug!("deleted {gone:?} from the fast path");
            // Flows end with their device, but not when it only becomes a port of another bridge.
            let exists = |device: &&String| pods.links.iter().any(|link| link.name == **device);
            if gone.iter().any(exists) {
                self.flush()?;
            }
        }
        let mut count = present.len() - gone.len();
        self.refused.retain(|device, _| wanted.contains(device));
        for device in wanted.difference(&present) {
            match table::add_device(device) {
                Ok(()) => {
                    debug!("added {device} to the fast path");
                    self.refused.remove(device);
                    self.checker.request();
                    count += 1;
                }
                // The pod was deleted meanwhile.
                Err(error) if error.is_gone() => {}
                Err(error) => {
                    self.refused.insert(device.clone(), causes(&error));
                }
            }
        }
        Ok(count)
    }

    /// Deletes the table, if there is one.
    fn turn_off(&mut self, log: &mut LogLimiter) -> Result<(), kernel::Error> {
        self.written = None;
        self.foreign = ForeignRules::default();
        if !self.status.is_on() && !table::exists().unwrap_or(false) {
            return Ok(());
        }
        match table::delete() {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
        log.info(
            "deleted the table of the fast path",
            &format!("deleted table inet {TABLE}"),
        );
        Ok(())
    }

    fn remarks(&self) -> Vec<String> {
        let refused = self.refused.values().cloned();
        let unchecked = match self.checker.finding() {
            Some(Finding::Unknown(reason)) => Some(reason),
            _ => None,
        };
        refused.chain(unchecked).collect()
    }
}

impl PodNetwork<'_> {
    /// The names of the devices between which pods' packets are forwarded.
    fn devices(&self) -> BTreeSet<String> {
        let is_pod = |link: &&Link| {
            let mut bridges = self.bridges.iter();
            link.kind == kernel::Kind::Veth
                && bridges.any(|bridge| link.bridge == Some(bridge.index))
        };
        let pods = self.links.iter().filter(is_pod);
        let devices = pods.chain([self.uplink]);
        devices.map(|link| link.name.clone()).collect()
    }
}

/// `hostgw-agent fast-path flush`.
pub(crate) fn flush_now() -> Result<String> {
    if table::flush()? {
        Ok("flushed the fast path: every flow has to pass all firewall rules again\n".to_owned())
    } else {
        Err(Error::Usage(
            "there is no fast path on this node (see `hostgw-agent status`)".to_owned(),
        ))
    }
}

/// True if IPVS forwards packets of services. It translates the addresses of answers after the place at which flows
/// get on the fast path, which would then skip it.
fn has_ipvs_services() -> Result<bool> {
    const PATH: &str = "/proc/net/ip_vs";
    const HEADER: usize = 3;
    let services = match File::open(PATH) {
        // There may be tens of thousands.
        Ok(file) => BufReader::new(file).lines().nth(HEADER).transpose(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let services = services.map_err(|error| files::Error::io("read", Path::new(PATH), error))?;
    Ok(services.is_some())
}
