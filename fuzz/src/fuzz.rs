//! One target.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::memory;
use crate::mutate::{Random, mutate};

/// How long a target runs if nothing else is said, in seconds.
const SECONDS: u64 = 2;
/// Inputs that are kept besides the seeds.
const POPULATION_MAX: usize = 2_000;
/// Longest time for shortening a finding.
const SHORTEN: Duration = Duration::from_secs(5);
/// Bytes of a finding that are printed.
const SHOWN_MAX: usize = 4_096;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics of this thread from being printed while a finding is shortened: there may be thousands of them.
fn quiet(quiet: bool) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
    QUIET.set(quiet);
}

/// A parser to be tried.
#[derive(Debug)]
pub struct Fuzz<'a> {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: &'a [&'a [u8]],
    memory: (usize, usize),
    repair: Option<fn(&mut [u8])>,
}

impl<'a> Fuzz<'a> {
    /// A target of this name, with the files of `fuzz/corpus/<name>` as its first seeds.
    ///
    /// # Panics
    /// If the corpus cannot be read.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut seeds = Vec::new();
        if folder.is_dir() {
            for entry in std::fs::read_dir(&folder).expect("the corpus is part of the repository") {
                let path = entry.expect("the corpus can be listed").path();
                seeds.push(std::fs::read(path).expect("the corpus can be read"));
            }
            // Listed in any order: a seed of the generator must give the same inputs.
            seeds.sort();
        }
        Self { name, seeds, words: &[], memory: (1 << 20, 64), repair: None }
    }

    /// Adds an input to begin with, best a sound one.
    #[must_use]
    pub fn seed(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.seeds.push(bytes.into());
        self
    }

    /// Sets words that mean something to the parser.
    #[must_use]
    pub const fn words(mut self, words: &'a [&'a [u8]]) -> Self {
        self.words = words;
        self
    }

    /// Sets how many bytes of memory may be held at once: so many, and so many more for each byte of input. 1 MiB and 64
    /// if it is not called.
    #[must_use]
    pub const fn memory(mut self, fixed: usize, for_each_byte: usize) -> Self {
        self.memory = (fixed, for_each_byte);
        self
    }

    /// Sets what makes checksums right again, so that changes get past them; done to most inputs.
    #[must_use]
    pub fn repair(mut self, repair: fn(&mut [u8])) -> Self {
        self.repair = Some(repair);
        self
    }

    /// Tries inputs until the time is up. `check` panics where something is wrong, and tells the outcome in a few words.
    ///
    /// # Panics
    /// With the first finding, shortened.
    #[expect(clippy::print_stderr, reason = "it is shown with a finding only, and tells how to repeat it")]
    pub fn run<O: Into<String>>(self, mut check: impl FnMut(&[u8]) -> O) {
        let mut check = |input: &[u8]| -> String { check(input).into() };
        assert!(!self.seeds.is_empty(), "the target {} has no seeds", self.name);
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seconds = number("MICROVM_FUZZ_SECONDS");
        // A search begins elsewhere each time; a run of the tests tries the same inputs, so that what fails is the change.
        let elsewhere = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        };
        let seed = number("MICROVM_FUZZ_SEED").unwrap_or_else(|| seconds.map_or(1, |_| elsewhere()));
        eprintln!("{}: MICROVM_FUZZ_SEED={seed}", self.name);
        let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
        let mut random = Random::new(seed);
        let mut population = self.seeds.clone();
        let mut seen = HashSet::new();
        for input in &self.seeds {
            seen.insert(self.try_one(input, &mut check));
        }
        let mut runs = self.seeds.len();
        while Instant::now() < end {
            let mut input = random.of(&population).cloned().unwrap_or_default();
            let other = random.of(&population).cloned().unwrap_or_default();
            mutate(&mut input, &other, self.words, &mut random);
            if let Some(repair) = self.repair.filter(|_| random.below(8) > 0) {
                repair(&mut input);
            }
            let outcome = self.try_one(&input, &mut check);
            // What is new stays; besides it a moving population finds more than the seeds alone.
            if seen.len() < POPULATION_MAX && seen.insert(outcome) || random.below(200) == 0 {
                let at = self.seeds.len() + random.below(POPULATION_MAX);
                match population.get_mut(at) {
                    Some(place) => *place = input,
                    None => population.push(input),
                }
            }
            runs += 1;
        }
        eprintln!("{}: {runs} runs, {} outcomes", self.name, seen.len());
    }

    /// Checks one input; a finding is the end.
    fn try_one(&self, input: &[u8], check: &mut impl FnMut(&[u8]) -> String) -> String {
        match self.examine(input, check) {
            Ok(outcome) => words_of(&outcome),
            Err(first) => {
                quiet(true);
                let short = self.shorten(input, check);
                quiet(false);
                let last = self.examine(&short, check).err().unwrap_or(first);
                let path = self.save(&short);
                let shown = short[..short.len().min(SHOWN_MAX)].escape_ascii();
                panic!(
                    "{}: {last}\n{} bytes, saved as {}:\nb\"{shown}\"",
                    self.name,
                    short.len(),
                    path.display()
                );
            }
        }
    }

    fn examine(&self, input: &[u8], check: &mut impl FnMut(&[u8]) -> String) -> Result<String, String> {
        let (outcome, peak) = memory::peak_of(|| catch_unwind(AssertUnwindSafe(|| check(input))));
        let outcome = outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
        })?;
        let most = self.memory.0 + self.memory.1 * input.len();
        if peak > most {
            return Err(format!("it held {peak} bytes of memory, {most} are its limit"));
        }
        Ok(outcome)
    }

    /// Takes pieces out for as long as something is still found.
    fn shorten(&self, input: &[u8], check: &mut impl FnMut(&[u8]) -> String) -> Vec<u8> {
        let end = Instant::now() + SHORTEN;
        let mut short = input.to_vec();
        let mut piece = short.len() / 2;
        while piece > 0 {
            let mut at = 0;
            while at < short.len() {
                if Instant::now() > end {
                    return short;
                }
                let mut other = short.clone();
                other.drain(at..(at + piece).min(short.len()));
                if let Some(repair) = self.repair {
                    repair(&mut other);
                }
                if self.examine(&other, check).is_err() && other.len() < short.len() {
                    short = other;
                } else {
                    at += piece;
                }
            }
            piece /= 2;
        }
        short
    }

    fn save(&self, input: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("microvm-finding-{}-{}", self.name, std::process::id()));
        // It is printed as well.
        let _ = std::fs::write(&path, input);
        path
    }
}

/// An outcome without the numbers and names in it, which make every error look new: words of letters up to a mark.
#[must_use]
pub fn words_of(outcome: &str) -> String {
    let plain = outcome.split('`').step_by(2).flat_map(str::chars);
    plain.filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: fn(&[u8]) -> &'static str) -> String {
        let target = Fuzz::new("itself").seed(*b"a sound input");
        let found = catch_unwind(AssertUnwindSafe(|| target.run(check)));
        found.unwrap_err().downcast_ref::<String>().cloned().unwrap()
    }

    #[test]
    fn panics_are_found_and_shortened() {
        let text = finding(|input| {
            assert!(!input.contains(&0xff), "a byte it cannot bear");
            "fine"
        });
        assert!(text.contains("cannot bear") && text.ends_with("b\"\\xff\""), "{text}");
    }

    #[test]
    fn memory_beyond_the_limit_is_found() {
        let text = finding(|input| {
            let taken = vec![1u8; if input.len() > 14 { 4 << 20 } else { 0 }];
            if taken.is_empty() { "fine" } else { "much" }
        });
        assert!(text.contains("bytes of memory"), "{text}");
    }

    #[test]
    fn outcomes_are_told_apart_by_their_words() {
        assert_eq!(words_of("the field `a` has 12 bytes"), words_of("the field `b` has 7 bytes"));
        assert_ne!(words_of("too long"), words_of("too short"));
    }
}
