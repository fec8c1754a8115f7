use std::fs;
use std::time::SystemTime;

use super::*;
use crate::RangeSpec;

const NONE: [IpAddr; 0] = [];

fn boot(id: &str) -> Boot {
    Boot { id: id.to_owned() }
}

fn sets(subnets: &[&str]) -> RangeSets {
    let spec = |subnet: &&str| {
        vec![RangeSpec::from(
            subnet.parse::<ipnetwork::IpNetwork>().expect("a network"),
        )]
    };
    RangeSets::new(&subnets.iter().map(spec).collect::<Vec<_>>()).expect("valid")
}

fn pod(id: &str) -> Attachment {
    Attachment::new(id, "eth0")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn reserve(store: &Store, id: &str) -> Result<Vec<IpAddr>, StoreError> {
    let reservation = store.reserve(&pod(id), &sets(&["10.1.1.0/29"]), &[])?;
    let addresses = reservation
        .addresses()
        .iter()
        .map(|(address, _)| *address)
        .collect();
    reservation.keep();
    Ok(addresses)
}

fn released(store: &Store, id: &str) -> Vec<IpAddr> {
    store.release(&pod(id)).expect("usable").addresses
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn store(&self, boot_id: &str) -> Store {
        Store::new(self.0.path(), "cbr0", boot(boot_id))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("cbr0").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path("")).expect("makes the directory");
        fs::write(self.path(name), content).expect("writes the file");
    }
}

#[test]
fn the_files_have_the_format_of_host_local() {
    let dir = Dir::new();
    assert_eq!(
        reserve(&dir.store("b"), "a").expect("free"),
        [ip("10.1.1.2")]
    );
    assert_eq!(
        fs::read_to_string(dir.path("10.1.1.2")).expect("the file exists"),
        "a\r\neth0"
    );
    assert_eq!(
        fs::read_to_string(dir.path("last_reserved_ip.0")).expect("the file exists"),
        "10.1.1.2"
    );
}

#[test]
fn addresses_are_allocated_round_robin_and_a_released_one_comes_last() {
    let dir = Dir::new();
    let store = dir.store("b");
    assert_eq!(reserve(&store, "a").expect("free"), [ip("10.1.1.2")]);
    assert_eq!(released(&store, "a"), [ip("10.1.1.2")]);
    let given: Vec<_> = ["b", "c", "d", "e", "f"]
        .map(|id| reserve(&store, id).expect("free")[0])
        .into();
    let wanted = ["10.1.1.3", "10.1.1.4", "10.1.1.5", "10.1.1.6", "10.1.1.2"].map(ip);
    assert_eq!(given, wanted);
    let error = reserve(&store, "g").expect_err("full").to_string();
    let wanted = "no IP addresses available in range set 10.1.1.1-10.1.1.6: all 5 are reserved in ";
    assert!(error.starts_with(wanted), "{error}");
}

#[test]
fn dropping_a_reservation_releases_its_addresses() {
    let dir = Dir::new();
    let store = dir.store("b");
    drop(
        store
            .reserve(&pod("a"), &sets(&["10.1.1.0/29", "fd00::/64"]), &[])
            .expect("free"),
    );
    assert_eq!(store.held(&pod("a")).expect("readable"), NONE);
    assert!(!dir.path("10.1.1.2").exists() && !dir.path("fd00::2").exists());
    assert!(!dir.path(".attachments/a:eth0").exists());
}

#[test]
fn a_retried_add_reuses_its_reservation_and_does_not_release_it() {
    let dir = Dir::new();
    let store = dir.store("b");
    let first = reserve(&store, "a").expect("free");
    let entry = dir.path(".attachments/a:eth0");
    let file = fs::File::options()
        .write(true)
        .open(&entry)
        .expect("the file exists");
    file.set_modified(SystemTime::now() - Duration::from_secs(300))
        .expect("sets the time");
    let again = store
        .reserve(&pod("a"), &sets(&["10.1.1.0/29"]), &[])
        .expect("held");
    drop(again);
    let since = fs::metadata(&entry)
        .expect("the file exists")
        .modified()
        .expect("has a time");
    assert!(
        since.elapsed().expect("past") < Duration::from_secs(60),
        "an ADD is in flight"
    );
    assert_eq!(store.held(&pod("a")).expect("readable"), first);
}

#[test]
fn each_set_gives_one_address_and_requests_are_matched_to_sets() {
    let dir = Dir::new();
    let store = dir.store("b");
    let sets = sets(&["10.1.1.0/24", "fd00::/64"]);
    let requested = [ip("fd00::9"), ip("10.1.1.9")];
    let reservation = store.reserve(&pod("a"), &sets, &requested).expect("free");
    let got: Vec<_> = reservation
        .addresses()
        .iter()
        .map(|(address, _)| *address)
        .collect();
    assert_eq!(got, [ip("10.1.1.9"), ip("fd00::9")]);
    reservation.keep();
    let refused = |requested: &[IpAddr]| {
        store
            .reserve(&pod("b"), &sets, requested)
            .expect_err("must be refused")
            .to_string()
    };
    assert!(refused(&[ip("10.1.1.9")]).contains("10.1.1.9 is not available"));
    assert_eq!(
        refused(&[ip("10.1.1.1")]),
        "requested IP address 10.1.1.1 is the subnet's gateway"
    );
    assert_eq!(
        refused(&[ip("10.1.1.7"), ip("10.1.1.8"), ip("10.9.9.9")]),
        "failed to allocate all requested IPs: 10.1.1.8 10.9.9.9"
    );
    assert_eq!(store.held(&pod("b")).expect("readable"), NONE);
}

#[test]
fn reservations_of_host_local_are_respected_and_released() {
    let dir = Dir::new();
    dir.write("10.1.1.2", "go\r\neth0");
    dir.write("10.1.1.3", "ancient");
    let store = dir.store("b");
    assert_eq!(reserve(&store, "a").expect("free"), [ip("10.1.1.4")]);
    assert_eq!(store.held(&pod("go")).expect("readable"), [ip("10.1.1.2")]);
    assert_eq!(released(&store, "go"), [ip("10.1.1.2")]);
    assert_eq!(released(&store, "ancient"), [ip("10.1.1.3")]);
    assert_eq!(released(&store, "ancient"), NONE);
}

#[test]
fn an_address_that_host_local_reassigned_is_not_held_despite_the_index() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    dir.write("10.1.1.2", "other\r\neth0");
    assert_eq!(released(&store, "a"), NONE);
    assert!(dir.path("10.1.1.2").exists());
    assert!(!dir.path(".attachments/a:eth0").exists());
}

#[test]
fn addresses_with_empty_or_incomplete_files_are_free() {
    for torn in [
        &b""[..],
        b"\n",
        b"\0\0\0\0\0\0\0\0",
        b"pod1\r\n",
        b"pod1\r",
        b"\r\neth0",
        b"pod\xff\r\neth0",
    ] {
        let dir = Dir::new();
        dir.write("10.1.1.2", "");
        fs::write(dir.path("10.1.1.2"), torn).expect("writes the file");
        let got = reserve(&dir.store("b"), "a").expect("free");
        assert_eq!(got, [ip("10.1.1.2")], "{torn:?}");
    }
}

#[test]
fn invalid_reservations_and_files_without_a_holder_are_collected() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    reserve(&store, "b").expect("free");
    dir.write("10.1.1.4", "go\r\neth0");
    dir.write("10.1.1.5", "");
    dir.write("10.1.1.6", "ancient");
    store.add_feature("nftables").expect("writable");
    let valid = pod("b");
    let collected = store
        .collect(|holder| holder.is(&valid), |_| true)
        .expect("readable");
    let mut freed: Vec<_> = collected.freed.iter().map(|freed| freed.address).collect();
    freed.sort();
    let wanted = ["10.1.1.2", "10.1.1.4", "10.1.1.5", "10.1.1.6"].map(ip);
    assert_eq!(freed, wanted);
    assert_eq!(collected.held, [ip("10.1.1.3")]);
    assert!(collected.errors.is_empty() && collected.empty_network.is_none());
    assert!(!dir.path(".attachments/a:eth0").exists());
    let collected = store.collect(|_| false, |_| true).expect("readable");
    let empty_network = collected
        .empty_network
        .expect("no holder is left, and it has features");
    assert_eq!(empty_network.features(), ["host-local", "nftables"]);
}

#[test]
fn the_last_release_returns_the_features_until_they_are_cleared() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    reserve(&store, "b").expect("free");
    store.add_feature("nftables").expect("writable");
    store.add_feature("nftables").expect("writable");
    let released = store.release(&pod("a")).expect("held");
    assert!(released.empty_network.is_none(), "b still holds an address");
    drop(released);
    let released = store.release(&pod("b")).expect("held");
    let empty_network = released.empty_network.expect("no holder is left");
    assert_eq!(empty_network.features(), ["nftables"]);
    empty_network.clear_features().expect("writable");
    let released = store.release(&pod("b")).expect("not held");
    assert!(released.empty_network.is_none(), "no feature is left");
    assert!(!released.is_foreign);
}

#[test]
fn a_store_that_cannot_be_written_is_reported() {
    let dir = Dir::new();
    assert!(
        dir.store("b").check_writable().is_ok(),
        "the store can be created"
    );
    fs::write(dir.0.path().join("cbr0"), "").expect("writes the file");
    let error = dir
        .store("b")
        .check_writable()
        .expect_err("the path is a file");
    assert!(error.to_string().starts_with("access the store in "));
}

#[test]
fn a_reboot_empties_the_store_except_for_newer_host_local_reservations() {
    let dir = Dir::new();
    reserve(&dir.store("one"), "a").expect("free");
    dir.write("10.1.1.3", "old\r\neth0");
    let old = Boot::started().expect("readable") - Duration::from_secs(60);
    let file = fs::File::options()
        .write(true)
        .open(dir.path("10.1.1.3"))
        .expect("the file exists");
    file.set_modified(old).expect("sets the time");
    dir.write("10.1.1.4", "new\r\neth0");
    let store = dir.store("two");
    assert_eq!(store.held(&pod("a")).expect("readable"), NONE);
    assert_eq!(store.held(&pod("old")).expect("readable"), NONE);
    assert_eq!(store.held(&pod("new")).expect("readable"), [ip("10.1.1.4")]);
}

#[test]
fn only_old_reservations_of_gone_attachments_are_reclaimed() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    reserve(&store, "b").expect("free");
    let reclaim = |age| {
        store
            .reclaim(age, |who| who == &pod("a"))
            .expect("readable")
    };
    assert_eq!(reclaim(Duration::from_secs(60)), 0);
    assert_eq!(reclaim(Duration::ZERO), 1);
    assert_eq!(store.held(&pod("b")).expect("readable"), [ip("10.1.1.3")]);
}

#[test]
fn releasing_from_a_missing_store_creates_nothing() {
    let dir = Dir::new();
    assert_eq!(released(&dir.store("b"), "a"), NONE);
    assert!(!dir.path("").exists());
}

#[test]
fn a_waiter_gets_the_lock_when_it_is_released() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    let lock = fs::File::open(dir.path("lock")).expect("the file exists");
    lock.lock().expect("nobody holds it");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reserve(&store, "b"));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(lock);
        let got = waiting.join().expect("no panic").expect("free");
        assert_eq!(got, [ip("10.1.1.3")]);
    });
}

#[test]
fn an_index_entry_counts_only_for_the_reservation_of_its_own_add() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    // host-local releases the address and reserves it again for the same attachment.
    fs::remove_file(dir.path("10.1.1.2")).expect("the file exists");
    dir.write("10.1.1.2", "a\r\neth0");
    let later = SystemTime::now() + Duration::from_secs(5);
    let file = fs::File::options().write(true).open(dir.path("10.1.1.2"));
    file.expect("the file exists")
        .set_modified(later)
        .expect("sets the time");
    let entry = fs::File::options()
        .write(true)
        .open(dir.path(".attachments/a:eth0"));
    let old = SystemTime::now() - Duration::from_secs(120);
    entry
        .expect("the file exists")
        .set_modified(old)
        .expect("sets the time");
    let reclaimed = store
        .reclaim(Duration::from_secs(60), |_| true)
        .expect("readable");
    assert_eq!(reclaimed, 0);
    assert!(dir.path("10.1.1.2").exists());
    assert_eq!(released(&store, "a"), [ip("10.1.1.2")], "DEL releases it");
}

#[test]
fn reservations_of_host_local_are_reused_and_released_with_the_others() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "first").expect("free");
    dir.write("10.1.1.5", "a\r\neth0");
    assert_eq!(reserve(&store, "a").expect("held"), [ip("10.1.1.5")]);
    dir.write("10.1.1.6", "a\r\neth0");
    assert_eq!(released(&store, "a"), [ip("10.1.1.5"), ip("10.1.1.6")]);
}

#[test]
fn a_successful_retried_add_releases_addresses_that_no_longer_fit() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    let other = sets(&["10.1.2.0/29"]);
    drop(store.reserve(&pod("a"), &other, &[]).expect("free"));
    assert_eq!(store.held(&pod("a")).expect("readable"), [ip("10.1.1.2")]);
    store.reserve(&pod("a"), &other, &[]).expect("free").keep();
    assert_eq!(store.held(&pod("a")).expect("readable"), [ip("10.1.2.3")]);
    assert_eq!(released(&store, "a"), [ip("10.1.2.3")]);
}

#[test]
fn del_creates_and_writes_nothing() {
    let dir = Dir::new();
    let store = dir.store("b");
    assert_eq!(released(&store, "a"), NONE);
    assert!(!dir.path("").exists());
    fs::create_dir_all(dir.path("")).expect("makes it");
    assert_eq!(released(&store, "a"), NONE);
    let left = fs::read_dir(dir.path("")).expect("readable").count();
    assert_eq!(left, 0);
    let long = Store::new(dir.0.path(), &"n".repeat(300), boot("b"));
    assert_eq!(released(&long, "a"), NONE, "no file could have that name");
}

#[test]
fn a_container_id_may_be_longer_than_a_file_name() {
    let dir = Dir::new();
    let store = dir.store("b");
    let id = "c".repeat(300);
    assert_eq!(reserve(&store, &id).expect("free"), [ip("10.1.1.2")]);
    let reclaimed = store.reclaim(Duration::ZERO, |who| who.container_id() == id);
    assert_eq!(reclaimed.expect("readable"), 1);
    assert_eq!(reserve(&store, &id).expect("free"), [ip("10.1.1.3")]);
    assert_eq!(released(&store, &id), [ip("10.1.1.3")]);
}

#[test]
fn a_directory_with_the_name_of_an_address_is_skipped() {
    let dir = Dir::new();
    let store = dir.store("b");
    fs::create_dir_all(dir.path("10.1.1.2")).expect("makes it");
    assert_eq!(reserve(&store, "a").expect("free"), [ip("10.1.1.3")]);
    assert_eq!(released(&store, "a"), [ip("10.1.1.3")]);
}

#[test]
fn an_overlapping_subnet_of_another_network_is_detected() {
    let dir = Dir::new();
    let (one, other) = (dir.store("b"), Store::new(dir.0.path(), "other", boot("b")));
    let dirs = [dir.0.path().to_owned()];
    let overlap = |subnet: &str, is_gone: bool| {
        let age = Duration::ZERO;
        let found = other.overlap(&dirs, &sets(&[subnet]), age, |_, _| is_gone);
        found.expect("readable").map(|overlap| overlap.address)
    };
    assert_eq!(overlap("10.1.1.0/29", false), None);
    reserve(&one, "a").expect("free");
    assert_eq!(overlap("10.1.1.0/29", false), Some(ip("10.1.1.2")));
    assert_eq!(overlap("10.1.0.0/16", false), Some(ip("10.1.1.2")));
    assert_eq!(overlap("10.1.2.0/24", false), None);
    assert_eq!(overlap("10.1.1.0/29", true), None, "the attachment is gone");
    // The other network has not allocated any address in this part of its subnet yet.
    assert_eq!(overlap("10.1.1.4/30", false), None);
    one.set_settings("subnets 10.1.1.0/29").expect("writes");
    assert_eq!(overlap("10.1.1.4/30", false), Some(ip("10.1.1.2")));
    released(&one, "a");
    assert_eq!(overlap("10.1.1.0/29", false), None);
}

#[test]
fn a_reused_reservation_of_host_local_stays_one_of_host_local() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "first").expect("free");
    dir.write("10.1.1.5", "a\r\neth0");
    drop(
        store
            .reserve(&pod("a"), &sets(&["10.1.1.0/29"]), &[])
            .expect("held"),
    );
    let reclaimed = store.reclaim(Duration::ZERO, |who| who.container_id() == "a");
    assert_eq!(reclaimed.expect("readable"), 0);
    assert!(dir.path("10.1.1.5").exists());
    let collected = store.collect(|_| false, |_| false).expect("readable");
    assert_eq!(collected.held, [ip("10.1.1.5")], "its pod still uses it");
}

#[test]
fn an_index_entry_with_an_invalid_time_is_read() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    let times = ["18446744073709551615.0", "1.4294967295", "x", "1"];
    for time in times {
        dir.write(".attachments/a:eth0", &format!("10.1.1.2 {time}\n"));
        assert_eq!(store.held(&pod("a")).expect("readable"), [ip("10.1.1.2")]);
    }
}

#[test]
fn another_path_to_the_same_store_is_not_another_network() {
    let dir = Dir::new();
    let one = dir.store("b");
    reserve(&one, "a").expect("free");
    let link = dir.0.path().with_extension("link");
    std::os::unix::fs::symlink(dir.0.path(), &link).expect("makes it");
    let same = Store::new(&link, "cbr0", boot("b"));
    let dirs = [dir.0.path().to_owned(), link.clone()];
    let found = same.overlap(&dirs, &sets(&["10.1.1.0/29"]), Duration::ZERO, |_, _| false);
    fs::remove_file(link).expect("make install created the directory");
    assert_eq!(found.expect("readable"), None);
}
