//! Plugins, run as a runtime runs them: any executable, any verb, alone or in a chain.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::{Lab, Node, Pod};

/// A plugin executable, as the path under which a node sees it.
#[derive(Clone, Debug)]
pub struct Plugin(pub PathBuf);

/// The parameters of one attachment.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Attachment {
    /// `eth0` of a pod, with the pod's name as container ID.
    #[must_use]
    pub fn of(pod: &Pod<'_>) -> Self {
        Self::named(&pod.name)
    }

    /// `eth0` of the pod called `name`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            id: name.to_owned(),
            netns: format!("/run/netns/{name}"),
            ifname: "eth0".to_owned(),
            args: String::new(),
        }
    }

    /// Returns the attachment with other `CNI_ARGS`.
    #[must_use]
    pub fn with_args(self, args: &str) -> Self {
        Self {
            args: args.to_owned(),
            ..self
        }
    }

    /// Returns the attachment with another interface name.
    #[must_use]
    pub fn interface(self, ifname: &str) -> Self {
        Self {
            ifname: ifname.to_owned(),
            ..self
        }
    }

    /// Returns the attachment with another `CNI_NETNS`.
    #[must_use]
    pub fn in_netns(self, netns: &str) -> Self {
        Self {
            netns: netns.to_owned(),
            ..self
        }
    }
}

/// A plugin's answer to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// True if the plugin exited with 0.
    pub success: bool,
    /// JSON from standard output: a result, an error object, or null.
    pub json: Value,
    /// Text from standard error.
    pub stderr: String,
}

impl Reply {
    fn nothing() -> Self {
        Self {
            success: true,
            json: Value::Null,
            stderr: String::new(),
        }
    }

    /// Returns the result of a request that must succeed.
    ///
    /// # Panics
    ///
    /// If it failed.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.success, "{}{}", self.json, self.stderr);
        self.json
    }

    /// Returns the error of a request that must fail: its code, and its message and details in one
    /// text.
    ///
    /// # Panics
    ///
    /// If it succeeded, or printed no error object.
    #[track_caller]
    pub fn error(self) -> (u64, String) {
        assert!(!self.success, "the request succeeded: {}", self.json);
        let code = self.json["code"].as_u64();
        let code = code.unwrap_or_else(|| panic!("no error object: {} {}", self.json, self.stderr));
        let details = self.json["details"].as_str().unwrap_or_default();
        let text = [self.json["msg"].as_str().unwrap_or_default(), details];
        (code, text.join("; "))
    }

    /// Returns the addresses of a result, without prefix lengths.
    ///
    /// # Panics
    ///
    /// If the request failed, or the result has no addresses.
    #[must_use]
    #[track_caller]
    pub fn addresses(&self) -> Vec<String> {
        assert!(self.success, "{}{}", self.json, self.stderr);
        let ips = self.json["ips"]
            .as_array()
            .expect("a result with addresses");
        let address = |ip: &Value| {
            let address = ip["address"].as_str().expect("an address is text");
            address
                .split('/')
                .next()
                .expect("split gives a first part")
                .to_owned()
        };
        ips.iter().map(address).collect()
    }
}

impl Plugin {
    /// Our release executable, under the name `cni-hostgw`.
    #[must_use]
    pub fn ours(lab: &Lab) -> Self {
        Self::ours_as(lab, "cni-hostgw")
    }

    /// Our executable under another name.
    #[must_use]
    pub fn ours_as(lab: &Lab, name: &str) -> Self {
        let path = format!("bin/{name}");
        lab.install(&crate::dist().join("cni-hostgw"), &path);
        Self(Lab::path(&path))
    }

    /// The reference plugin with this name.
    #[must_use]
    pub fn reference(name: &str) -> Self {
        Self(crate::reference().join(name))
    }

    /// Sends one request and waits for the answer.
    #[must_use]
    pub fn call(
        &self,
        node: &Node<'_>,
        verb: &str,
        attachment: &Attachment,
        conf: &Value,
    ) -> Reply {
        self.start(node, verb, attachment, conf).wait()
    }

    /// Sends ADD for a pod's `eth0`.
    #[must_use]
    pub fn add(&self, pod: &Pod<'_>, conf: &Value) -> Reply {
        self.call(pod.node(), "ADD", &Attachment::of(pod), conf)
    }

    /// Sends DEL for a pod's `eth0`.
    #[must_use]
    pub fn del(&self, pod: &Pod<'_>, conf: &Value) -> Reply {
        self.call(pod.node(), "DEL", &Attachment::of(pod), conf)
    }

    /// Starts a request without waiting for it.
    ///
    /// # Panics
    ///
    /// If the plugin cannot be started.
    #[must_use]
    pub fn start(
        &self,
        node: &Node<'_>,
        verb: &str,
        attachment: &Attachment,
        conf: &Value,
    ) -> Running {
        self.start_with_command(&mut node.command(&self.0), verb, attachment, conf)
    }

    /// Starts a request by a command that the caller has prepared.
    ///
    /// # Panics
    ///
    /// If the plugin cannot be started.
    #[must_use]
    pub fn start_with_command(
        &self,
        command: &mut Command,
        verb: &str,
        attachment: &Attachment,
        conf: &Value,
    ) -> Running {
        Running::spawn(command, &self.0, verb, attachment, conf)
    }
}

/// A running request.
pub struct Running {
    child: Child,
    plugin: PathBuf,
}

impl Running {
    fn spawn(
        command: &mut Command,
        plugin: &Path,
        verb: &str,
        attachment: &Attachment,
        conf: &Value,
    ) -> Self {
        let search = [Lab::path("bin"), PathBuf::from("/usr/lib/cni")];
        let search: Vec<_> = search
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let mut child = command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attachment.id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_ARGS", &attachment.args)
            .env("CNI_PATH", search.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter is part of every Debian");
        let mut stdin = child.stdin.take().expect("the stream is piped");
        // VERSION does not read standard input.
        drop(stdin.write_all(conf.to_string().as_bytes()));
        Self {
            child,
            plugin: plugin.to_owned(),
        }
    }

    /// Waits for the end and returns standard output verbatim.
    ///
    /// # Panics
    ///
    /// If the request failed.
    #[must_use]
    pub fn text(self) -> String {
        let output = self
            .child
            .wait_with_output()
            .expect("a child can be waited for");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {text}", self.plugin.display());
        text
    }

    /// Waits until the process ends, and ignores its answer.
    ///
    /// # Panics
    ///
    /// If the process cannot be waited for.
    pub fn end(self) {
        let output = self.child.wait_with_output();
        drop(output.expect("a child can be waited for"));
    }

    /// Waits for the answer.
    ///
    /// # Panics
    ///
    /// If the output is not JSON.
    #[must_use]
    pub fn wait(self) -> Reply {
        let output = self
            .child
            .wait_with_output()
            .expect("a child can be waited for");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = match stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text)
                .unwrap_or_else(|e| panic!("{}: {e}: {text}{stderr}", self.plugin.display())),
        };
        Reply {
            success: output.status.success(),
            json,
            stderr,
        }
    }
}

/// A network configuration list and its plugins, which run in order as libcni runs them.
pub struct Chain {
    name: Value,
    version: Value,
    plugins: Vec<(Plugin, Value)>,
}

impl Chain {
    /// Parses the list in `text`. `cni-hostgw` and `flannel` are our executable; every other plugin
    /// is the reference plugin with its name.
    ///
    /// # Panics
    ///
    /// If the text is not a network configuration list.
    #[must_use]
    pub fn new(lab: &Lab, text: &str) -> Self {
        let list: Value = serde_json::from_str(text).expect("a conflist is JSON");
        let entries = list["plugins"].as_array().expect("a conflist has plugins");
        let plugin = |entry: &Value| {
            let name = entry["type"].as_str().expect("a plugin has a type");
            let plugin = match name {
                "cni-hostgw" | "flannel" => Plugin::ours_as(lab, name),
                other => Plugin::reference(other),
            };
            (plugin, entry.clone())
        };
        Self {
            name: list["name"].clone(),
            version: list["cniVersion"].clone(),
            plugins: entries.iter().map(plugin).collect(),
        }
    }

    /// Runs ADD through the list. Each plugin gets the result of the plugin before it. The first
    /// failure is the answer of the whole list.
    #[must_use]
    pub fn add(&self, pod: &Pod<'_>, attachment: &Attachment) -> Reply {
        let mut last: Option<Reply> = None;
        for (plugin, conf) in &self.plugins {
            let conf = self.request(conf, last.as_ref().map(|reply| &reply.json));
            let reply = plugin.call(pod.node(), "ADD", attachment, &conf);
            if !reply.success {
                return reply;
            }
            last = Some(reply);
        }
        last.expect("a list has a plugin")
    }

    /// Runs CHECK through the list. Each plugin gets the result of the whole list. The first
    /// failure is the answer of the whole list.
    #[must_use]
    pub fn check(&self, pod: &Pod<'_>, attachment: &Attachment, result: &Value) -> Reply {
        let mut last = Reply::nothing();
        for (plugin, conf) in &self.plugins {
            let conf = self.request(conf, Some(result));
            last = plugin.call(pod.node(), "CHECK", attachment, &conf);
            if !last.success {
                return last;
            }
        }
        last
    }

    /// Runs DEL through the list, last plugin first, with the result of ADD if the version passes
    /// it.
    #[must_use]
    pub fn del(&self, pod: &Pod<'_>, attachment: &Attachment, result: Option<&Value>) -> Reply {
        let mut last = Reply::nothing();
        for (plugin, conf) in self.plugins.iter().rev() {
            last = plugin.call(pod.node(), "DEL", attachment, &self.request(conf, result));
            if !last.success {
                return last;
            }
        }
        last
    }

    fn request(&self, conf: &Value, previous: Option<&Value>) -> Value {
        let mut conf = conf.clone();
        conf["name"] = self.name.clone();
        conf["cniVersion"] = self.version.clone();
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        // A runtime supplies a value for each declared capability.
        if conf["capabilities"]["portMappings"] == json!(true) {
            conf["runtimeConfig"] = json!({"portMappings": []});
        }
        conf
    }
}
