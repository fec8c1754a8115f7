//! Nodes, a switch between them, pods in them: namespaces, each with an owner.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::holder::{Holder, Output, Root, run};

/// Where all nodes of a lab see one folder, and nobody else does.
const SHARED: &str = "/mnt";

/// A network of nodes: one switch in a namespace of its own, and a folder that all share.
pub struct Lab {
    switch: Holder,
}

/// A node: a network namespace with a `/run` and a `/var/lib` of its own, and an interface
/// `enp0s5` to the switch.
pub struct Node<'lab> {
    /// Its name.
    pub name: String,
    holder: Holder,
    lab: &'lab Lab,
}

/// A pod: a network namespace of a node, without any interface but `lo`.
pub struct Pod<'node> {
    /// Its name; its namespace is `/run/netns/<name>` in the node.
    pub name: String,
    node: &'node Node<'node>,
}

impl Lab {
    /// A switch without nodes.
    ///
    /// # Panics
    ///
    /// When namespaces cannot be had: it takes root.
    #[must_use]
    pub fn new() -> Self {
        let script = format!(
            "mount -t tmpfs tmpfs {SHARED} && ip link add sw type bridge && ip link set sw up \
             && ip link set lo up && ip addr add 192.168.2.1/24 dev sw \
             && ip addr add fd00:192:168:2::1/64 dev sw nodad"
        );
        let mut unshare = Command::new("unshare");
        let switch = Holder::start(&mut unshare, Root::here(), &script);
        Self { switch }
    }

    /// A node on the switch, with these addresses and prefix lengths on `enp0s5`, and default
    /// routes by the switch.
    #[must_use]
    pub fn node(&self, name: &str, addresses: &[&str]) -> Node<'_> {
        let mut inside = self.switch.enter(&["-m"]);
        inside.arg("unshare");
        let script = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib \
             && mkdir -p /run/netns /var/lib/cni && ip link set lo up";
        let holder = Holder::start(&mut inside, Root::Private, script);
        let node = Node {
            name: name.to_owned(),
            holder,
            lab: self,
        };
        node.plug("enp0s5", addresses);
        for address in addresses {
            let via = if address.contains(':') {
                "fd00:192:168:2::1"
            } else {
                "192.168.2.1"
            };
            node.sh(&format!("ip route add default via {via} dev enp0s5"))
                .ok();
        }
        node
    }

    /// Where the nodes see `name` of the shared folder.
    #[must_use]
    pub fn path(name: &str) -> PathBuf {
        Path::new(SHARED).join(name)
    }

    /// Writes a file into the shared folder, replacing it in one step.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let folder = self.switch.root().join(SHARED.trim_start_matches('/'));
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("makes it");
        let new = folder.join(".new");
        fs::write(&new, content).expect("the shared folder takes files");
        fs::rename(&new, path).expect("both lie in the shared folder");
    }

    /// Lets a file of the shared folder be started.
    pub fn make_executable(&self, name: &str) {
        let script = format!("chmod 755 {}", Self::path(name).display());
        run(self.switch.enter(&["-m"]).args(["sh", "-c", &script])).ok();
    }

    /// Copies an executable into the shared folder, under any name, unless it is there.
    ///
    /// By a process of its own: a file that is open for writing cannot be executed, and what
    /// other threads start at this moment would hold ours open.
    pub fn install(&self, executable: &Path, name: &str) {
        let executable = executable.canonicalize().expect("the executable is there");
        let path = Self::path(name);
        let (from, to) = (executable.display(), path.display());
        let script = format!(
            "test -x {to} || {{ mkdir -p $(dirname {to}) && cp {from} {to}.$$ && mv {to}.$$ {to}; }}"
        );
        run(self.switch.enter(&["-m"]).args(["sh", "-c", &script])).ok();
    }

    /// The process that holds the switch's namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.switch.pid()
    }

    /// Has the lab and its nodes stay after this program, until somebody ends the processes
    /// that hold them.
    pub fn keep<'a>(&self, nodes: impl IntoIterator<Item = &'a Node<'a>>) {
        let holders = nodes.into_iter().map(|node| &node.holder);
        for holder in holders.chain([&self.switch]) {
            holder.keep();
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl<'lab> Node<'lab> {
    /// A pod of this node, its `lo` up.
    #[must_use]
    pub fn pod<'node>(&'node self, name: &str) -> Pod<'node>
    where
        'lab: 'node,
    {
        self.sh(&format!(
            "ip netns add {name} && ip -n {name} link set lo up"
        ))
        .ok();
        Pod {
            name: name.to_owned(),
            node: self,
        }
    }

    /// Gives the node an interface to the switch, with these addresses and prefix lengths.
    pub fn plug(&self, interface: &str, addresses: &[&str]) {
        let pid = self.holder.pid();
        let port: String = format!("p-{}", self.name).chars().take(13).collect();
        let port = format!("{port}-{}", &interface[interface.len() - 1..]);
        // One of a node that is gone lasts a moment longer.
        let wire = format!(
            "ip link del {port} 2>/dev/null; ip link add {port} type veth peer name {interface} netns {pid} \
             && ip link set {port} master sw up"
        );
        let mut inside = self.lab.switch.enter(&["-n", "-m"]);
        run(inside.args(["sh", "-c", &wire])).ok();
        // Duplicate detection would keep IPv6 waiting, and going down would take it away.
        let conf = format!("/proc/sys/net/ipv6/conf/{interface}");
        self.sh(&format!(
            "echo 1 > {conf}/keep_addr_on_down; echo 0 > {conf}/accept_dad; \
             ip link set {interface} up"
        ))
        .ok();
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.sh(&format!("ip addr add {address} dev {interface} {nodad}"))
                .ok();
        }
    }

    /// A program that will run in the node.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.holder.enter(&["-m", "-n"]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a shell script in the node.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        run(self.command("sh").args(["-c", script]))
    }

    /// What `ip -json ...` says in the node.
    #[must_use]
    pub fn ip(&self, args: &str) -> Value {
        let text = self.sh(&format!("ip -json {args}")).ok();
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// A path of the node's, as seen from outside.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.holder.root().join(path.trim_start_matches('/'))
    }

    /// Writes a file of the node's, and the folder that it lies in.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("makes it");
        fs::write(path, content).expect("the node takes files");
    }

    /// Writes the node's subnet file, as an agent would that masquerades or does not.
    pub fn write_subnet_env(&self, masquerades: bool) {
        let text = format!(
            "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\n\
             FLANNEL_MTU=1500\nFLANNEL_IPMASQ={masquerades}\n"
        );
        self.write("/run/flannel/subnet.env", text);
    }

    /// The ports of the bridges, by name: what `ip -json` says of each.
    #[must_use]
    pub fn ports(&self) -> Vec<Value> {
        let ports = self.ip("-details link show type bridge_slave");
        let all = ports.as_array().expect("ip lists links").iter();
        // ip leaves an empty object for each link that is none.
        all.filter(|link| link["ifname"].is_string())
            .cloned()
            .collect()
    }

    /// A connection of the node's to `address`, for this program to talk by.
    ///
    /// # Errors
    ///
    /// Where nobody listens.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.pid()))?;
        // A socket stays in the network that it was made in; the thread that went there ends.
        let connect = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect(address)
        };
        let thread = thread::spawn(connect);
        thread.join().expect("it does not panic")
    }

    /// The process that holds the node's namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// The lab that the node is in.
    #[must_use]
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }
}

impl Pod<'_> {
    /// Where the node sees the pod's namespace.
    #[must_use]
    pub fn netns(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// The pod's node.
    #[must_use]
    pub fn node(&self) -> &Node<'_> {
        self.node
    }

    /// A program that will run in the pod.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let net = format!("--net={}", self.node.path(&self.netns()).display());
        let mut command = self.node.holder.enter(&["-m", &net]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a shell script in the pod.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        run(self.command("sh").args(["-c", script]))
    }

    /// Whether `address` answers each of three pings.
    #[must_use]
    pub fn pings(&self, address: &str) -> bool {
        let ping = self.sh(&format!("busybox ping -c 3 -i 0.2 -W 2 {address}"));
        ping.success && ping.stdout.contains(" 0% packet loss")
    }

    /// Takes the namespace away, as a runtime does after DEL.
    pub fn delete(self) {
        self.node.sh(&format!("ip netns delete {}", self.name)).ok();
    }
}

/// A server in a pod or on a node, busybox's for most. Ends when it is dropped, and with the program that started it.
pub struct Server(Child);

impl Server {
    /// Starts the applet with its arguments.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn start(pod: &Pod<'_>, applet: &str) -> Self {
        Self::run(&pod.command("busybox"), applet)
    }

    /// The same on a node itself.
    #[must_use]
    pub fn start_on(node: &Node<'_>, applet: &str) -> Self {
        Self::run(&node.command("busybox"), applet)
    }

    /// Another program's on a node.
    #[must_use]
    pub fn program(node: &Node<'_>, program: &str, arguments: &str) -> Self {
        Self::run(&node.command(program), arguments)
    }

    /// Another program's in a pod.
    #[must_use]
    pub fn program_in(pod: &Pod<'_>, program: &str, arguments: &str) -> Self {
        Self::run(&pod.command(program), arguments)
    }

    fn run(inner: &Command, applet: &str) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(applet.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv is part of every Debian");
        Self(child)
    }

    /// Ends it, and says what it logged.
    ///
    /// # Panics
    ///
    /// When it ended by itself.
    #[must_use]
    pub fn stop(mut self) -> String {
        let log = self.0.stderr.take().expect("it is piped");
        self.0.kill().expect("it runs");
        std::io::read_to_string(log).expect("a log is text")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Asks again and again until the answer is yes, and says how long that took.
///
/// # Panics
///
/// When it is not within ten seconds.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !is_so() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "not within ten seconds: {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
    begin.elapsed()
}
