//! Notifications for systemd: `Type=notify` and its watchdog.

use std::collections::BTreeSet;

use sd_notify::NotifyState;

/// Tells systemd that this node is ready, or why it is not.
pub(crate) fn notify_state(is_ready: bool, problems: &BTreeSet<String>) {
    let status = match problems.first() {
        Some(problem) => problem.as_str(),
        None if is_ready => "this node has its subnet and its routes",
        None => "waiting for a subnet",
    };
    let mut notifications = vec![NotifyState::Status(status), NotifyState::Watchdog];
    if is_ready {
        notifications.push(NotifyState::Ready);
    }
    notify(&notifications);
}

/// Tells systemd that the agent is stopping.
pub(crate) fn notify_stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(notifications: &[NotifyState<'_>]) {
    // Without systemd, nobody listens.
    drop(sd_notify::notify(notifications));
}
