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
    let collected = store
        .collect(|holder| holder.is(&valid), |_| true)
        .expect("readable");
    let mut freed: Vec<_> = collected.freed.iter().map(|freed| freed.address).collect();
    freed.sort();
    let wanted = ["10.1.1.2", "10.1.1.4", "10.1.1.5", "10.1.1.6"].map(ip);
    assert_eq!(freed, wanted);
    assert_eq!(collected.held, [ip("10.1.1.3")]);
    assert!(collected.errors.is_empty() && collected.vacant.is_none());
    assert!(!dir.path(".attachments/a:eth0").exists());
    let collected = store.collect(|_| false, |_| true).expect("readable");
    let vacant = collected.vacant.expect("nobody is left, and it is marked");
    assert_eq!(vacant.marks(), ["host-local", "nftables"]);
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

#[test]
fn an_entry_is_trusted_for_what_its_own_add_reserved() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "a").expect("free");
    // host-local gives it back and reserves it again for the same attachment.
    fs::remove_file(dir.path("10.1.1.2")).expect("is there");
    dir.write("10.1.1.2", "a\r\neth0");
    let later = SystemTime::now() + Duration::from_secs(5);
    let file = fs::File::options().write(true).open(dir.path("10.1.1.2"));
    file.expect("is there")
        .set_modified(later)
        .expect("sets the time");
    let entry = fs::File::options()
        .write(true)
        .open(dir.path(".attachments/a:eth0"));
    let old = SystemTime::now() - Duration::from_secs(120);
    entry
        .expect("is there")
        .set_modified(old)
        .expect("sets the time");
    let reclaimed = store
        .reclaim(Duration::from_secs(60), |_| true)
        .expect("readable");
    assert_eq!(reclaimed, 0);
    assert!(dir.path("10.1.1.2").exists());
    assert_eq!(released(&store, "a"), [ip("10.1.1.2")], "a DEL finds it");
}

#[test]
fn what_host_local_reserved_is_taken_up_again_and_given_back_with_the_rest() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "first").expect("free");
    dir.write("10.1.1.5", "a\r\neth0");
    assert_eq!(reserve(&store, "a").expect("held"), [ip("10.1.1.5")]);
    dir.write("10.1.1.6", "a\r\neth0");
    assert_eq!(released(&store, "a"), [ip("10.1.1.5"), ip("10.1.1.6")]);
}

#[test]
fn a_retried_add_gives_back_what_does_not_fit_any_more_once_it_succeeds() {
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
fn a_container_id_may_be_as_long_as_it_likes() {
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
fn a_directory_in_the_place_of_an_address_is_passed_by() {
    let dir = Dir::new();
    let store = dir.store("b");
    fs::create_dir_all(dir.path("10.1.1.2")).expect("makes it");
    assert_eq!(reserve(&store, "a").expect("free"), [ip("10.1.1.3")]);
    assert_eq!(released(&store, "a"), [ip("10.1.1.3")]);
}

#[test]
fn a_subnet_belongs_to_one_network() {
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
    assert_eq!(
        overlap("10.1.1.0/29", true),
        None,
        "its attachment is no more"
    );
    // A part of the other's subnet of which it has not given out anything yet.
    assert_eq!(overlap("10.1.1.4/30", false), None);
    one.set_settings("subnets 10.1.1.0/29").expect("writes");
    assert_eq!(overlap("10.1.1.4/30", false), Some(ip("10.1.1.2")));
    released(&one, "a");
    assert_eq!(overlap("10.1.1.0/29", false), None);
}

#[test]
fn a_reservation_that_was_only_taken_up_stays_somebody_elses() {
    let dir = Dir::new();
    let store = dir.store("b");
    reserve(&store, "first").expect("free");
    dir.write("10.1.1.5", "a\r\neth0");
    drop(
        store
            .reserve(&pod("a"), &sets(&["10.1.1.0/29"]), &[])
            .expect("held"),
    );
    store
        .reclaim(Duration::ZERO, |who| who.container_id() == "a")
        .expect("readable");
    assert!(dir.path("10.1.1.5").exists());
    let collected = store.collect(|_| false, |_| false).expect("readable");
    assert_eq!(collected.held, [ip("10.1.1.5")], "its pod has it still");
}

#[test]
fn an_index_entry_of_no_time_at_all_is_read() {
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
fn another_path_to_a_store_is_no_other_network() {
    let dir = Dir::new();
    let one = dir.store("b");
    reserve(&one, "a").expect("free");
    let link = dir.0.path().with_extension("link");
    std::os::unix::fs::symlink(dir.0.path(), &link).expect("makes it");
    let same = Store::new(&link, "cbr0", boot("b"));
    let dirs = [dir.0.path().to_owned(), link.clone()];
    let found = same.overlap(&dirs, &sets(&["10.1.1.0/29"]), Duration::ZERO, |_, _| false);
    fs::remove_file(link).expect("was made here");
    assert_eq!(found.expect("readable"), None);
}
