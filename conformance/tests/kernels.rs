//! The tests of this crate on the kernels that users have: each kernel starts in a virtual machine, in
//! which the tests run as they do here.

use std::fs;
use std::path::Path;
use std::process::Command;

use conformance::repository;
use serde_json::Value;

/// The tests of a file, by their names.
type File = (&'static str, &'static [&'static str]);

/// The tests that run in the virtual machine.
const TESTS: [File; 10] = [
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
            "a_fast_path_that_is_not_available_changes_nothing",
        ],
    ),
    (
        "fast_path",
        &[
            "established_flows_of_both_families_take_the_fast_path",
            "pods_that_come_and_go_leave_other_flows_on_the_fast_path",
            "an_agent_that_stops_and_starts_loses_no_packet",
            "the_table_and_its_devices_are_restored",
            "a_node_may_have_hundreds_of_pods",
            "a_device_that_the_kernel_refuses_takes_only_itself",
            "a_node_with_ipvs_services_has_no_fast_path",
            "a_bridge_that_filters_vlans_has_a_fast_path",
            "flows_between_pods_of_one_node_stay_on_the_bridge",
            "limited_pods_keep_their_rates",
        ],
    ),
    (
        "fast_path_flows",
        &[
            "rules_that_come_later_than_a_flow_end_it",
            "a_later_filter_also_ends_flows",
            "rules_that_came_while_no_agent_ran_end_flows_when_it_starts",
            "a_flush_sends_flows_by_all_rules_and_loses_nothing",
            "translated_flows_take_the_fast_path",
            "udp_flows_whose_entry_is_deleted_follow_the_new_rule",
            "udp_flows_of_host_ports_follow_the_pod",
            "no_flow_of_a_deleted_pod_is_on_the_fast_path_to_the_next_with_its_address",
            "flows_follow_a_peer_that_gets_another_address",
            "flows_survive_an_uplink_that_goes_down_and_up",
            "a_smaller_mtu_on_one_side_is_discovered",
            "flows_that_are_idle_for_long_continue",
        ],
    ),
    ("neighbours", &["a_node_talks_to_3000_neighbours_at_once"]),
    (
        "routes",
        &["routes_of_an_earlier_run_are_removed_at_start_and_foreign_routes_stay"],
    ),
];

/// The tests that run in a virtual machine whose clock counts instructions.
const COUNTED: [File; 2] = [
    (
        "path_length",
        &["requests_on_the_fast_path_are_nearly_as_fast_as_between_nodes"],
    ),
    (
        "fast_path_cost",
        &[
            "a_pod_is_on_the_fast_path_50_ms_after_its_add",
            "an_add_is_not_slower_with_the_fast_path",
        ],
    ),
];

/// The ways to emulate instructions: on two processors as fast as possible, or on one, each of them as 4 ns.
const FAST: [&str; 4] = ["-accel", "tcg,thread=multi", "-smp", "2"];
const COUNTING: [&str; 6] = [
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=2,sleep=off",
    "-smp",
    "1",
];

/// Builds the tests, and puts their executables where the virtual machine looks for them.
fn prepare(folder: &Path, files: &[File]) {
    let names = files.iter().flat_map(|(file, _)| ["--test", file]);
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
        .args(names)
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
    for (file, names) in files {
        let arguments = names.join(" ");
        fs::write(tests.join(file).with_extension("arguments"), arguments).expect("writable");
    }
}

/// Runs the tests on a kernel, and returns what the virtual machine printed.
fn run(folder: &Path, kernel: &str, machine: &[&str]) -> String {
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
        .args(["-s", "KILL", "2400", "qemu-system-x86_64"])
        .args(["-M", "q35", "-cpu", "max,-la57"])
        .args(machine)
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
    passes_on(kernel, release, &TESTS, &FAST);
    passes_on(kernel, release, &COUNTED, &COUNTING);
}

fn passes_on(kernel: &str, release: &str, files: &[File], machine: &[&str]) {
    let folder = repository().join("target/kernels");
    prepare(&folder, files);
    let text = run(&folder, kernel, machine);
    eprintln!("{text}");
    assert!(
        text.contains(&format!("kernel: {release}")),
        "another kernel"
    );
    let count: usize = files.iter().map(|(_, names)| names.len()).sum();
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
