//! The real Nomad starts containers with our list, and with its own list of the mode `bridge`.

use std::time::Duration;

use conformance::clients::tool;
use conformance::{Containerd, Lab, Node, Release, repository, wait_within};
use serde_json::Value;

const AGENT: &str = r#"
bind_addr = "127.0.0.1"
data_dir  = "/run/nomad"
client {
  network_interface = "enp0s5"
  cni_path          = "/opt/cni/bin"
  cni_config_dir    = "/etc/cni/net.d"
  options = {
    "fingerprint.denylist" = "env_aws,env_azure,env_gce,env_digitalocean"
    "driver.allowlist"     = "raw_exec"
  }
}
plugin "raw_exec" {
  config { enabled = true }
}
"#;

/// Returns a job with one web server, whose port 80 is a port of the node.
fn job(name: &str, mode: &str, port: u16) -> String {
    format!(
        r#"job "{name}" {{
  datacenters = ["dc1"]
  group "web" {{
    network {{
      mode = "{mode}"
      port "http" {{
        static = {port}
        to     = 80
      }}
    }}
    task "web" {{
      driver = "raw_exec"
      config {{
        command = "/bin/busybox"
        args    = ["httpd", "-f", "-p", "80", "-h", "/run/www"]
      }}
      resources {{
        cpu    = 20
        memory = 32
      }}
    }}
  }}
}}
"#
    )
}

fn api(containerd: &Containerd<'_>, path: &str) -> Value {
    let text = containerd
        .sh(&format!("curl -s http://127.0.0.1:4646/v1/{path}"))
        .stdout;
    serde_json::from_str(&text).unwrap_or_default()
}

/// Returns the address of a job's running container.
fn address(containerd: &Containerd<'_>, name: &str) -> Option<String> {
    let all = api(containerd, &format!("job/{name}/allocations"));
    let running = all.as_array()?.iter();
    let mut running = running.filter(|allocation| allocation["ClientStatus"] == "running");
    let id = running.next_back()?["ID"].as_str()?.to_owned();
    let allocation = api(containerd, &format!("allocation/{id}"));
    let address = allocation["NetworkStatus"]["Address"].as_str()?;
    Some(address.to_owned())
}

/// Returns what containers have left on a node: bridge ports, reserved addresses, and records of
/// host ports.
fn left(node: &Node<'_>) -> String {
    let script = "cd /var/lib/cni/networks && ls */ | grep -E '^[0-9a-f]+[.:]'; ls /run/cni-hostgw/host-ports/pods 2>/dev/null";
    format!("{:?}{}", node.ports(), node.sh(script).stdout)
}

#[test]
fn nomad_starts_containers_with_our_list_and_with_its_own() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let outside = lab.node("outside", &["192.168.2.99/24"]);
    node.write_subnet_env(true);
    let path = repository().join("examples/10-cni-hostgw.conflist");
    let list = std::fs::read_to_string(path).expect("the example exists");
    let list = serde_json::from_str(&list).expect("the example is JSON");
    let containerd = Containerd::start(&node, Release::Debian, &list);
    lab.install(&tool("nomad"), "bin/nomad");
    node.write("/run/nomad.hcl", AGENT);
    node.write("/run/www/index.html", "hello\n");
    containerd
        .sh("cd /opt/cni/bin && rm bridge && cp cni-hostgw bridge && ln -s /usr/lib/cni/firewall . && \
             env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run \
             setsid /mnt/bin/nomad agent -dev -config=/run/nomad.hcl >/run/nomad.log 2>&1 </dev/null &")
        .ok();
    let minute = Duration::from_secs(60);
    let log = || node.sh("tail -30 /run/nomad.log").stdout;
    wait_within("Nomad has a ready node", minute, || {
        api(&containerd, "nodes")[0]["Status"] == "ready"
    });
    for (name, mode, port, subnet) in [
        ("ours", "cni/cbr0", 8080, "10.10.1."),
        ("bridge", "bridge", 8081, "172.26."),
    ] {
        let nomad = |arguments: &str| {
            containerd
                .sh(&format!("HOME=/run /mnt/bin/nomad {arguments}"))
                .ok()
        };
        node.write(&format!("/run/{name}.hcl"), job(name, mode, port));
        nomad(&format!("job run -detach /run/{name}.hcl"));
        let mut found = String::new();
        wait_within(&format!("{name} runs: {}", log()), minute, || {
            found = address(&containerd, name).unwrap_or_default();
            found.starts_with(subnet)
        });
        let get = |node: &Node<'_>, place: &str| {
            let command = format!("timeout 3 busybox wget -q -O - http://{place}/");
            node.sh(&command).stdout
        };
        assert_eq!(get(&node, &found), "hello\n", "{mode}");
        let place = format!("192.168.2.16:{port}");
        assert_eq!(get(&outside, &place), "hello\n", "{mode}: {}", log());
        nomad(&format!("job stop -purge -detach {name}"));
        wait_within(&format!("nothing is left: {}", log()), minute, || {
            left(&node) == "[]"
        });
        assert_eq!(get(&outside, &place), "", "{mode}");
    }
}
