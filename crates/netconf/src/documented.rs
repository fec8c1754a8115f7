//! The documentation of the plugin has every key that the code reads, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::value::Error;
use serde::de::{Deserializer, Error as _, Visitor};

use crate::keys::{
    Bandwidth, BridgeKeys, CniKeys, DelegateKeys, Ipam, PortMapKeys, RangeConf, RuntimeConfig,
    TopLevelKeys,
};

/// A deserializer that returns the names of a struct's fields as its error.
struct FieldNames;

impl<'de> Deserializer<'de> for FieldNames {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        Err(Error::custom(fields.join(" ")))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Returns the keys of a struct, each behind `prefix`.
fn keys<'de, T: Deserialize<'de>>(prefix: &str) -> Vec<String> {
    let Err(fields) = T::deserialize(FieldNames) else {
        panic!("the deserializer always fails");
    };
    let fields = fields.to_string();
    assert_ne!(fields, "not a struct");
    fields
        .split(' ')
        .map(|field| format!("{prefix}{field}"))
        .collect()
}

/// Returns the keys that the code looks up by name, in all sources of a crate but its tests.
fn looked_up(krate: &str) -> Vec<String> {
    let mut found = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(krate)
        .join("src");
    let mut folders = vec![src];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.ends_with("tests.rs") || path.ends_with("documented.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("UTF-8");
            let code = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            for call in [
                "call.config.get(",
                "json.get(",
                "json.has(",
                "json.object(",
                "text(json, ",
                "path(json, ",
                "config.get(",
                "config.object(",
                "config.has(",
            ] {
                let literals = code.split(call).skip(1);
                let literals =
                    literals.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
                found.extend(literals.map(str::to_owned));
            }
        }
    }
    found
}

/// The rows of the documentation's tables: the keys in the first cell, and the whole row.
fn rows() -> Vec<(Vec<String>, String)> {
    let text = include_str!("../../cni-hostgw/README.md");
    let start = text.find("## Configuration").expect("a heading");
    let end = text.find("### Requested addresses").expect("a heading");
    let rows = text[start..end]
        .lines()
        .filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let first = row.split(" | ").next().unwrap_or_default();
        let keys = first.split('`').skip(1).step_by(2).map(str::to_owned);
        (keys.collect(), row.to_owned())
    })
    .collect()
}

fn row_of(key: &str) -> String {
    let rows = rows();
    let row = rows
        .iter()
        .find(|(keys, _)| keys.iter().any(|other| other == key));
    row.unwrap_or_else(|| panic!("{key} is not documented"))
        .1
        .clone()
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_read() {
    let mut read: BTreeSet<String> = keys::<TopLevelKeys>("").into_iter().collect();
    read.extend(keys::<BridgeKeys>(""));
    read.extend(keys::<DelegateKeys>("delegate."));
    read.extend(keys::<PortMapKeys>(""));
    read.extend(keys::<Bandwidth>(""));
    read.extend(keys::<Ipam>("ipam."));
    read.extend(keys::<CniKeys>("args.cni."));
    for krate in ["cni", "netconf", "cni-hostgw"] {
        read.extend(looked_up(krate));
    }
    // Objects whose keys have rows of their own, and keys inside of objects that are looked up.
    for object in ["ipam", "args", "ranges", "routes"] {
        read.remove(object);
    }
    // `Request::read` and `ValidAttachment::list` of the crate `cni` have structs of their own.
    read.extend(
        [
            "name",
            "cniVersion",
            "cni.dev/attachments",
            "cni.dev/valid-attachments",
            "delegate.type",
        ]
        .map(str::to_owned),
    );
    let documented: BTreeSet<_> = rows().into_iter().flat_map(|(keys, _)| keys).collect();
    assert_eq!(documented, read);
}

#[test]
fn every_key_of_a_nested_object_is_in_the_row_of_the_object() {
    for (object, keys) in [
        ("ipam.ranges", keys::<RangeConf>("")),
        ("ipam.routes", keys::<cni::Route>("")),
        ("runtimeConfig", keys::<RuntimeConfig>("")),
    ] {
        let row = row_of(object);
        for key in keys {
            assert!(row.contains(&format!("`{key}`")), "{object}.{key}: {row}");
        }
    }
}
