//! A mutation fuzzer for stable compilers, used by tests of other crates.
//!
//! ```text
//!  seeds, corpus/<name>/ ─▶ population ─▶ mutate ─▶ repair ─▶ check ─▶ outcome
//!                               ▲                                      │
//!                               └────────── outcomes never seen ───────┘
//! ```
//!
//! A target is a test in the crate whose parser it tries, so parsers stay private and nothing is compiled twice. Each
//! checks three things: the parser does not panic, it does not take more memory than the input is worth, and what it
//! accepts means the same after another round through encoder and parser. In place of coverage, which needs a
//! nightly compiler, an input is kept when its outcome (in words, such as the text of an error) is new.
//!
//! Without variables a target runs two seconds and begins with the same inputs each time: what fails then is a change of
//! the code. `MICROVM_FUZZ_SECONDS` sets how long it searches, from a place of its own each time; `MICROVM_FUZZ_SEED`
//! repeats a run. A finding is shortened, saved below the directory for temporary files, and printed. What it does *not* do: find hangs by itself
//! (the test runner ends a test that takes too long), or count memory that other threads take.

mod fuzz;
pub mod memory;
mod mutate;
pub mod tar;

pub use fuzz::{Fuzz, words_of};
