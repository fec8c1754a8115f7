//! A worker: a runtime with some pods of its own.

use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{io, thread};

use conformance::inside::{Ended, Request};
use serde_json::{Value, json};

use crate::chance::Chance;
use crate::model::{OURS, Pod, World, conf};

/// More pods than the range has addresses.
const PODS: usize = 3;

/// Everything is looked at once in so many operations.
const LOOK: u64 = 1000;

/// After this long a request hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the other subnet of the subnet file begins with: pods that were made with it may still be on
/// the bridge when the file says something else.
const OTHER_SUBNET: &str = "10.10.9.";

pub(crate) struct Worker<'a> {
    world: &'a World,
    pods: Vec<String>,
    chance: Chance,
    /// Only one of them changes the subnet file.
    changes_subnet: bool,
}

/// Whose plugin is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Theirs,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(world: &'a World, number: usize, seed: u64) -> Self {
        let pods: Vec<_> = (0..PODS).map(|i| format!("p{number}-{i}")).collect();
        for pod in &pods {
            world.create(pod);
        }
        let mut chance = Chance::new(seed);
        // Each worker's own row of numbers.
        let own = (0..=number).fold(0, |_, _| chance.below(u64::MAX));
        Self {
            world,
            pods,
            chance: Chance::new(own),
            changes_subnet: number == 0,
        }
    }

    /// One operation.
    pub(crate) fn step(&mut self) {
        let number = self.world.count();
        if number % LOOK == LOOK - 1 {
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
        let _shared = world.exclusive.read().expect("nobody panics with it");
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

    fn whose(&mut self) -> Whose {
        if self.chance.once_in(8) {
            Whose::Theirs
        } else {
            Whose::Ours
        }
    }

    /// A moment at which the request is killed, for some. The reference plugins are not: what they
    /// have started would go on without them.
    fn kill_after(&mut self, whose: Whose) -> Option<Duration> {
        let is_killed = whose == Whose::Ours && self.chance.once_in(12);
        is_killed.then(|| Duration::from_micros(self.chance.below(6000)))
    }

    fn add(&mut self, pod: &str) {
        let was_unknown = self.world.pod(pod) == Pod::Unknown;
        // Theirs does not know what a killed request of ours left.
        let whose = if was_unknown {
            Whose::Ours
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
        if whose == Whose::Theirs {
            return self.world.note(pod, Pod::Spoiled);
        }
        self.world.note(pod, Pod::Unknown);
        let is_usual = before.1 && self.world.subnet_file() == before;
        match ended.error_code() {
            Some(101) => self.world.count_exhausted(),
            // SPEC: ADD must fail where the interface exists.
            Some(4) if was_unknown => {}
            // No subnet file, or one with a subnet that the bridge does not have.
            Some(11 | 100) if !is_usual => {}
            Some(100) if ended.stdout.contains(OTHER_SUBNET) => {}
            _ => self.world.problem(format!("ADD of {pod}: {ended:?}")),
        }
    }

    /// SPEC: a second ADD must fail, and leave the first alone.
    fn add_again(&mut self, pod: &str) {
        let before = self.world.subnet_file();
        let Some(ended) = self.ask(Whose::Ours, "ADD", pod, None, None) else {
            return;
        };
        let is_usual = before.1 && self.world.subnet_file() == before;
        match ended.error_code() {
            Some(4) => {}
            Some(11) if !is_usual => {}
            _ => self.world.problem(format!("ADD of {pod} again: {ended:?}")),
        }
    }

    fn delete(&mut self, pod: &str) {
        let was_present = matches!(self.world.pod(pod), Pod::Present(_));
        // From here on another one may get its addresses.
        self.world.note(pod, Pod::Unknown);
        // Theirs leaves what a killed request of ours left.
        let whose = if was_present {
            self.whose()
        } else {
            Whose::Ours
        };
        let kill = self.kill_after(whose);
        let Some(ended) = self.ask(whose, "DEL", pod, None, kill) else {
            return;
        };
        if ended.is_success() && whose == Whose::Ours {
            self.world.note(pod, Pod::Absent);
        } else if whose == Whose::Ours {
            self.world.problem(format!("DEL of {pod}: {ended:?}"));
        }
    }

    fn check(&mut self, pod: &str, result: &Value) {
        let before = self.world.subnet_file();
        let kill = self.kill_after(Whose::Ours);
        let ended = self.ask(
            Whose::Ours,
            "CHECK",
            pod,
            Some(("prevResult", result)),
            kill,
        );
        let is_usual = before.1 && self.world.subnet_file() == before;
        // The agent may have said, since the last ADD, that it masquerades no more.
        let is_true = |ended: &Ended| ended.stdout.contains("is not masqueraded");
        let failed = ended.filter(|ended| !ended.is_success() && is_usual && !is_true(ended));
        if let Some(ended) = failed {
            self.world.problem(format!("CHECK of {pod}: {ended:?}"));
        }
    }

    fn status(&mut self) {
        let world = self.world;
        let _shared = world.exclusive.read().expect("nobody panics with it");
        let before = world.subnet_file();
        let ended = self.ask(Whose::Ours, "STATUS", "", None, None);
        let is_usual = before.1 && world.subnet_file() == before;
        let failed = ended.filter(|ended| !ended.is_success());
        let is_wrong = |ended: &Ended| is_usual && !ended.stdout.contains(OTHER_SUBNET);
        if let Some(ended) = failed.filter(is_wrong) {
            world.problem(format!("STATUS: {ended:?}"));
        }
    }

    fn collect(&mut self) {
        let world = self.world;
        let _alone = world.exclusive.write().expect("nobody panics with it");
        let valid = world.valid();
        let kill = self.kill_after(Whose::Ours);
        let list = Some(("cni.dev/valid-attachments", &valid));
        let ended = self.ask(Whose::Ours, "GC", "", list, kill);
        if let Some(ended) = ended.filter(|ended| !ended.is_success()) {
            world.problem(format!("GC: {ended:?}"));
        }
    }

    /// Makes a request; nothing where it was killed.
    fn ask(
        &self,
        whose: Whose,
        verb: &str,
        pod: &str,
        extra: Option<(&str, &Value)>,
        kill: Option<Duration>,
    ) -> Option<Ended> {
        let mut conf = match whose {
            Whose::Ours => conf(),
            Whose::Theirs => theirs(),
        };
        if let Some((key, value)) = extra {
            conf[key] = value.clone();
        }
        let program = match whose {
            Whose::Ours => OURS,
            Whose::Theirs => "/usr/lib/cni/bridge",
        };
        let request = Request {
            verb,
            id: pod,
            conf: &conf,
        };
        let mut command = Command::new(program);
        let child = request.prepare(&mut command).spawn().expect("it is there");
        self.wait(child, kill)
    }

    fn wait(&self, mut child: Child, kill: Option<Duration>) -> Option<Ended> {
        const STEP: Duration = Duration::from_micros(300);
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("it is a child") {
                break status;
            }
            if kill.is_some_and(|after| begin.elapsed() >= after) {
                child.kill().expect("it is a child");
                let status = child.wait().expect("it is a child");
                if status.code().is_some() {
                    break status;
                }
                self.world.count_kill();
                return None;
            }
            if begin.elapsed() > PATIENCE {
                self.world.problem("a request hangs".to_owned());
                child.kill().expect("it is a child");
            }
            thread::sleep(STEP);
        };
        let read = |pipe: Option<&mut dyn io::Read>| {
            let mut text = String::new();
            let pipe = pipe.expect("it is piped");
            pipe.read_to_string(&mut text).expect("it is text");
            text.trim().to_owned()
        };
        Some(Ended {
            code: status.code(),
            stdout: read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn io::Read)),
            stderr: read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn io::Read)),
        })
    }
}

/// The configuration of the reference plugins, for the same store and bridge.
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
