//! The agent's benchmark: how soon a node's lease is a route on all others, and what it costs to
//! hold thousands of routes.

use std::io::{self, Write};

use crate::cluster::MANY;
use crate::table::Targets;
use crate::{etcd, kube};

/// Runs all parts.
pub(crate) fn bench(out: &mut impl Write) -> io::Result<()> {
    let mut marks = Targets::default();
    etcd::joins(out, &mut marks)?;
    etcd::repairs(out, &mut marks)?;
    etcd::idle(out, &mut marks)?;
    etcd::compare_with_flanneld(out)?;
    etcd::rows(&[10, 100, 1000, MANY, 50_000], out, &mut marks)?;
    kube::bench(out, &mut marks)?;
    marks.write(out)
}

/// Runs only the part with an API server.
pub(crate) fn bench_on_kube(out: &mut impl Write) -> io::Result<()> {
    let mut marks = Targets::default();
    kube::bench(out, &mut marks)?;
    marks.write(out)
}

/// Runs only one size of cluster.
pub(crate) fn bench_of(count: u32, out: &mut impl Write) -> io::Result<()> {
    let mut marks = Targets::default();
    if count == MANY {
        etcd::compare_with_flanneld(out)?;
    }
    etcd::rows(&[count], out, &mut marks)?;
    marks.write(out)
}
