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
fn the_files_are_host_locals() {
    let dir = Dir::new();
    assert_eq!(
        reserve(&dir.store("b"), "a").expect("free"),
        [ip("10.1.1.2")]
    );
    assert_eq!(
        fs::read_to_string(dir.path("10.1.1.2")).expect("is there"),
        "a\r\neth0"
    );
    assert_eq!(
        fs::read_to_string(dir.path("last_reserved_ip.0")).expect("is there"),
        "10.1.1.2"
    );
}

#[test]
fn addresses_go_round_and_the_freed_one_comes_last() {
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
    let wanted = "no IP addresses available in range set 10.1.1.1-10.1.1.6: all 5 are held, in ";
    assert!(error.starts_with(wanted), "{error}");
}

#[test]
fn a_dropped_reservation_leaves_nothing() {
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
fn a_retried_add_takes_its_reservation_up_again_and_does_not_give_it_back() {
    let dir = Dir::new();
    let store = dir.store("b");
    let first = reserve(&store, "a").expect("free");
    let entry = dir.path(".attachments/a:eth0");
    let file = fs::File::options()
        .write(true)
        .open(&entry)
        .expect("is there");
    file.set_modified(SystemTime::now() - Duration::from_secs(300))
        .expect("sets the time");
    let again = store
        .reserve(&pod("a"), &sets(&["10.1.1.0/29"]), &[])
        .expect("held");
    drop(again);
    let since = fs::metadata(&entry)
        .expect("is there")
        .modified()
        .expect("has a time");
    assert!(
        since.elapsed().expect("past") < Duration::from_secs(60),
        "an ADD is in flight"
    );
    assert_eq!(store.held(&pod("a")).expect("readable"), first);
}

#[test]
fn one_address_comes_from_each_set_and_requests_find_theirs() {
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
fn what_host_local_reserved_is_respected_and_released() {
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
fn what_host_local_released_is_not_held_whatever_the_index_says() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    dir.write("10.1.1.2", "other\r\neth0");
    assert_eq!(released(&store, "a"), NONE);
    assert!(dir.path("10.1.1.2").exists());
    assert!(!dir.path(".attachments/a:eth0").exists());
}

#[test]
fn empty_and_torn_files_are_free() {
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
fn what_is_not_valid_is_collected_and_what_names_nobody() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    reserve(&store, "b").expect("free");
    dir.write("10.1.1.4", "go\r\neth0");
    dir.write("10.1.1.5", "");
    dir.write("10.1.1.6", "ancient");
    store.mark("nftables").expect("writable");
    let valid = pod("b");
    let collected = store.collect(|holder| holder.is(&valid)).expect("readable");
    let mut freed: Vec<_> = collected.freed.iter().map(|(ip, _)| *ip).collect();
    freed.sort();
    let wanted = ["10.1.1.2", "10.1.1.4", "10.1.1.5", "10.1.1.6"].map(ip);
    assert_eq!(freed, wanted);
    assert_eq!(collected.held, [ip("10.1.1.3")]);
    assert!(collected.errors.is_empty() && collected.vacant.is_none());
    assert!(!dir.path(".attachments/a:eth0").exists());
    let collected = store.collect(|_| false).expect("readable");
    let vacant = collected.vacant.expect("nobody is left, and it is marked");
    assert_eq!(vacant.marks(), ["nftables"]);
}

#[test]
fn the_last_one_out_hears_of_the_marks_until_they_are_taken_away() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    reserve(&store, "b").expect("free");
    store.mark("nftables").expect("writable");
    store.mark("nftables").expect("writable");
    let released = store.release(&pod("a")).expect("held");
    assert!(released.vacant.is_none(), "b is there still");
    drop(released);
    let released = store.release(&pod("b")).expect("held");
    let vacant = released.vacant.expect("nobody is left");
    assert_eq!(vacant.marks(), ["nftables"]);
    vacant.unmark().expect("writable");
    let released = store.release(&pod("b")).expect("not held");
    assert!(released.vacant.is_none(), "and nothing to do");
    assert!(!released.is_foreign);
}

#[test]
fn a_store_that_cannot_be_written_is_not_usable() {
    let dir = Dir::new();
    assert!(dir.store("b").is_usable().is_ok(), "it can be made");
    fs::write(dir.0.path().join("cbr0"), "").expect("writes the file");
    let error = dir.store("b").is_usable().expect_err("it is a file");
    assert!(error.to_string().starts_with("look at the store in "));
}

#[test]
fn the_holder_of_the_lock_is_named() {
    let dir = Dir::new();
    let file = fs::File::create(dir.0.path().join("lock")).expect("makes it");
    let metadata = file.metadata().expect("is there");
    assert!(lock::holder(&metadata).starts_with("a process that cannot be seen"));
    file.lock().expect("nobody holds it");
    let holder = lock::holder(&metadata);
    let pid = format!("process {} (", std::process::id());
    assert!(holder.starts_with(&pid), "{holder}");
}

#[test]
fn another_boot_empties_the_store_but_not_what_host_local_made_since() {
    let dir = Dir::new();
    reserve(&dir.store("one"), "a").expect("free");
    dir.write("10.1.1.3", "old\r\neth0");
    let old = Boot::started().expect("readable") - Duration::from_secs(60);
    let file = fs::File::options()
        .write(true)
        .open(dir.path("10.1.1.3"))
        .expect("is there");
    file.set_modified(old).expect("sets the time");
    dir.write("10.1.1.4", "new\r\neth0");
    let store = dir.store("two");
    assert_eq!(store.held(&pod("a")).expect("readable"), NONE);
    assert_eq!(store.held(&pod("old")).expect("readable"), NONE);
    assert_eq!(store.held(&pod("new")).expect("readable"), [ip("10.1.1.4")]);
}

#[test]
fn only_old_reservations_without_an_owner_are_reclaimed() {
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
fn releasing_from_a_store_that_was_never_made_makes_nothing() {
    let dir = Dir::new();
    assert_eq!(released(&dir.store("b"), "a"), NONE);
    assert!(!dir.path("").exists());
}

#[test]
fn whoever_waits_for_the_lock_gets_it_when_it_is_let_go() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    let lock = fs::File::open(dir.path("lock")).expect("is there");
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
