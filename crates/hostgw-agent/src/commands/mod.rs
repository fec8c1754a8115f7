//! The agent's commands beside `run`.

pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod install;
mod invalid;
pub(crate) mod release;
pub(crate) mod status;
