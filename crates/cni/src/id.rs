//! The names that identify an attachment: container id, network name and interface name. Each type
//! holds only valid names.

use std::fmt;

use crate::{Code, Error};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// `CNI_CONTAINERID`: a letter or digit, then letters, digits, `_`, `.` and `-`.
    ContainerId
);
name!(
    /// The network's `name`. It allows the same characters as a container id, so it is safe as a
    /// file name.
    NetworkName
);
name!(
    /// `CNI_IFNAME`: 1 to 15 bytes that the kernel accepts as an interface name.
    IfName
);

impl ContainerId {
    /// Validates a container id. Returns an error with code 3 if it is empty, and with code 4 if it
    /// contains an invalid character.
    pub fn new(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::new(Code::UNKNOWN_CONTAINER, "missing containerID"));
        }
        if !is_identifier(text) {
            return Err(Error::new(
                Code::INVALID_ENVIRONMENT,
                "invalid characters in containerID",
            )
            .with_details(format!("CNI_CONTAINERID is {text:?}")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl NetworkName {
    /// Validates a network name. Returns an error with code 7 if it is empty or contains an invalid
    /// character.
    pub fn new(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::new(Code::INVALID_CONFIG, "missing network name"));
        }
        if !is_identifier(text) {
            return Err(Error::new(
                Code::INVALID_CONFIG,
                "invalid characters found in network name",
            )
            .with_details(format!("name is {text:?}")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl IfName {
    /// Validates an interface name. Returns an error with code 4 if the kernel would reject it.
    pub fn new(text: &str) -> Result<Self, Error> {
        // The rules of the kernel's dev_valid_name(). IFNAMSIZ is 16, including the terminating
        // NUL.
        let reason = if text.is_empty() {
            "interface name is empty"
        } else if text.len() > 15 {
            "interface name is too long"
        } else if text == "." || text == ".." {
            "interface name is . or .."
        } else if text
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c == '\0')
        {
            "interface name contains / or : or whitespace characters"
        } else if text.contains('%') {
            // The kernel replaces `%d` with a number.
            "interface name contains %"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Error::new(Code::INVALID_ENVIRONMENT, reason)
            .with_details(format!("CNI_IFNAME is {text:?}")))
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_rules_of_the_kernel() {
        for good in ["eth0", "net1", "a", "fifteen-bytes-x", "eth0.5", "é0"] {
            assert!(IfName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "sixteen-bytes-xx",
            "a/b",
            "a:b",
            "a b",
            "a\u{a0}b",
            "eth%d",
        ] {
            assert_eq!(
                IfName::new(bad).expect_err(bad).code,
                Code::INVALID_ENVIRONMENT,
                "{bad}"
            );
        }
    }

    #[test]
    fn identifiers_are_safe_as_file_names() {
        assert!(ContainerId::new("cnitool-77383ca0b2").is_ok());
        assert_eq!(
            ContainerId::new("").expect_err("empty").code,
            Code::UNKNOWN_CONTAINER
        );
        for bad in ["..", ".a", "a/b", "a b", "-a", "ä"] {
            assert_eq!(
                ContainerId::new(bad).expect_err(bad).code,
                Code::INVALID_ENVIRONMENT
            );
            assert_eq!(
                NetworkName::new(bad).expect_err(bad).code,
                Code::INVALID_CONFIG
            );
        }
    }
}
