//! The black box: a cluster of namespaces, and what is done to it from outside.
//!
//! A [`Lab`] is a network of [`Node`]s around one switch; a [`Pod`] is a namespace of a node.
//! Nothing in it touches the machine's own network, and all of it goes when its owner goes,
//! however that ends: the kernel takes the namespaces with the last process in them.
//!
//! What cannot run fails, and says how to make it run; nothing is skipped.

#![expect(
    clippy::must_use_candidate,
    reason = "a check that nobody looks at is seen by its panic"
)]

mod agent;
pub mod clients;
mod containerd;
pub mod etcd;
mod flanneld;
mod holder;
pub mod inside;
pub mod kube;
pub mod kubelet;
mod lab;
pub mod manifest;
mod plugin;
pub mod reference_picture;

pub use agent::Agent;
pub use containerd::{Containerd, Release, Sandbox};
pub use etcd::Etcd;
pub use flanneld::Flanneld;
pub use holder::Output;
pub use kube::{Answer, Kube};
pub use kubelet::Kubelet;
pub use lab::{Lab, Node, Pod, Server, wait_for};
pub use plugin::{Attachment, Chain, Plugin, Reply, Running};

use std::path::{Path, PathBuf};

/// The folder of the released executables.
///
/// # Panics
///
/// When they are not built.
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

/// The top of the source tree.
#[must_use]
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("the crate lies in the repository")
        .to_owned()
}

/// The archive of the agent's image, its tag behind the version ending with `more`.
///
/// # Panics
///
/// When it is not built.
#[must_use]
pub fn image(more: &str) -> PathBuf {
    let name = format!("cni-hostgw-{}{more}.tar", env!("CARGO_PKG_VERSION"));
    let path = repository().join("target/image").join(name);
    assert!(
        path.exists(),
        "{} is not there: run `make image` first",
        path.display()
    );
    path
}

/// The folder of the reference plugins.
///
/// # Panics
///
/// When they are not installed.
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
