//! Settings under `/proc/sys` (sysctls), in the network namespace of the calling thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use util::retry_on_eintr;

/// Sets `name` to `value`, unless it already has that value: a write may have side effects, and a
/// read-only `/proc/sys` is no problem if the value is already correct.
///
/// `name` is a path such as `net/ipv4/ip_forward`.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    if get(name)? == value {
        return Ok(());
    }
    write(name, value)
}

/// Writes `value` without reading the current value first, for a namespace that we created.
pub fn write(name: &str, value: &str) -> Result<(), Error> {
    // The file is never created: a missing file means that this kernel does not have the setting.
    let write_at = |path: PathBuf| {
        let mut file = File::options().write(true).open(path)?;
        file.write_all(value.as_bytes())
    };
    let written = match write_at(path(name)) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            write_at(Path::new(NODE_PROC_SYS).join(name)).map_err(|_| error)
        }
        other => other,
    };
    written.map_err(|error| Error::new(format!("set {name} to {value}"), error))
}

/// Returns the value of a setting, without the trailing newline.
pub fn get(name: &str) -> Result<String, Error> {
    let read = || -> io::Result<String> {
        // Values are short, and the files report no size.
        let mut text = [0; 128];
        let mut file = File::open(path(name))?;
        let length = retry_on_eintr(|| file.read(&mut text))?;
        Ok(String::from_utf8_lossy(&text[..length])
            .trim_end()
            .to_owned())
    };
    read().map_err(|error| Error::new(format!("read the setting {name}"), error))
}

/// Path under which a container may have the `/proc/sys` of its node mounted, for when its own is
/// read-only.
const NODE_PROC_SYS: &str = "/host/proc/sys";

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
