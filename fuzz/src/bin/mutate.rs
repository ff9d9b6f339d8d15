//! A plain mutation fuzzer for stable compilers: `mutate <target> <seconds>`. Takes the corpus of the target, changes it
//! by chance, and stops with the input saved at the first finding.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(input.len());
        match random.below(7) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.insert(at.min(input.len()), random.next() as u8),
            3 if !input.is_empty() => drop(input.remove(at)),
            4 => {
                let from = random.below(other.len());
                let piece = &other[from..from + random.below(other.len() - from)];
                input.splice(at..at, piece.iter().copied());
            }
            5 => input.truncate(at),
            _ if input.len() > 4 => {
                let at = random.below(input.len() - 4);
                input[at..at + 4].copy_from_slice(&(random.next() as u32 >> random.below(32)).to_le_bytes());
            }
            _ => input.push(random.next() as u8),
        }
    }
    input.truncate(300_000);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().unwrap_or_else(|| "frames".to_owned());
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(60);
    assert_eq!(target, "frames", "the targets are: frames");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut corpus: Vec<Vec<u8>> = std::fs::read_dir(root.join("corpus").join(&target))
        .expect("the corpus is part of the repository")
        .map(|entry| std::fs::read(entry.expect("listed").path()).expect("readable"))
        .collect();
    assert!(!corpus.is_empty(), "the corpus is empty");
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64) | 1;
    let mut random = Random(seed);
    let (end, mut runs) = (Instant::now() + Duration::from_secs(seconds), 0u64);
    let initial = corpus.len();
    while Instant::now() < end {
        for _ in 0..1000 {
            let mut input = corpus[random.below(corpus.len())].clone();
            let other = corpus[random.below(corpus.len())].clone();
            mutate(&mut input, &other, &mut random);
            if random.below(4) > 0 && input.len() > 1 {
                microvm_fuzz::repair(&mut input[1..]);
            }
            if catch_unwind(AssertUnwindSafe(|| microvm_fuzz::frames(&input))).is_err() {
                let path = root.join(format!("finding-{target}-{runs}"));
                std::fs::write(&path, &input).expect("the finding can be saved");
                eprintln!("finding after {runs} runs (seed {seed}): {}", path.display());
                std::process::exit(1);
            }
            // A moving population finds more than the seeds alone.
            if random.below(200) == 0 {
                let at = initial + random.below(500);
                if at < corpus.len() { corpus[at] = input } else { corpus.push(input) }
            }
            runs += 1;
        }
    }
    println!("{target}: {runs} runs in {seconds} s, nothing found");
}
