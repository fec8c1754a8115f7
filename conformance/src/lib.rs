//! The black-box test harness: a cluster of network namespaces, and tools to operate and inspect it
//! from outside.
//!
//! A [`Lab`] is a network of [`Node`]s connected to one switch. A [`Pod`] is a network namespace on
//! a node. Nothing in a lab touches the machine's own network. Everything in a lab disappears with
//! its owner, however the owner ends: the kernel deletes a namespace together with the last process
//! in it.
//!
//! A test that cannot run fails, and its message says how to make it run. No test is skipped.

#![expect(
    clippy::must_use_candidate,
    reason = "a check whose result is ignored still panics on failure"
)]

mod agent;
pub mod chance;
pub mod clients;
pub mod cluster;
mod containerd;
mod crio;
pub mod etcd;
pub mod fast_path;
mod flanneld;
pub mod flows;
mod holder;
pub mod inside;
pub mod kube;
pub mod kubelet;
mod lab;
pub mod manifest;
mod plugin;
mod process;
pub mod reference_picture;
pub mod sockets;
mod supervisor;
pub mod traffic;

pub use agent::Agent;
pub use containerd::{Containerd, Release, Sandbox};
pub use crio::Crio;
pub use etcd::Etcd;
pub use flanneld::Flanneld;
pub use holder::Output;
pub use kube::{Kube, Response};
pub use kubelet::Kubelet;
pub use lab::{Lab, Node, Pod, Server};
pub use plugin::{Attachment, Chain, Plugin, Reply, Running};
pub use process::{poll, wait_for, wait_within};

use std::path::{Path, PathBuf};

/// Returns the directory of the release executables.
///
/// # Panics
///
/// If they are not built.
#[must_use]
pub fn dist() -> PathBuf {
    let dist = repository().join("target/dist");
    assert!(
        dist.join("cni-hostgw").exists() && dist.join("hostgw-agent").exists(),
        "the executables are not in {}: run `make build` first",
        dist.display()
    );
    dist
}

/// Returns the root of the source tree.
#[must_use]
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("the crate is in the repository")
        .to_owned()
}

/// Returns the archive of the agent's container image. `more` is appended to the version in its
/// tag.
///
/// # Panics
///
/// If the archive is not built.
#[must_use]
pub fn image(more: &str) -> PathBuf {
    let name = format!("cni-hostgw-{}{more}.tar", env!("CARGO_PKG_VERSION"));
    let path = repository().join("target/image").join(name);
    assert!(
        path.exists(),
        "{} does not exist: run `make image` first",
        path.display()
    );
    path
}

/// Returns the directory of the reference plugins.
///
/// # Panics
///
/// If they are not installed.
#[must_use]
pub fn reference() -> PathBuf {
    let folder = PathBuf::from("/usr/lib/cni");
    assert!(
        folder.join("bridge").exists(),
        "the reference plugins are not in {}: run `make packages` as root first",
        folder.display()
    );
    folder
}
