//! Labs, nodes and pods: namespaces connected by a switch, each with an owner.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::holder::{Holder, Output, Root, run};
use crate::process::{Lifetime, Process};

/// Mount point of the folder that all nodes of a lab share. Nothing outside the lab sees it.
const SHARED: &str = "/mnt";

/// A network of nodes: one switch in its own namespaces, and a folder that all nodes share.
pub struct Lab {
    switch: Holder,
}

/// A node: a network namespace with its own host name, `/run` and `/var/lib`, and an interface
/// `enp0s5` connected to the switch.
pub struct Node<'lab> {
    /// Name of the node.
    pub name: String,
    holder: Holder,
    lab: &'lab Lab,
}

/// A pod: a network namespace on a node, with no interface but `lo`.
pub struct Pod<'node> {
    /// Name of the pod. Its network namespace is `/run/netns/<name>` on the node.
    pub name: String,
    node: &'node Node<'node>,
}

impl Lab {
    /// Creates a lab with a switch and no nodes.
    ///
    /// # Panics
    ///
    /// If the namespaces cannot be created, which requires root.
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

    /// Adds a node to the switch. `enp0s5` gets these addresses (with prefix lengths), and the
    /// default routes point to the switch.
    #[must_use]
    pub fn node(&self, name: &str, addresses: &[&str]) -> Node<'_> {
        let mut inside = self.switch.enter(&["-m"]);
        inside.arg("unshare");
        let script = format!(
            "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && hostname {name} \
             && mkdir -p /run/netns /var/lib/cni && ip link set lo up"
        );
        let holder = Holder::start(&mut inside, Root::Private, &script);
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

    /// Returns the path at which the nodes see the file `name` of the shared folder.
    #[must_use]
    pub fn path(name: &str) -> PathBuf {
        Path::new(SHARED).join(name)
    }

    /// Writes a file into the shared folder, replacing an existing one atomically.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let folder = self.switch.root().join(SHARED.trim_start_matches('/'));
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a file has a parent folder"))
            .expect("the folder can be created");
        let new = folder.join(".new");
        fs::write(&new, content).expect("the shared folder is writable");
        fs::rename(&new, path).expect("both paths are in the shared folder");
    }

    /// Runs a shell script on the switch, where the port of a node's `enp0s5` is `p-NODE-5`.
    pub fn on_switch(&self, script: &str) {
        run(self.switch.enter(&["-n", "-m"]).args(["sh", "-c", script])).ok();
    }

    /// Makes a file of the shared folder executable.
    pub fn make_executable(&self, name: &str) {
        let script = format!("chmod 755 {}", Self::path(name).display());
        run(self.switch.enter(&["-m"]).args(["sh", "-c", &script])).ok();
    }

    /// Copies an executable into the shared folder under the given name, unless it is already
    /// there.
    ///
    /// A separate process does the copying: a file that is open for writing cannot be executed, and
    /// a process that another thread starts at this moment would inherit our open file.
    pub fn install(&self, executable: &Path, name: &str) {
        let executable = executable.canonicalize().expect("the executable exists");
        let path = Self::path(name);
        let (from, to) = (executable.display(), path.display());
        let script = format!(
            "test -x {to} || {{ mkdir -p $(dirname {to}) && cp {from} {to}.$$ && mv {to}.$$ {to}; }}"
        );
        run(self.switch.enter(&["-m"]).args(["sh", "-c", &script])).ok();
    }

    /// Returns the id of the process that holds the switch's namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.switch.pid()
    }

    /// Keeps the lab and these nodes running after this program ends, until the processes that hold
    /// their namespaces are killed.
    pub fn keep<'a>(&self, nodes: impl IntoIterator<Item = &'a Node<'a>>) {
        let namespace_holders = nodes.into_iter().map(|node| &node.holder);
        for holder in namespace_holders.chain([&self.switch]) {
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
    /// Creates a pod on this node, with its `lo` up.
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

    /// Connects the node to the switch by an interface with these addresses and prefix lengths.
    pub fn plug(&self, interface: &str, addresses: &[&str]) {
        let pid = self.holder.pid();
        let port: String = format!("p-{}", self.name).chars().take(13).collect();
        let port = format!("{port}-{}", &interface[interface.len() - 1..]);
        // The port of a removed node may exist for a moment longer.
        let wire = format!(
            "ip link del {port} 2>/dev/null; ip link add {port} type veth peer name {interface} netns {pid} \
             && ip link set {port} master sw up"
        );
        let mut inside = self.lab.switch.enter(&["-n", "-m"]);
        run(inside.args(["sh", "-c", &wire])).ok();
        // Duplicate address detection would delay IPv6, and taking the interface down would remove
        // its IPv6 addresses.
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

    /// Returns a command that will run in the node's namespaces.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.holder.enter(&["-m", "-n", "-u"]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a shell script in the node.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        run(self.command("sh").args(["-c", script]))
    }

    /// Returns the output of `ip -json ...` on the node.
    #[must_use]
    pub fn ip(&self, args: &str) -> Value {
        let text = self.sh(&format!("ip -json {args}")).ok();
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Translates a path on the node into a path that works outside of the node.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.holder.root().join(path.trim_start_matches('/'))
    }

    /// Writes a file on the node, and creates its parent folder.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file has a parent folder"))
            .expect("the folder can be created");
        fs::write(path, content).expect("the node's file system is writable");
    }

    /// Writes the node's subnet file as an agent would, with `FLANNEL_IPMASQ` set to `masquerades`.
    pub fn write_subnet_env(&self, masquerades: bool) {
        let text = format!(
            "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\n\
             FLANNEL_MTU=1500\nFLANNEL_IPMASQ={masquerades}\n"
        );
        self.write("/run/flannel/subnet.env", text);
    }

    /// Gives the node an `/etc` of its own, with the content of the machine's.
    pub fn make_etc_private(&self) {
        let script = "mkdir -p /run/.etc/up /run/.etc/work && \
             { mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/.etc/up,workdir=/run/.etc/work /etc 2>/dev/null || \
             { cp -a /etc/. /run/.etc/up/ && mount --bind /run/.etc/up /etc; }; }";
        self.sh(script).ok();
    }

    /// Returns the bridge ports of the node, as `ip -json` describes them.
    #[must_use]
    pub fn ports(&self) -> Vec<Value> {
        let ports = self.ip("-details link show type bridge_slave");
        let all = ports.as_array().expect("ip lists links").iter();
        // ip prints an empty object for each link that is not a bridge port.
        all.filter(|link| link["ifname"].is_string())
            .cloned()
            .collect()
    }

    /// Opens a TCP connection from the node's network namespace to `address`, for use by this
    /// program.
    ///
    /// # Errors
    ///
    /// If nothing listens at the address.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.pid()))?;
        // A socket stays in the network namespace in which it was created. The thread that enters
        // the node's namespace ends afterwards.
        let connect = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect(address)
        };
        let thread = thread::spawn(connect);
        thread.join().expect("the thread does not panic")
    }

    /// Returns the id of the process that holds the node's namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Returns the lab of the node.
    #[must_use]
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }
}

impl Pod<'_> {
    /// Returns the path of the pod's network namespace on the node.
    #[must_use]
    pub fn netns(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Returns the node of the pod.
    #[must_use]
    pub fn node(&self) -> &Node<'_> {
        self.node
    }

    /// Returns a command that will run in the pod's network namespace.
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

    /// Returns true if `address` answers all of three pings.
    #[must_use]
    pub fn pings(&self, address: &str) -> bool {
        let ping = self.sh(&format!("busybox ping -c 3 -i 0.2 -W 2 {address}"));
        ping.success && ping.stdout.contains(" 0% packet loss")
    }

    /// Deletes the pod's network namespace, as a runtime does after DEL.
    pub fn delete(self) {
        self.node.sh(&format!("ip netns delete {}", self.name)).ok();
    }
}

/// A server process in a pod or on a node, usually a busybox applet. It ends when this value is
/// dropped, or when the program that started it ends.
pub struct Server(Process);

impl Server {
    /// Starts a busybox applet in a pod; `applet` is its name with its arguments.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn start(pod: &Pod<'_>, applet: &str) -> Self {
        Self::run(pod.command("busybox"), applet)
    }

    /// Starts a busybox applet on a node.
    #[must_use]
    pub fn start_on(node: &Node<'_>, applet: &str) -> Self {
        Self::run(node.command("busybox"), applet)
    }

    /// Starts another program on a node.
    #[must_use]
    pub fn program(node: &Node<'_>, program: &str, arguments: &str) -> Self {
        Self::run(node.command(program), arguments)
    }

    /// Starts another program in a pod.
    #[must_use]
    pub fn start_program_in(pod: &Pod<'_>, program: &str, arguments: &str) -> Self {
        Self::run(pod.command(program), arguments)
    }

    fn run(mut command: Command, arguments: &str) -> Self {
        command.args(arguments.split(' '));
        Self(Process::start(&command, Lifetime::Killed, Stdio::piped()))
    }

    /// Stops the server and returns its log.
    ///
    /// # Panics
    ///
    /// If the log is not text.
    #[must_use]
    pub fn stop(mut self) -> String {
        let log = self.0.take_stderr().expect("the stream is piped");
        self.0.kill();
        std::io::read_to_string(log).expect("a log is text")
    }
}
