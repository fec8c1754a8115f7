//! A trial: injects a fault at one point and checks the outcome against the rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use conformance::inside::{Outcome, Request, files, inside_pod, links, sh};
use serde_json::Value;

use crate::point::{Fault, Point};
use crate::scenario::{Network, Scenario};

const PLUGIN: &str = "/mnt/bin/cni-hostgw";
const TRACE: &str = "/run/trace";

/// Number of tried points, and a description of each that broke a rule.
#[derive(Default)]
pub(crate) struct Tally {
    points: usize,
    /// Requests that were killed.
    killed: usize,
    /// Requests that failed because of a fault.
    failed: usize,
    broken: Vec<String>,
}

impl Tally {
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.points += other.points;
        self.killed += other.killed;
        self.failed += other.failed;
        self.broken.extend(other.broken);
        self
    }

    pub(crate) fn is_good(&self) -> bool {
        // If no fault had an effect, the test did not test anything.
        let had_effect = self.points > 0 && self.killed > 0 && self.failed > 0;
        had_effect && self.broken.is_empty()
    }

    /// Prints the result for people.
    #[expect(clippy::print_stdout, reason = "the output is the program's result")]
    pub(crate) fn print(&self, took: Duration) {
        for broken in &self.broken {
            println!("{broken}");
        }
        let Self {
            points,
            killed,
            failed,
            ..
        } = self;
        let broken = self.broken.len();
        let seconds = took.as_secs();
        println!(
            "{points} points ({killed} killed, {failed} failed), {broken} broken, in {seconds} s"
        );
    }

    /// Prints the result for the supervisor.
    #[expect(clippy::print_stdout, reason = "the supervisor reads it")]
    pub(crate) fn write(&self) {
        println!("{} {} {}", self.points, self.killed, self.failed);
        for broken in &self.broken {
            println!("{}", broken.replace('\n', " "));
        }
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let numbers = lines.next().unwrap_or_default().split(' ');
        let numbers: Vec<_> = numbers.map_while(|number| number.parse().ok()).collect();
        let [points, killed, failed] = numbers[..] else {
            panic!("a worker prints three numbers: {text}");
        };
        Self {
            points,
            killed,
            failed,
            broken: lines.map(str::to_owned).collect(),
        }
    }
}

/// Tries every `every`th point of a scenario, if it belongs to the share of this worker.
pub(crate) fn run(
    scenario: &Scenario,
    (worker, workers): (usize, usize),
    every: usize,
    tally: &mut Tally,
) {
    prepare(scenario);
    let traced = ["strace", "-qq", "-o", TRACE, PLUGIN];
    let rehearsal = Trial::begin(scenario);
    let ended = rehearsal.request().run(&traced);
    assert!(ended.is_success(), "{}: {ended:?}", scenario.name());
    let points = Point::all(TRACE);
    assert!(!points.is_empty(), "{}", scenario.name());
    assert!(rehearsal.ask("DEL").is_success(), "{}", scenario.name());
    reset(scenario);
    for (i, point) in points.iter().enumerate() {
        // Each worker's share contains every kind of fault.
        if i % every == 0 && (i / every) % workers == worker {
            let outcome = Trial::begin(scenario).at(point, tally);
            tally.points += 1;
            if let Err(reason) = outcome {
                let what = format!("{}, {}", scenario.name(), point.injection());
                tally.broken.push(format!("{what}: {reason}"));
                eprintln!("{}", tally.broken.last().expect("just pushed"));
            }
            reset(scenario);
        }
    }
    sh("ip netns delete victim; ip netns delete other");
}

/// Creates the pods, and the attachment of the other pod.
fn prepare(scenario: &Scenario) {
    sh("rm -rf /var/lib/cni; mkdir -p /run/flannel; \
        for pod in victim other; do ip netns add $pod && ip -n $pod link set lo up; done");
    let env = "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\n\
               FLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n";
    fs::write("/run/flannel/subnet.env", env).expect("the node's file system is writable");
    reset(scenario);
}

/// Restores a node without attachments except the other pod's. Without the other pod, also removes
/// every trace of the network.
fn reset(scenario: &Scenario) {
    let conf = scenario.conf_of_other();
    let request = |verb, id| Request {
        verb,
        id,
        conf: &conf,
    };
    if scenario.has_other {
        let (_, links) = inside_pod("other");
        if !links.contains("eth0") {
            let added = request("ADD", "other").run(&[PLUGIN]);
            assert!(added.is_success(), "{added:?}");
        }
        return;
    }
    if links().contains("cni0") {
        sh("ip link delete cni0");
    }
    if scenario.has_rules() || scenario.network == Network::Ports {
        sh("nft flush ruleset");
    }
    drop(fs::remove_dir_all("/run/cni-hostgw"));
    drop(fs::remove_dir_all("/var/lib/cni"));
}

/// Everything that a request could leave behind or take from the other pod.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// The node's links except the bridge, which belongs to the node.
    links: BTreeSet<String>,
    /// Reservations, index entries and incomplete files, without files that belong to the network.
    files: BTreeSet<String>,
    /// Chains of `nf_tables`, or the elements of host ports.
    rules: BTreeSet<String>,
    /// Addresses and links of each pod.
    pods: Vec<(BTreeSet<String>, BTreeSet<String>)>,
}

impl State {
    fn now(scenario: &Scenario) -> Self {
        let of_network = |path: &String| {
            let name = path.rsplit('/').next().unwrap_or_default();
            matches!(
                name,
                "lock" | "boot_id" | "marks" | "settings" | "hostgw.lock"
            ) || name.starts_with("last_reserved_ip")
        };
        let mut links = links();
        links.remove("cni0");
        let mut files = files(Path::new("/var/lib/cni"));
        files.retain(|path| !of_network(path));
        for folder in ["pods", "closed", "addresses"] {
            let folder = Path::new("/run/cni-hostgw/host-ports").join(folder);
            files.extend(conformance::inside::files(&folder));
        }
        let rules = if scenario.network == Network::Ports {
            let text = sh("nft list table inet cni-hostgw || true");
            let elements = text
                .split([',', '{', '}'])
                .filter(|part| part.contains("comment"));
            elements.map(|element| element.trim().to_owned()).collect()
        } else if scenario.has_rules() {
            let text = sh("nft list chains");
            text.lines().map(|line| line.trim().to_owned()).collect()
        } else {
            BTreeSet::new()
        };
        Self {
            links,
            files,
            rules,
            pods: ["victim", "other"].map(inside_pod).into(),
        }
    }

    /// Compares with an earlier state. The error lists what was added (`+`) and removed (`-`).
    fn compare_with(&self, before: &Self) -> Result<(), String> {
        let mut differences = Vec::new();
        let mut compare = |now: &BTreeSet<String>, before: &BTreeSet<String>| {
            differences.extend(now.difference(before).map(|new| format!("+{new}")));
            differences.extend(before.difference(now).map(|gone| format!("-{gone}")));
        };
        compare(&self.links, &before.links);
        compare(&self.files, &before.files);
        compare(&self.rules, &before.rules);
        for (now, before) in self.pods.iter().zip(&before.pods) {
            compare(&now.0, &before.0);
            compare(&now.1, &before.1);
        }
        if differences.is_empty() {
            Ok(())
        } else {
            Err(differences.join(" "))
        }
    }
}

/// A request to be disturbed by a fault.
struct Trial<'a> {
    scenario: &'a Scenario,
    conf: Value,
    /// State before the victim's attachment existed.
    before: State,
    /// Result of ADD, for the verbs that follow it.
    result: Option<Value>,
    /// State with the victim's attachment, for verbs that come after ADD.
    with_victim: Option<State>,
}

impl<'a> Trial<'a> {
    fn begin(scenario: &'a Scenario) -> Self {
        let mut trial = Self {
            scenario,
            conf: scenario.conf(),
            before: State::now(scenario),
            result: None,
            with_victim: None,
        };
        if scenario.verb != "ADD" {
            let added = trial.ask("ADD");
            assert!(added.is_success(), "{}: {added:?}", scenario.name());
            let result = added.json().expect("ADD has a result");
            trial.conf["prevResult"] = result.clone();
            trial.result = Some(result);
            trial.with_victim = Some(State::now(scenario));
        }
        if scenario.verb == "GC" {
            trial.conf = scenario.conf_with_valid();
        }
        trial
    }

    fn request(&self) -> Request<'_> {
        Request {
            verb: self.scenario.verb,
            id: "victim",
            conf: &self.conf,
        }
    }

    /// Sends a request of another verb without a fault.
    fn ask(&self, verb: &str) -> Outcome {
        let mut conf = self.scenario.conf();
        if let Some(result) = self.result.as_ref().filter(|_| verb != "ADD") {
            conf["prevResult"] = result.clone();
        }
        let conf = if verb == "GC" {
            self.scenario.conf_with_valid()
        } else {
            conf
        };
        let request = Request {
            verb,
            id: "victim",
            conf: &conf,
        };
        request.run(&[PLUGIN])
    }

    /// Sends the request with a fault, and checks the outcome against the rules.
    fn at(mut self, point: &Point, tally: &mut Tally) -> Result<(), String> {
        let inject = point.injection();
        let traced = ["strace", "-qq", "-o", "/dev/null", "-e", &inject, PLUGIN];
        let ended = self.request().run(&traced);
        let was_killed = ended.code.is_none() && point.fault == Fault::Kill;
        tally.killed += usize::from(was_killed);
        tally.failed += usize::from(!was_killed && !ended.is_success());
        if was_killed && self.scenario.network == Network::Delegated {
            // Processes that the killed plugin had started continue without it.
            thread::sleep(Duration::from_millis(100));
        } else if !was_killed {
            check_single_answer(self.scenario.verb, &ended)?;
        }
        if point.must_succeed() && !ended.is_success() {
            return Err(format!("an interrupted call must be repeated: {ended:?}"));
        }
        let rule = match self.scenario.verb {
            "ADD" => self.after_add(&ended, was_killed),
            "DEL" => self.after_removal(&ended, "DEL"),
            "GC" => self.after_removal(&ended, "GC"),
            _ => self.after_check(&ended),
        };
        rule.map_err(|reason| format!("{reason}; outcome of the request: {ended:?}"))
    }

    /// After a failed ADD there is no trace, after a successful one the attachment is complete, and
    /// a killed one can be retried. In every case, DEL leaves nothing behind.
    fn after_add(&mut self, ended: &Outcome, was_killed: bool) -> Result<(), String> {
        if ended.is_success() {
            self.result = ended.json();
            self.must_succeed("CHECK")?;
        } else if was_killed {
            let retried = self.ask("ADD");
            // SPEC: ADD must fail if the interface exists.
            if !retried.is_success() && retried.error_code() != Some(4) {
                return Err(format!("a retried ADD: {retried:?}"));
            }
            self.result = retried.json().filter(|_| retried.is_success());
        } else {
            let now = State::now(self.scenario);
            let traces = now.compare_with(&self.before);
            traces.map_err(|left| format!("a failed ADD left a trace: {left}"))?;
        }
        self.must_succeed("DEL")?;
        self.is_as_before("DEL")
    }

    /// A successful removal has removed everything, and a failed one can be repeated.
    fn after_removal(&mut self, ended: &Outcome, verb: &str) -> Result<(), String> {
        if ended.is_success() {
            self.is_as_before(verb)?;
        }
        self.must_succeed(verb)?;
        self.is_as_before(verb)?;
        self.must_succeed("DEL")
    }

    /// CHECK changes nothing, and reports no difference if there is none.
    fn after_check(&mut self, ended: &Outcome) -> Result<(), String> {
        if ended.error_code() == Some(102) {
            return Err("CHECK reported a failure as a difference".to_owned());
        }
        let with_victim = self.with_victim.as_ref().expect("ADD has run before CHECK");
        State::now(self.scenario).compare_with(with_victim)?;
        self.must_succeed("CHECK")?;
        self.must_succeed("DEL")?;
        self.is_as_before("DEL")
    }

    fn must_succeed(&self, verb: &str) -> Result<(), String> {
        let ended = self.ask(verb);
        if ended.is_success() {
            Ok(())
        } else {
            Err(format!("{verb} afterwards: {ended:?}"))
        }
    }

    fn is_as_before(&self, verb: &str) -> Result<(), String> {
        let left = State::now(self.scenario).compare_with(&self.before);
        left.map_err(|left| format!("{verb} left something: {left}"))
    }
}

/// Checks that the output is exactly one JSON document with a meaningful error code, or a success
/// with the right output.
fn check_single_answer(verb: &str, ended: &Outcome) -> Result<(), String> {
    let is_right = match ended.code {
        None => false,
        Some(0) if verb == "ADD" => ended.json().is_some_and(|json| json["code"].is_null()),
        Some(0) => ended.stdout.is_empty(),
        Some(_) => ended.error_code().is_some_and(|code| code != 999),
    };
    if is_right {
        Ok(())
    } else {
        Err(format!("not exactly one valid answer: {ended:?}"))
    }
}
