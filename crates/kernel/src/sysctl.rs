//! Settings under `/proc/sys`, of the namespace that the calling thread is in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::error::uninterrupted;

/// Writes `value` unless it stands there already: a write may have effects of its own, and a
/// read-only `/proc/sys` that says the right thing is fine.
///
/// `name` is a path such as `net/ipv4/ip_forward`.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    if get(name)? == value {
        return Ok(());
    }
    write(name, value)
}

/// Writes `value` without a look at what stands there, as fits a namespace made for us.
pub fn write(name: &str, value: &str) -> Result<(), Error> {
    // Not created: a setting that is not there is one that this kernel does not have.
    let write_at = |path: PathBuf| {
        let mut file = File::options().write(true).open(path)?;
        file.write_all(value.as_bytes())
    };
    let written = match write_at(path(name)) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            write_at(Path::new(OF_NODE).join(name)).map_err(|_| error)
        }
        other => other,
    };
    written.map_err(|error| Error::new(format!("set {name} to {value}"), error))
}

/// The value of a setting, without the end of its line.
pub fn get(name: &str) -> Result<String, Error> {
    let read = || -> io::Result<String> {
        // Settings are short, and give no length to ask for.
        let mut text = [0; 128];
        let mut file = File::open(path(name))?;
        let length = uninterrupted(|| file.read(&mut text))?;
        Ok(String::from_utf8_lossy(&text[..length])
            .trim_end()
            .to_owned())
    };
    read().map_err(|error| Error::new(format!("read the setting {name}"), error))
}

/// Where a container, whose own is read-only, may have that of its node.
const OF_NODE: &str = "/host/proc/sys";

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
