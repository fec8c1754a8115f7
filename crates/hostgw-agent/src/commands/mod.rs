//! The agent's commands beside `run`.

pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod install;
pub(crate) mod release;
pub(crate) mod status;
