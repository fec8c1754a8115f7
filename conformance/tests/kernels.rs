//! The tests of this crate on the kernels that users have: each kernel starts in a virtual machine, in
//! which the tests run as they do here.

use std::fs;
use std::path::Path;
use std::process::Command;

use conformance::repository;
use serde_json::Value;

/// The tests that run in the virtual machine: each file, and the names of tests in it.
const TESTS: [(&str, &[&str]); 8] = [
    (
        "picture",
        &[
            "the_reference_cluster_works_in_ipv4",
            "the_reference_cluster_works_in_dual_stack",
        ],
    ),
    (
        "protocol",
        &[
            "check_fails_after_each_kind_of_damage",
            "flannel_and_bridge_forms_have_the_same_effect",
        ],
    ),
    (
        "gc",
        &["gc_removes_everything_that_belongs_to_no_valid_attachment"],
    ),
    (
        "bridge",
        &[
            "the_bridges_hardware_address_does_not_change_with_its_ports",
            "a_range_set_with_two_subnets_puts_both_gateways_on_the_bridge",
        ],
    ),
    (
        "host_ports",
        &[
            "a_port_is_reached_from_everywhere",
            "udp_flows_of_before_are_forgotten_on_add_and_on_del",
        ],
    ),
    (
        "firewall",
        &[
            "pods_are_masqueraded_outside_the_cluster_only",
            "the_nftables_table_is_restored_after_any_external_change",
            "pods_can_communicate_if_docker_sets_forward_to_drop",
        ],
    ),
    ("neighbours", &["a_node_talks_to_3000_neighbours_at_once"]),
    (
        "routes",
        &["routes_of_an_earlier_run_are_removed_at_start_and_foreign_routes_stay"],
    ),
];

/// Builds the tests, and puts their executables where the virtual machine looks for them.
fn prepare(folder: &Path) {
    let files = TESTS.iter().flat_map(|(file, _)| ["--test", file]);
    let built = Command::new(env!("CARGO"))
        .args([
            "test",
            "--locked",
            "--no-run",
            "--message-format=json",
            "-p",
            "conformance",
            "--features",
            "kernels",
        ])
        .args(files)
        .output()
        .expect("cargo is installed");
    assert!(built.status.success(), "{built:?}");
    let tests = folder.join("tests");
    drop(fs::remove_dir_all(&tests));
    fs::create_dir_all(&tests).expect("the folder is writable");
    let text = String::from_utf8_lossy(&built.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for message in messages.filter(|message| message["target"]["kind"][0] == "test") {
        let name = message["target"]["name"]
            .as_str()
            .expect("targets have names");
        let executable = message["executable"]
            .as_str()
            .expect("tests have executables");
        fs::copy(executable, tests.join(name)).expect("the executable can be copied");
    }
    for (file, names) in TESTS {
        let arguments = names.join(" ");
        fs::write(tests.join(file).with_extension("arguments"), arguments).expect("writable");
    }
}

/// Runs the tests on a kernel, and returns what the virtual machine printed.
fn run(folder: &Path, kernel: &str) -> String {
    let place = |file: &str| folder.join(kernel).join(file).display().to_string();
    let vmlinuz = place("vmlinuz");
    assert!(
        Path::new(&vmlinuz).exists(),
        "{vmlinuz} does not exist: run `make kernels`"
    );
    let append = format!(
        "console=ttyS0 panic=-1 loglevel=1 edd=off mitigations=off folder={} kernel={kernel}",
        folder.display()
    );
    let output = Command::new("timeout")
        .args(["-s", "KILL", "1500", "qemu-system-x86_64"])
        .args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,-la57",
            "-smp",
            "2",
        ])
        .args([
            "-m",
            "2500",
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-serial",
            "stdio",
        ])
        .args([
            "-kernel",
            &vmlinuz,
            "-initrd",
            &place("initramfs.gz"),
            "-append",
            &append,
        ])
        .args([
            "-fsdev",
            "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=files,mount_tag=files"])
        .output();
    let output = output.expect("coreutils are installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs all tests on the kernel in this folder, whose release begins with `release`.
fn passes(kernel: &str, release: &str) {
    let folder = repository().join("target/kernels");
    prepare(&folder);
    let text = run(&folder, kernel);
    eprintln!("{text}");
    assert!(
        text.contains(&format!("kernel: {release}")),
        "another kernel"
    );
    let count: usize = TESTS.iter().map(|(_, names)| names.len()).sum();
    let results = text.split("test result: ok. ").skip(1);
    let passed = results.filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    let passed: usize = passed.sum();
    assert!(
        text.contains("guest: 0") && passed == count,
        "{passed} of {count} passed"
    );
}

#[test]
fn debians_kernel() {
    passes("linux-image", "6.1.");
}

#[test]
fn debians_newest_kernel() {
    passes("linux-image-6.12", "6.12.");
}
