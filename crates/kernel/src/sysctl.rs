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
    let file = File::options().write(true).open(path(name));
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
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

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
