//! The state of the fast path.

use std::fmt;

/// The state of the fast path, for people and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Not in use until the first check ends.
    BeingChecked,
    /// Not in use, and why.
    Off(String),
    On {
        /// The number of devices on it.
        devices: usize,
        /// The number of flows on it when they were last counted. `None` if the kernel does not list flows.
        flows: Option<usize>,
        /// Devices that the kernel refused, and why there was no check, each in a sentence.
        remarks: Vec<String>,
    },
}

impl Status {
    pub(crate) fn is_on(&self) -> bool {
        matches!(self, Self::On { .. })
    }

    /// True if it differs from `before` in more than numbers.
    pub(super) fn is_news_after(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::On { remarks, .. }, Self::On { remarks: known, .. }) => remarks != known,
            _ => self != before,
        }
    }

    /// The number of devices on the fast path, while it is on.
    pub(crate) fn devices(&self) -> Option<usize> {
        match self {
            Self::On { devices, .. } => Some(*devices),
            Self::BeingChecked | Self::Off(_) => None,
        }
    }

    /// The number of flows on it, as last counted.
    pub(crate) fn flows(&self) -> Option<usize> {
        match self {
            Self::On { flows, .. } => *flows,
            Self::BeingChecked | Self::Off(_) => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeingChecked => f.write_str("being checked"),
            Self::Off(reason) => write!(f, "off ({reason})"),
            Self::On {
                devices,
                flows,
                remarks,
            } => {
                write!(f, "on, {devices} devices")?;
                if let Some(flows) = flows {
                    write!(f, ", {flows} flows")?;
                }
                remarks
                    .iter()
                    .try_for_each(|remark| write!(f, "; {remark}"))
            }
        }
    }
}
