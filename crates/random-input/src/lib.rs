//! For unit tests: damages valid inputs at random, to show that a parser never panics.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Inputs per parser, unless the environment variable `CASES` names another number.
const CASES: u32 = 2_000;
/// A parser that takes longer for one input hangs.
const LONGEST: Duration = Duration::from_secs(2);

/// One change to an input.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, usize),
    /// Copies a part of the input to another place.
    Copy(Index, Index, usize),
    Truncate(Index),
}

/// Parts that parsers treat specially.
const PARTS: [&[u8]; 24] = [
    b"",
    b"\0",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"=",
    b";",
    b"\r\n",
    b"/",
    b"-1",
    b"0",
    b"4294967296",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"::",
    b"255.255.255.255/32",
    b"\xff\xfe",
    "é".as_bytes(),
    b"\\u0000",
];

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (place(), select(&PARTS[..])).prop_map(|(at, part)| Edit::Insert(at, part.to_vec())),
        (place(), vec(any::<u8>(), 0..8)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (place(), 1..16_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (place(), place(), 1..64_usize).prop_map(|(from, to, length)| Edit::Copy(from, to, length)),
        place().prop_map(Edit::Truncate),
    ]
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>) {
        let place = |at: &Index| at.index(input.len() + 1);
        match self {
            Self::Set(at, byte) => {
                let at = place(at);
                if let Some(old) = input.get_mut(at) {
                    *old = *byte;
                }
            }
            Self::Insert(at, bytes) => {
                let at = place(at);
                drop(input.splice(at..at, bytes.iter().copied()));
            }
            Self::Delete(at, length) => {
                let at = place(at);
                drop(input.drain(at..input.len().min(at + length)));
            }
            Self::Copy(from, to, length) => {
                let (from, to) = (place(from), place(to));
                let part = input[from..input.len().min(from + length)].to_vec();
                drop(input.splice(to..to, part));
            }
            Self::Truncate(at) => input.truncate(place(at)),
        }
    }
}

/// Returns a runner for property tests: 2,000 cases, always the same ones. `CASES` sets another
/// number, and `SEED` chooses other cases.
#[must_use]
pub fn runner() -> TestRunner {
    let variable = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let config = Config {
        cases: variable("CASES").unwrap_or(CASES),
        failure_persistence: None,
        ..Config::default()
    };
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&variable("SEED").unwrap_or_default().to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    TestRunner::new_with_rng(config, rng)
}

/// Calls `parse` with each valid input, and with damaged ones.
///
/// # Panics
///
/// If `parse` panics, or takes longer than two seconds. The message has the smallest such input.
pub fn never_panics(valid: &[&[u8]], parse: impl Fn(&[u8])) {
    for input in valid {
        parse(input);
    }
    let valid: Vec<_> = valid.iter().map(|input| input.to_vec()).collect();
    let damaged = (select(valid), vec(edit(), 0..8)).prop_map(|(mut input, edits)| {
        for edit in edits {
            edit.apply(&mut input);
        }
        input
    });
    let result = runner().run(&damaged, |input| {
        let begin = Instant::now();
        parse(&input);
        prop_assert!(begin.elapsed() < LONGEST, "took {:?}", begin.elapsed());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_parser_that_panics_is_found() {
        let parse = |input: &[u8]| assert!(!input.starts_with(b"{{"), "two braces");
        assert!(catch_unwind(|| never_panics(&[b"{}"], parse)).is_err());
    }

    #[test]
    fn inputs_are_the_same_each_time_and_many() {
        let collect = || {
            let seen = std::cell::RefCell::new(Vec::new());
            never_panics(&[b"{\"a\": 1}"], |input| {
                seen.borrow_mut().push(input.to_vec());
            });
            seen.into_inner()
        };
        let (first, second) = (collect(), collect());
        assert_eq!(first, second);
        let different: std::collections::BTreeSet<_> = first.iter().collect();
        assert!(different.len() > first.len() / 2, "{}", different.len());
    }
}
