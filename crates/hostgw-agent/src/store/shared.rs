//! What a store's task knows, for the agent's loop to look at.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A state, and the word that it changed.
#[derive(Default)]
pub(super) struct Shared<S> {
    state: Mutex<S>,
    pub(super) changed: Notify,
}

impl<S> Shared<S> {
    pub(super) fn state(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and tells.
    pub(super) fn update(&self, change: impl FnOnce(&mut S)) {
        change(&mut self.state());
        self.changed.notify_one();
    }
}
