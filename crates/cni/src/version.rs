//! The supported versions of the CNI protocol.

use std::fmt;

/// A supported version of the CNI protocol. Ordered: a later version is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is its version's number")]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All supported versions, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest version. It is used where the request names no version.
    pub const LATEST: Self = Self::V1_1_0;

    /// Returns the version as written in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Returns the version written as `text`, if it is supported. The text must match exactly:
    /// libcni looks it up in the list that VERSION printed.
    #[must_use]
    pub fn supported(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// Returns the family of the version. The versions of a family share one result format, and a
    /// `prevResult` must be of the same family as its configuration.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::V0_1_0 | Self::V0_2_0 => Family::V0_2,
            Self::V0_3_0 | Self::V0_3_1 | Self::V0_4_0 => Family::V0_4,
            Self::V1_0_0 | Self::V1_1_0 => Family::V1,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The three result formats of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 0.1.0 and 0.2.0: `ip4` and `ip6`.
    V0_2,
    /// 0.3.0 to 0.4.0: `interfaces`, and `ips` with a `version` each.
    V0_4,
    /// From 1.0.0: `interfaces` and `ips`.
    V1,
}
