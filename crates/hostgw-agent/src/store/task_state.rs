//! The state of a store's background task, shared with the agent's loop.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A state that one task changes and another reads, and a notification for each change.
#[derive(Default)]
pub(super) struct TaskState<S> {
    state: Mutex<S>,
    changed: Notify,
}

impl<S> TaskState<S> {
    /// Locks the state.
    pub(super) fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and notifies the reader.
    pub(super) fn update(&self, change: impl FnOnce(&mut S)) {
        change(&mut self.lock());
        self.notify();
    }

    /// Notifies the reader.
    pub(super) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Waits for the next notification.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
