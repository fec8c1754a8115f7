//! The real clients, which `make tools` builds from pinned Go modules.

use std::path::PathBuf;

/// Returns the path of the client called `name`.
///
/// # Panics
///
/// If it is not built.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let path = crate::repository().join("target/tools").join(name);
    assert!(
        path.exists(),
        "{name} is not in {}: run `make tools` first",
        path.display()
    );
    path
}
