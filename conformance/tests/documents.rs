//! The documents: links lead somewhere, paths and make targets exist, and the top README stays
//! short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use conformance::repository;

/// All documents of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_ours = !matches!(&*name, "target" | ".git" | ".ci");
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The text outside of code blocks.
fn prose(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a document is UTF-8");
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of a document: its headings in lower case, without punctuation, joined by `-`.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = prose(path);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            let text = text.replace(' ', "-");
            text.chars()
                .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
                .collect()
        })
        .collect()
}

#[test]
fn every_link_leads_to_an_existing_file_and_heading() {
    let mut links = 0;
    for document in documents() {
        for rest in prose(&document).split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.starts_with("https://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.parent().expect("a document is in a folder");
            let linked = if path.is_empty() {
                document.clone()
            } else {
                folder.join(path)
            };
            assert!(linked.exists(), "{}: {target}", document.display());
            let has_anchor = anchor.is_empty() || anchors(&linked).contains(anchor);
            assert!(has_anchor, "{}: {target}", document.display());
            links += 1;
        }
    }
    assert!(links > 40, "only {links} links were found");
}

#[test]
fn every_source_path_and_make_target_in_a_document_exists() {
    let makefile = fs::read_to_string(repository().join("Makefile")).expect("readable");
    let targets = makefile.lines().filter_map(|line| line.split_once(':'));
    let targets: BTreeSet<_> = targets
        .flat_map(|(names, _)| names.split_whitespace())
        .collect();
    let has_target = |name: &str| targets.contains(name);
    let mut paths = 0;
    for document in documents() {
        let folder = document.parent().expect("a document is in a folder");
        for code in prose(&document).split('`').skip(1).step_by(2) {
            if let Some(rest) = code.strip_prefix("make ") {
                let target = rest.split([' ', '\n']).next().unwrap_or_default();
                assert!(has_target(target), "{}: {code}", document.display());
            }
            let path = code.split(',').next().unwrap_or_default();
            let is_source = Path::new(path)
                .extension()
                .is_some_and(|extension| extension == "rs");
            if !is_source || path.contains(['{', '<', ' ']) || !path.contains('/') {
                continue;
            }
            let crates = repository().join("crates");
            let roots = [folder.to_owned(), repository(), crates.clone()];
            let sources = fs::read_dir(crates).expect("readable").map(|entry| {
                let krate = entry.expect("readable").path();
                [krate.join("src"), krate]
            });
            let mut roots = roots.into_iter().chain(sources.flatten());
            let exists = roots.any(|root| root.join(path).exists());
            assert!(exists, "{}: {path}", document.display());
            paths += 1;
        }
    }
    assert!(paths > 20, "only {paths} paths were found");
}

/// All sources of the agent, without line breaks inside of texts.
fn agent_sources() -> String {
    let mut all = String::new();
    let mut folders = vec![repository().join("crates/hostgw-agent/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all += &fs::read_to_string(&path).expect("UTF-8");
            }
        }
    }
    all
}

#[test]
fn every_message_in_the_troubleshooting_table_is_one_of_the_agent() {
    let document = repository().join("examples/kubernetes/README.md");
    let text = prose(&document);
    let table = text
        .split("## When something is wrong")
        .nth(1)
        .expect("a heading");
    let sources = agent_sources();
    let mut messages = 0;
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split(" | ").next().unwrap_or_default();
        for message in cell.split('`').skip(1).step_by(2) {
            // The rest is filled in: a name, an address, a list.
            for part in message
                .split(['…', '"', '('])
                .flat_map(|part| part.split(" x "))
            {
                let part = part.trim_matches([' ', ':', ';', ')', ',', '.']);
                let part = part.trim_start_matches("x ").trim_end_matches(" x");
                if part.len() > 11 && !part.contains("Unauthorized") {
                    assert!(sources.contains(part), "no text of the agent has {part:?}");
                    messages += 1;
                }
            }
        }
    }
    assert!(messages > 15, "only {messages} messages were found");
}

#[test]
fn the_top_readme_is_at_most_8_kb() {
    let length = fs::metadata(repository().join("README.md"))
        .expect("exists")
        .len();
    assert!(length <= 8192, "{length} bytes");
}
