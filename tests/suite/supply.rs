//! What the program is made of: crates from crates.io alone, under the licences of `deny.toml`, and `unsafe` in few places.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn toml(path: &str) -> toml::Table {
    let text = std::fs::read_to_string(repository().join(path)).expect(path);
    text.parse().expect(path)
}

#[test]
fn every_crate_is_of_crates_io_with_a_checksum() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock = toml(lock);
        let packages = lock["package"].as_array().unwrap();
        assert!(packages.len() > 50);
        for package in packages {
            let name = package["name"].as_str().unwrap();
            match package.get("source").and_then(toml::Value::as_str) {
                None => assert!(name.starts_with("obelisk"), "{name} is of this repository"),
                Some(source) => {
                    assert_eq!(
                        source, "registry+https://github.com/rust-lang/crates.io-index",
                        "{name}"
                    );
                    assert!(package.get("checksum").is_some(), "{name} has no checksum");
                }
            }
        }
    }
}

/// Whether a crate's terms can be met with these licences alone. Alternatives in parentheses are understood, and what is nested
/// further is refused.
fn allowed(expression: &str, licences: &BTreeSet<&str>) -> bool {
    expression.split(" AND ").all(|part| {
        let part = part.trim_start_matches('(').trim_end_matches(')');
        part.split(" OR ")
            .flat_map(|p| p.split('/'))
            .any(|name| licences.contains(name))
    })
}

#[test]
fn every_licence_is_allowed() {
    let deny = toml("deny.toml");
    let names = |table: &'_ toml::Value| -> Vec<String> {
        let allow = table["allow"].as_array().unwrap();
        allow
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let common = names(&deny["licenses"]);
    let mut exceptions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for exception in deny["licenses"]["exceptions"].as_array().unwrap() {
        exceptions.insert(exception["crate"].as_str().unwrap().into(), names(exception));
    }
    // Of every system: cargo downloads the crates of those that it does not build for here.
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--all-features"])
        .current_dir(repository())
        .output()
        .expect("cargo starts");
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(std::env::var_os("CI").is_none(), "{problem}");
        eprintln!("SKIPPED: licences ({problem})");
        return;
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 150);
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let own = exceptions.remove(name).unwrap_or_default();
        let licences = common.iter().chain(&own).map(String::as_str).collect();
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(allowed(licence, &licences), "{name}: {licence}");
    }
    assert!(exceptions.is_empty(), "not needed any more: {exceptions:?}");
}

#[test]
fn alternatives_are_understood() {
    let licences = BTreeSet::from(["MIT", "Zlib"]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Zlib", true),
        ("(GPL-2.0 OR GPL-3.0) AND Zlib", false),
        ("none", false),
    ] {
        assert_eq!(allowed(expression, &licences), expected, "{expression}");
    }
}

/// Files with `unsafe` code, and how many places allow it. The compiler refuses it everywhere else (`unsafe_code` in Cargo.toml).
const UNSAFE: &[(&str, usize)] = &[
    ("src/gpu/cache.rs", 1),      // wgpu takes compiled pipelines on trust
    ("src/gpu/device.rs", 1),     // the plan has checked kernels' bounds, and they need no loop counters
    ("src/main.rs", 1),           // a driver's variable is set before there are threads
    ("src/op.rs", 1),             // declares the function by which authors of kernels vouch for their loops
    ("src/shader.rs", 1),         // its unit test
    ("tests/hostile/main.rs", 1), // an allocator that counts
];

#[test]
fn unsafe_code_is_where_it_is_said_and_says_why() {
    let manifest = toml("Cargo.toml");
    assert_eq!(manifest["lints"]["rust"]["unsafe_code"].as_str(), Some("deny"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "examples"]
        .iter()
        .map(|f| repository().join(f))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let attribute = ["unsafe_code", ")]"].concat();
                let name = path
                    .strip_prefix(repository())
                    .unwrap()
                    .to_string_lossy()
                    .replace('\\', "/");
                let places = text
                    .lines()
                    .filter(|l| l.trim_start().starts_with("#") && l.contains(&attribute));
                let places = places.filter(|line| !line.contains("forbid")).count();
                if places > 0 {
                    assert!(
                        text.contains("SAFETY:") || text.contains("# Safety"),
                        "{name} does not say why"
                    );
                    found.push((name, places));
                }
            }
        }
    }
    found.sort();
    let found: Vec<(&str, usize)> = found
        .iter()
        .map(|(name, places)| (name.as_str(), *places))
        .collect();
    assert_eq!(found, UNSAFE);
}
