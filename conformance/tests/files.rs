//! The executables as files: statically linked, and installed atomically. Also the command line of
//! `subnet-env`.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use conformance::{Lab, dist, repository};

/// Returns the types of the program headers of a 64-bit ELF file.
fn program_headers(image: &[u8]) -> Vec<u32> {
    assert_eq!(image[..5], *b"\x7fELF\x02");
    let at = |offset: usize, length: usize| {
        let bytes = &image[offset..offset + length];
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    let (table, size, count) = (at(32, 8), at(54, 2), at(56, 2));
    (0..count)
        .map(|i| u32::try_from(at(table + i * size, 4)).expect("four bytes"))
        .collect()
}

#[test]
fn the_executables_have_no_dynamic_loader() {
    const PT_LOAD: u32 = 1;
    const PT_INTERP: u32 = 3;
    for name in ["cni-hostgw", "hostgw-agent", "subnet-env"] {
        let headers =
            program_headers(&fs::read(dist().join(name)).expect("the executable has been built"));
        assert!(
            headers.contains(&PT_LOAD) && !headers.contains(&PT_INTERP),
            "{name}"
        );
    }
}

#[test]
fn install_replaces_a_plugin_in_use_atomically() {
    let lab = Lab::new();
    let node = lab.node("worker1", &[]);
    let destination = format!("/tmp/cni-hostgw-install-{}", node.pid());
    let install = || {
        // `make build` has already run, so `-o build` skips it. The rest of the environment comes
        // from cargo.
        let output = Command::new("make")
            .args([
                "-o",
                "build",
                "install",
                "PREFIX=/usr",
                "CNI_BIN_DIR=/opt/cni/bin",
            ])
            .arg(format!("DESTDIR={destination}"))
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .current_dir(repository())
            .output()
            .expect("make is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let message = install();
    let plugin = format!("{destination}/opt/cni/bin/cni-hostgw");
    assert!(message.contains(&plugin), "{message}");
    let mut old = File::open(&plugin).expect("the plugin has been installed");
    let inode = old.metadata().expect("readable").ino();
    install();
    let new = fs::metadata(&plugin).expect("the plugin has been installed");
    assert_ne!(new.ino(), inode, "the name refers to a new file");
    let mut content = Vec::new();
    old.read_to_end(&mut content)
        .expect("the old file can still be read");
    assert_eq!(
        content,
        fs::read(dist().join("cni-hostgw")).expect("is built")
    );
    assert_eq!(new.mode() & 0o777, 0o755);
    let found = Command::new("find")
        .args([&destination, "-type", "f"])
        .output()
        .expect("find is installed");
    let mut found: Vec<_> = String::from_utf8_lossy(&found.stdout)
        .lines()
        .map(|line| line.trim_start_matches(&destination).to_owned())
        .collect();
    found.sort();
    fs::remove_dir_all(&destination).expect("make install created the directory");
    assert_eq!(
        found,
        [
            "/etc/iproute2/rt_protos.d/hostgw.conf",
            "/opt/cni/bin/cni-hostgw",
            "/usr/bin/subnet-env",
            "/usr/sbin/hostgw-agent",
        ]
    );
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn subnet_env_writes_and_shows_the_file() {
    let lab = Lab::new();
    let node = lab.node("worker1", &[]);
    lab.install(&dist().join("subnet-env"), "bin/subnet-env");
    let run = |args: &str| node.sh(&format!("umask 077; /mnt/bin/subnet-env {args}"));
    let text = "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";
    run("write --network 10.10.0.0/16 --subnet 10.10.1.0/24 --mtu 1500 --ip-masq --file /run/x/subnet.env").ok();
    let path = node.path("/run/x/subnet.env");
    assert_eq!(fs::read_to_string(&path).expect("written"), text);
    assert_eq!(fs::metadata(&path).expect("written").mode() & 0o777, 0o644);
    assert_eq!(run("show --file /run/x/subnet.env").ok(), text);
    run("write --network 10.10.0.0/16 --network fd00:10:10::/48 --subnet fd00:10:10:1::/64 --subnet 10.10.1.0/24").ok();
    assert_eq!(
        run("show").ok(),
        "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:10::/48\n\
         FLANNEL_IPV6_SUBNET=fd00:10:10:1::1/64\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
    );
    // A shell can source the file.
    assert_eq!(
        node.sh(". /run/flannel/subnet.env; echo $FLANNEL_SUBNET")
            .ok(),
        "10.10.1.1/24\n"
    );
    for (args, message) in [
        (
            "write --network 10.10.0.0/16 --subnet 10.11.1.0/24",
            "subnet 10.11.1.0/24 is not in any of the networks",
        ),
        (
            "write --network 10.10.0.0 --subnet 10.10.1.0/24",
            "not a network such as 10.10.0.0/16",
        ),
        (
            "write --network 10.10.0.1/16 --subnet 10.10.1.0/24",
            "has host bits set",
        ),
        (
            "write --network 10.10.0.0/16 --subnet 10.10.1.0/24 --subnet 10.10.2.0/24",
            "is the second of its family",
        ),
        (
            "write --network 255.255.0.0/16 --subnet 255.255.255.255/32",
            "is too small for a gateway and a pod",
        ),
        (
            "write --network 10.10.0.0/16 --subnet 10.10.1.0/24 --mtu 10",
            r#"FLANNEL_MTU is "10", which is not a number of bytes from 68 to 65535"#,
        ),
        (
            "show --file /run/none",
            "read /run/none: No such file or directory",
        ),
    ] {
        let output = run(args);
        assert!(
            !output.success && output.stderr.contains(message),
            "{args}: {}",
            output.stderr
        );
    }
    assert_eq!(fs::read_to_string(&path).expect("untouched"), text);
}
