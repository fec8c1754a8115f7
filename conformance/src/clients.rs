//! The real clients, built from pinned Go modules by `make tools`.

use std::path::PathBuf;

/// The client called `name`.
///
/// # Panics
///
/// When it is not built.
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
