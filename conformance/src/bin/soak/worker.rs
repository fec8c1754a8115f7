//! A worker: plays a runtime with a few pods.

use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{io, thread};

use conformance::inside::{Outcome, Request};
use serde_json::{Value, json};

use crate::model::{OURS, Pod, World, conf};
use conformance::chance::Rng;

/// Pods of each worker. All workers together have more pods than the range has addresses.
const PODS: usize = 3;

/// One operation in this many is a check of everything.
const FULL_CHECK_INTERVAL: u64 = 1000;

/// A request that takes longer counts as hanging.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Prefix of the alternative subnet in the subnet file. Pods with an address of one subnet may
/// still be on the bridge when the file names the other.
const OTHER_SUBNET: &str = "10.10.9.";

pub(crate) struct Worker<'a> {
    world: &'a World,
    pods: Vec<String>,
    chance: Rng,
    /// True for the one worker that changes the subnet file.
    changes_subnet: bool,
}

/// The plugin that gets a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PluginKind {
    Ours,
    Theirs,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(world: &'a World, number: usize, seed: u64) -> Self {
        let pods: Vec<_> = (0..PODS).map(|i| format!("p{number}-{i}")).collect();
        for pod in &pods {
            world.create(pod);
        }
        let mut chance = Rng::new(seed);
        // Each worker has its own sequence of random numbers.
        let own = (0..=number).fold(0, |_, _| chance.below(u64::MAX));
        Self {
            world,
            pods,
            chance: Rng::new(own),
            changes_subnet: number == 0,
        }
    }

    /// Runs one operation.
    pub(crate) fn step(&mut self) {
        let number = self.world.count();
        if number % FULL_CHECK_INTERVAL == FULL_CHECK_INTERVAL - 1 {
            return self.world.look();
        }
        if self.changes_subnet && self.chance.once_in(40) {
            self.change_subnet_file();
        }
        if self.chance.once_in(150) {
            return self.collect();
        }
        if self.chance.once_in(4) {
            return self.status();
        }
        let world = self.world;
        let _shared = world
            .exclusive
            .read()
            .expect("no thread panics while it holds the lock");
        let pod = self.pods[usize::try_from(self.chance.below(3)).expect("few")].clone();
        match world.pod(&pod) {
            Pod::Absent if self.chance.once_in(8) => self.delete(&pod),
            Pod::Absent => self.add(&pod),
            Pod::Present(result) if !self.chance.once_in(3) => self.check(&pod, &result),
            Pod::Present(_) if self.chance.once_in(8) => self.add_again(&pod),
            Pod::Unknown if self.chance.once_in(2) => self.add(&pod),
            Pod::Present(_) | Pod::Unknown | Pod::Spoiled => self.delete(&pod),
        }
    }

    fn change_subnet_file(&mut self) {
        let mtu = self.chance.one_of(&[1400, 1450, 1500]);
        let masquerades = self.chance.once_in(2);
        match self.chance.below(8) {
            0 => self.world.remove_subnet_file(),
            1 => self
                .world
                .write_subnet_file("10.10.9.1/28", mtu, masquerades),
            _ => self
                .world
                .write_subnet_file("10.10.1.1/28", mtu, masquerades),
        }
    }

    fn whose(&mut self) -> PluginKind {
        if self.chance.once_in(8) {
            PluginKind::Theirs
        } else {
            PluginKind::Ours
        }
    }

    /// Returns when to kill the request, if it is to be killed. Requests to the reference plugins
    /// are not killed: the processes that they have started would continue.
    fn kill_after(&mut self, whose: PluginKind) -> Option<Duration> {
        let is_killed = whose == PluginKind::Ours && self.chance.once_in(12);
        is_killed.then(|| Duration::from_micros(self.chance.below(6000)))
    }

    fn add(&mut self, pod: &str) {
        let was_unknown = self.world.pod(pod) == Pod::Unknown;
        // The reference plugins cannot handle what a killed request of ours has left.
        let whose = if was_unknown {
            PluginKind::Ours
        } else {
            self.whose()
        };
        let kill = self.kill_after(whose);
        let before = self.world.subnet_file();
        let Some(ended) = self.ask(whose, "ADD", pod, None, kill) else {
            return self.world.note(pod, Pod::Unknown);
        };
        if let Some(result) = ended.json().filter(|_| ended.is_success()) {
            return self.world.note(pod, Pod::Present(result));
        }
        if whose == PluginKind::Theirs {
            return self.world.note(pod, Pod::Spoiled);
        }
        self.world.note(pod, Pod::Unknown);
        let is_initial = before.1 && self.world.subnet_file() == before;
        match ended.error_code() {
            Some(101) => self.world.count_exhausted(),
            // SPEC: ADD must fail if the interface exists.
            Some(4) if was_unknown => {}
            // Without a subnet file, or with a subnet that the bridge does not have.
            Some(11 | 100) if !is_initial => {}
            Some(100) if ended.stdout.contains(OTHER_SUBNET) => {}
            _ => self.world.problem(format!("ADD of {pod}: {ended:?}")),
        }
    }

    /// SPEC: a second ADD must fail, and must not change the first attachment.
    fn add_again(&mut self, pod: &str) {
        let before = self.world.subnet_file();
        let Some(ended) = self.ask(PluginKind::Ours, "ADD", pod, None, None) else {
            return;
        };
        let is_initial = before.1 && self.world.subnet_file() == before;
        match ended.error_code() {
            Some(4) => {}
            Some(11) if !is_initial => {}
            _ => self.world.problem(format!("ADD of {pod} again: {ended:?}")),
        }
    }

    fn delete(&mut self, pod: &str) {
        let was_present = matches!(self.world.pod(pod), Pod::Present(_));
        // From here on, another pod may get its addresses.
        self.world.note(pod, Pod::Unknown);
        // The reference plugins do not remove what a killed request of ours has left.
        let whose = if was_present {
            self.whose()
        } else {
            PluginKind::Ours
        };
        let kill = self.kill_after(whose);
        let Some(ended) = self.ask(whose, "DEL", pod, None, kill) else {
            return;
        };
        if ended.is_success() && whose == PluginKind::Ours {
            self.world.note(pod, Pod::Absent);
        } else if whose == PluginKind::Ours {
            self.world.problem(format!("DEL of {pod}: {ended:?}"));
        }
    }

    fn check(&mut self, pod: &str, result: &Value) {
        let before = self.world.subnet_file();
        let kill = self.kill_after(PluginKind::Ours);
        let ended = self.ask(
            PluginKind::Ours,
            "CHECK",
            pod,
            Some(("prevResult", result)),
            kill,
        );
        let is_initial = before.1 && self.world.subnet_file() == before;
        // Since the last ADD, the subnet file may have changed to say that the agent does not
        // masquerade.
        let is_true = |ended: &Outcome| ended.stdout.contains("is not masqueraded");
        let failed = ended.filter(|ended| !ended.is_success() && is_initial && !is_true(ended));
        if let Some(ended) = failed {
            self.world.problem(format!("CHECK of {pod}: {ended:?}"));
        }
    }

    fn status(&mut self) {
        let world = self.world;
        let _shared = world
            .exclusive
            .read()
            .expect("no thread panics while it holds the lock");
        let before = world.subnet_file();
        let ended = self.ask(PluginKind::Ours, "STATUS", "", None, None);
        let is_initial = before.1 && world.subnet_file() == before;
        let failed = ended.filter(|ended| !ended.is_success());
        let is_wrong = |ended: &Outcome| is_initial && !ended.stdout.contains(OTHER_SUBNET);
        if let Some(ended) = failed.filter(is_wrong) {
            world.problem(format!("STATUS: {ended:?}"));
        }
    }

    fn collect(&mut self) {
        let world = self.world;
        let _alone = world
            .exclusive
            .write()
            .expect("no thread panics while it holds the lock");
        let valid = world.valid();
        let kill = self.kill_after(PluginKind::Ours);
        let list = Some(("cni.dev/valid-attachments", &valid));
        let ended = self.ask(PluginKind::Ours, "GC", "", list, kill);
        if let Some(ended) = ended.filter(|ended| !ended.is_success()) {
            world.problem(format!("GC: {ended:?}"));
        }
    }

    /// Sends a request. Returns `None` if it was killed.
    fn ask(
        &self,
        whose: PluginKind,
        verb: &str,
        pod: &str,
        extra: Option<(&str, &Value)>,
        kill: Option<Duration>,
    ) -> Option<Outcome> {
        let mut conf = match whose {
            PluginKind::Ours => conf(),
            PluginKind::Theirs => theirs(),
        };
        if let Some((key, value)) = extra {
            conf[key] = value.clone();
        }
        let program = match whose {
            PluginKind::Ours => OURS,
            PluginKind::Theirs => "/usr/lib/cni/bridge",
        };
        let request = Request {
            verb,
            id: pod,
            conf: &conf,
        };
        let mut command = Command::new(program);
        let child = request
            .prepare(&mut command)
            .spawn()
            .expect("the plugin is installed");
        self.wait(child, kill)
    }

    fn wait(&self, mut child: Child, kill: Option<Duration>) -> Option<Outcome> {
        const STEP: Duration = Duration::from_micros(300);
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child
                .try_wait()
                .expect("the child process can be waited for and killed")
            {
                break status;
            }
            if kill.is_some_and(|after| begin.elapsed() >= after) {
                child
                    .kill()
                    .expect("the child process can be waited for and killed");
                let status = child
                    .wait()
                    .expect("the child process can be waited for and killed");
                if status.code().is_some() {
                    break status;
                }
                self.world.count_kill();
                return None;
            }
            if begin.elapsed() > REQUEST_TIMEOUT {
                self.world.problem("a request hangs".to_owned());
                child
                    .kill()
                    .expect("the child process can be waited for and killed");
            }
            thread::sleep(STEP);
        };
        let read = |pipe: Option<&mut dyn io::Read>| {
            let mut text = String::new();
            let pipe = pipe.expect("the stream is piped");
            pipe.read_to_string(&mut text).expect("the output is text");
            text.trim().to_owned()
        };
        Some(Outcome {
            code: status.code(),
            stdout: read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn io::Read)),
            stderr: read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn io::Read)),
        })
    }
}

/// Returns the configuration of the reference plugins, for the same store and bridge.
fn theirs() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0",
        "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.10.1.0/28"}]],
            "routes": [{"dst": "10.10.0.0/16"}],
        },
    })
}
