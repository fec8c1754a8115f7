//! `hostgw-agent status`: asks the agent of this node, and shows what it says.

use std::fmt::Write;
use std::io;
use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What the agent says, for people or for programs. Fails where none listens.
pub(crate) async fn show(socket: &Path, as_json: bool) -> Result<String, String> {
    let text = ask(socket).await.map_err(|error| {
        let path = socket.display();
        format!("no agent answers at {path}: {error}; is hostgw-agent running here?")
    })?;
    if as_json {
        return Ok(text + "\n");
    }
    let said: Value =
        serde_json::from_str(&text).map_err(|error| format!("read the agent's answer: {error}"))?;
    Ok(table(&said))
}

/// Whether an agent listens there.
pub(crate) async fn is_running(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// One request of HTTP/1.0, whose answer ends with the connection.
async fn ask(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!(
            "it says {:?}",
            answer.lines().next().unwrap_or_default()
        ))),
    }
}

/// What there is to know, and then a line for each subnet.
fn table(said: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            writeln!(text, "{name:<10} {value}").expect("a text takes everything");
        }
    };
    let ready = if said["ready"] == true { "yes" } else { "no" };
    line("ready", ready.to_owned());
    for reason in said["reasons"].as_array().into_iter().flatten() {
        line("", word(reason));
    }
    for warning in said["warnings"].as_array().into_iter().flatten() {
        line("warning", word(warning));
    }
    let node = &said["node"];
    if node.is_object() {
        let subnets = node["subnets"].as_array().into_iter().flatten();
        let subnets: Vec<_> = subnets.map(word).collect();
        line("node", word(&node["name"]));
        line("subnet", subnets.join(" "));
        let addresses = [word(&node["publicIP"]), word(&node["publicIPv6"])];
        let interface = format!("{} mtu {}", word(&node["interface"]), word(&node["mtu"]));
        line(
            "interface",
            format!("{interface} {}", addresses.join(" "))
                .trim_end()
                .to_owned(),
        );
        line("", format!("because {}", word(&node["because"])));
    }
    let store = &said["store"];
    let reached = if store["reached"] == true {
        ""
    } else {
        " (not reached)"
    };
    line("store", format!("{}{reached}", word(&store["name"])));
    line("", word(&store["warning"]));
    if let Some(left) = store["leaseSecondsLeft"].as_f64() {
        line("lease", format!("{left:.0} s left"));
    }
    line("firewall", word(&said["firewall"]["backend"]));
    let peers: Vec<_> = said["peers"].as_array().into_iter().flatten().collect();
    let installed = peers
        .iter()
        .filter(|peer| peer["state"] != "refused")
        .count();
    line("peers", format!("{installed} of {} routed", peers.len()));
    if !peers.is_empty() {
        text.push('\n');
        text.push_str(&rows(&peers));
    }
    text
}

fn rows(peers: &[&Value]) -> String {
    const COLUMNS: [&str; 6] = ["SUBNET", "NEXT HOP", "DEVICE", "STATE", "NODE", "REASON"];
    const KEYS: [&str; 6] = ["subnet", "nextHop", "device", "state", "node", "reason"];
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(peers.iter().map(|peer| KEYS.map(|key| word(&peer[key]))));
    let width = |i: usize| {
        rows.iter()
            .map(|row| row[i].len())
            .max()
            .unwrap_or_default()
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let cells: Vec<_> = cells.collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text as it is, nothing for nothing.
fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
