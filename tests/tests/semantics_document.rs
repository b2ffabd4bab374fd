//! docs/SEMANTICS.md and the tests that carry its numbers: neither is without the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Numbers of the clauses, `**S12.**` at the beginning of a line.
fn clauses(document: &str) -> Vec<u32> {
    let starts = document.lines().filter_map(|line| line.strip_prefix("**S"));
    starts.filter_map(|rest| rest.split_once(".**")?.0.parse().ok()).collect()
}

/// Numbers of the tests, `fn s12_...` after `#[test]`, with where they are.
fn tests(folder: &Path) -> BTreeMap<u32, Vec<String>> {
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if !file.starts_with("semantics_") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for piece in text.split("#[test]\nfn s").skip(1) {
            let digits = piece.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            if let Ok(number) = digits.parse() {
                let name = piece.split('(').next().unwrap();
                found.entry(number).or_default().push(format!("{file}: s{name}"));
            }
        }
    }
    found
}

#[test]
fn every_clause_has_its_test_and_every_test_its_clause() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(crate_folder.join("../docs/SEMANTICS.md")).unwrap();
    let tests = tests(&crate_folder.join("tests"));
    let numbers = clauses(&document);
    let unique: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!(unique.len(), numbers.len(), "a number is used twice: {numbers:?}");
    assert!(unique.len() > 60, "only {} clauses were found", unique.len());
    let untested: Vec<_> = unique.iter().filter(|number| !tests.contains_key(number)).collect();
    assert!(untested.is_empty(), "clauses without a test: {untested:?}");
    let strays: Vec<_> = tests.iter().filter(|(number, _)| !unique.contains(number)).collect();
    assert!(strays.is_empty(), "tests without a clause: {strays:?}");
    let doubled: Vec<_> = tests.values().filter(|names| names.len() > 1).collect();
    assert!(doubled.is_empty(), "one number, several tests: {doubled:?}");
}
