//! The cost of the fast path for an ADD, and the time until a pod is on it. These tests run in a virtual machine of
//! tests/kernels.rs. Its clock counts instructions, 250 million a second, so that figures repeat.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use conformance::fast_path::{args, wait_for_status};
use conformance::reference_picture::{CNI_CONF, Family, agents_with, cluster, nodes};
use conformance::{Agent, Attachment, Chain, Lab, Node, wait_for};

const SECONDS_OF_DAY: f64 = 86_400.0;

/// The time of the last line in which the agent says that it added a device, in seconds of the day.
fn added(log: &str) -> Option<f64> {
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains("to the fast path"))?;
    let (_, time) = line.split_once('T')?;
    let (time, _) = time.split_once('Z')?;
    let mut numbers = time.split(':').map(str::parse::<f64>);
    let mut next = || numbers.next()?.ok();
    Some(next()? * 3600.0 + next()? * 60.0 + next()?)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Attaches and detaches a pod `count` times. Returns the seconds of each ADD, and what `after` returns after it.
fn add<T>(
    lab: &Lab,
    node: &Node<'_>,
    count: usize,
    after: impl Fn(SystemTime) -> T,
) -> Vec<(f64, T)> {
    let chain = Chain::new(lab, CNI_CONF);
    let one = |number| {
        let pod = node.pod(&format!("pod{number}"));
        let attachment = Attachment::of(&pod);
        let started = Instant::now();
        let reply = chain.add(&pod, &attachment);
        let (elapsed, now) = (started.elapsed().as_secs_f64(), SystemTime::now());
        let reply = reply.ok();
        let result = after(now);
        chain.del(&pod, &attachment, Some(&reply)).ok();
        pod.delete();
        (elapsed, result)
    };
    (0..count).map(one).collect()
}

#[test]
fn a_pod_is_on_the_fast_path_50_ms_after_its_add() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let args = args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let agents = agents_with(&nodes[..1], &args, Agent::start);
    wait_for_status(&nodes[0], "on, 1 devices");
    let count = || agents[0].log().matches("to the fast path").count();
    let before = std::cell::Cell::new(count());
    let delays = add(&lab, &nodes[0], 9, |end_of_add| {
        wait_for("the agent adds the device", || count() > before.get());
        before.set(count());
        let since = end_of_add.duration_since(UNIX_EPOCH).expect("after 1970");
        let added = added(&agents[0].log()).expect("a line with its time");
        added - since.as_secs_f64() % SECONDS_OF_DAY
    });
    let delays: Vec<_> = delays.into_iter().map(|(_, delay)| delay).collect();
    eprintln!("seconds from ADD to the fast path: {delays:.3?}");
    assert!(delays.iter().all(|delay| *delay <= 0.050), "{delays:.3?}");
}

#[test]
fn an_add_is_not_slower_with_the_fast_path() {
    const ADDS: usize = 7;
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let file = format!("--cluster={}", Lab::path("cluster.json").display());
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (mode, times) in ["off", "on"].iter().zip(&mut times) {
            let fast_path = format!("--fast-path={mode}");
            let _agents = agents_with(&nodes[..1], &[&file, &fast_path], Agent::start);
            wait_for_status(&nodes[0], mode);
            let settle = |_| std::thread::sleep(Duration::from_millis(200));
            let adds = add(&lab, &nodes[0], ADDS, settle);
            times.extend(adds.iter().map(|(seconds, ())| *seconds));
        }
    }
    let [off, on] = times.map(median);
    let ratio = on / off;
    eprintln!(
        "ADD takes {:.2} ms without and {:.2} ms with the fast path: {ratio:.3}",
        off * 1e3,
        on * 1e3
    );
    assert!(ratio <= 1.05, "{ratio:.3} times as long");
}
