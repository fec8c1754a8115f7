//! The expected state of the node, and checks that the node has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

use conformance::inside::{Request, files, inside_pod, links, sh};
use serde_json::{Value, json};

pub(crate) const OURS: &str = "/mnt/bin/cni-hostgw";
const STORE: &str = "/var/lib/cni/networks/cbr0";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// The node, its pods, and what is known of them.
pub(crate) struct World {
    /// Held shared by a request for one attachment, and exclusively by GC and by a check of
    /// everything.
    pub(crate) exclusive: RwLock<()>,
    pods: Mutex<BTreeMap<String, Pod>>,
    problems: Mutex<Vec<String>>,
    is_broken: AtomicBool,
    operations: AtomicU64,
    kills: AtomicU64,
    looks: AtomicU64,
    exhausted: AtomicU64,
    /// Number of changes of the subnet file.
    changes: AtomicU64,
    /// True if the subnet file has its initial content, except for the MTU.
    is_initial: AtomicBool,
}

/// The model's knowledge of one pod's attachment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pod {
    /// The attachment does not exist.
    Absent,
    /// The attachment exists, with this result of its ADD.
    Present(Value),
    /// A request was killed or failed: a DEL is due.
    Unknown,
    /// Like `Unknown`, after a failed ADD of the reference plugins: they release the address and
    /// leave the link that has it.
    Spoiled,
}

impl Pod {
    fn addresses(&self) -> BTreeSet<String> {
        let Self::Present(result) = self else {
            return BTreeSet::new();
        };
        let ips = result["ips"].as_array().expect("a result has addresses");
        let address = |ip: &Value| {
            let text = ip["address"].as_str().expect("the output is text");
            let (address, _) = text.split_once('/').expect("it has a prefix length");
            address.to_owned()
        };
        ips.iter().map(address).collect()
    }
}

/// Returns the network configuration of our plugin.
pub(crate) fn conf() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "subnetFileWait": 0,
        "delegate": {"isDefaultGateway": true, "hairpinMode": true},
    })
}

impl World {
    pub(crate) fn new() -> Self {
        sh("mkdir -p /run/flannel");
        let world = Self {
            exclusive: RwLock::new(()),
            pods: Mutex::default(),
            problems: Mutex::default(),
            is_broken: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            kills: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            is_initial: AtomicBool::new(true),
        };
        world.write_subnet_file("10.10.1.1/28", 1500, false);
        world
    }

    /// Creates a pod without an attachment.
    pub(crate) fn create(&self, name: &str) {
        sh(&format!(
            "ip netns add {name} && ip -n {name} link set lo up"
        ));
        self.pods().insert(name.to_owned(), Pod::Absent);
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.pods
            .lock()
            .expect("no thread panics while it holds the lock")
    }

    pub(crate) fn pod(&self, name: &str) -> Pod {
        self.pods()[name].clone()
    }

    /// Records the new state of a pod. An address that two pods have at once is a problem.
    pub(crate) fn note(&self, name: &str, pod: Pod) {
        let mut pods = self.pods();
        let addresses = pod.addresses();
        for (other, its) in pods.iter().filter(|(other, _)| *other != name) {
            if let Some(twice) = its.addresses().intersection(&addresses).next() {
                self.problem(format!(
                    "{twice} belongs to {other} and {name} at the same time"
                ));
            }
        }
        pods.insert(name.to_owned(), pod);
    }

    /// Returns the list of valid attachments for GC.
    pub(crate) fn valid(&self) -> Value {
        let pods = self.pods();
        let present = pods
            .iter()
            .filter(|(_, pod)| matches!(pod, Pod::Present(_)));
        present
            .map(|(name, _)| json!({"containerID": name, "ifname": "eth0"}))
            .collect()
    }

    /// Writes the subnet file atomically.
    pub(crate) fn write_subnet_file(&self, subnet: &str, mtu: u32, masquerades: bool) {
        let text = format!(
            "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU={mtu}\n\
             FLANNEL_IPMASQ={masquerades}\n"
        );
        let is_initial = subnet == "10.10.1.1/28";
        self.is_initial.store(false, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
        fs::write("/run/flannel/.new", text).expect("the node's file system is writable");
        fs::rename("/run/flannel/.new", SUBNET_FILE).expect("both are there");
        self.is_initial.store(is_initial, Ordering::SeqCst);
    }

    pub(crate) fn remove_subnet_file(&self) {
        self.is_initial.store(false, Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
        drop(fs::remove_file(SUBNET_FILE));
    }

    /// Returns a value by which a later call can tell if the subnet file had its initial content
    /// the whole time.
    pub(crate) fn subnet_file(&self) -> (u64, bool) {
        let changes = self.changes.load(Ordering::SeqCst);
        (changes, self.is_initial.load(Ordering::SeqCst))
    }

    pub(crate) fn count(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn count_kill(&self) {
        self.kills.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_exhausted(&self) {
        self.exhausted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} operations, {} killed, {} found the range exhausted, {} checks of everything, {} problems",
            of(&self.operations),
            of(&self.kills),
            of(&self.exhausted),
            of(&self.looks),
            self.problems().len()
        )
    }

    /// Reports a run in which nothing was tried, killed or checked.
    pub(crate) fn check_activity(&self) {
        let counters = [&self.operations, &self.kills, &self.looks];
        if counters
            .iter()
            .any(|counter| counter.load(Ordering::Relaxed) == 0)
        {
            self.problem(format!(
                "some kinds of operations never happened: {}",
                self.counts()
            ));
        }
    }

    pub(crate) fn problem(&self, what: String) {
        eprintln!("{what}");
        let mut problems = self
            .problems
            .lock()
            .expect("no thread panics while it holds the lock");
        problems.push(what);
        self.is_broken.store(true, Ordering::SeqCst);
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems
            .lock()
            .expect("no thread panics while it holds the lock")
            .clone()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::SeqCst)
    }

    /// Checks everything while no request runs. Attachments in an unknown state are deleted first,
    /// so that exactly the present attachments must be left.
    pub(crate) fn look(&self) {
        let _alone = self
            .exclusive
            .write()
            .expect("no thread panics while it holds the lock");
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.check_addresses_are_unique();
        let names: Vec<_> = self.pods().keys().cloned().collect();
        for name in names {
            if matches!(self.pod(&name), Pod::Unknown | Pod::Spoiled) {
                self.delete(&name);
            }
        }
        self.check_everything_belongs_to_a_pod();
    }

    /// Deletes all attachments, and checks that nothing is left.
    pub(crate) fn finish(&self) {
        if self.is_broken() {
            return;
        }
        let names: Vec<_> = self.pods().keys().cloned().collect();
        for name in names {
            self.delete(&name);
        }
        self.check_everything_belongs_to_a_pod();
        let rules = sh("nft list ruleset");
        if rules.contains("cni-hostgw") {
            self.problem(format!("rules without a pod: {rules}"));
        }
    }

    fn delete(&self, name: &str) {
        let conf = conf();
        let request = Request {
            verb: "DEL",
            id: name,
            conf: &conf,
        };
        let ended = request.run(&[OURS]);
        if ended.is_success() {
            self.note(name, Pod::Absent);
        } else {
            self.problem(format!("DEL of {name}: {ended:?}"));
        }
    }

    fn check_addresses_are_unique(&self) {
        let mut owners = BTreeMap::new();
        let pods = self.pods().clone();
        for (name, pod) in pods.iter().filter(|(_, pod)| **pod != Pod::Spoiled) {
            let (has, _) = inside_pod(name);
            let expected = pod.addresses();
            if matches!(pod, Pod::Present(_)) && has != expected {
                self.problem(format!("{name} has {has:?}, expected {expected:?}"));
            }
            for address in has {
                if let Some(other) = owners.insert(address.clone(), name.clone()) {
                    self.problem(format!("{other} and {name} both have {address}"));
                }
            }
        }
    }

    /// Checks that every reservation, index entry and host veth belongs to a present pod, and that
    /// every present pod has them.
    fn check_everything_belongs_to_a_pod(&self) {
        let pods = self.pods().clone();
        let mut expected = BTreeMap::new();
        for (name, pod) in &pods {
            for address in pod.addresses() {
                expected.insert(address, format!("{name}\r\neth0"));
            }
        }
        let mut reserved = BTreeMap::new();
        for path in files(Path::new(STORE)) {
            let name = path.rsplit('/').next().unwrap_or_default();
            let is_index = path.contains("/.attachments/");
            if !is_index && name.parse::<std::net::IpAddr>().is_ok() {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                reserved.insert(name.to_owned(), holder);
            }
            if is_index && name.contains(':') {
                let (id, _) = name.split_once(':').expect("the value is present");
                if !matches!(pods.get(id), Some(Pod::Present(_))) {
                    self.problem(format!("an index entry without a pod: {name}"));
                }
            }
            if name == ".new" {
                self.problem("an incomplete file was left behind".to_owned());
            }
        }
        if reserved != expected {
            self.problem(format!("reserved is {reserved:?}, expected {expected:?}"));
        }
        let veths = links().iter().filter(|l| l.starts_with("veth")).count();
        let present = pods
            .values()
            .filter(|pod| matches!(pod, Pod::Present(_)))
            .count();
        if veths != present {
            self.problem(format!("{veths} host veths of {present} pods"));
        }
    }
}
