//! Changes inputs by chance.

/// Longest input.
const LENGTH_MAX: usize = 300_000;

/// Numbers at which parsers break: ends of ranges and their neighbours.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    (1 << 53) + 1,
    i64::MAX as u64,
    u64::MAX - 510,
    u64::MAX,
];

/// A small generator (xorshift): the same seed gives the same inputs.
pub(crate) struct Random(u64);

impl Random {
    /// From a seed; any will do.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`; 0 if that is 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % limit).unwrap_or(0)
    }

    /// One of some things.
    pub(crate) fn of<'a, T>(&mut self, things: &'a [T]) -> Option<&'a T> {
        things.get(self.below(things.len()))
    }
}

/// Changes `input` in one to six places; pieces come from `other`, words from the target's dictionary.
pub(crate) fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        match random.below(11) {
            0 => change(input, random, |byte, random| byte ^ (1 << random.below(8))),
            1 => change(input, random, |_, random| [0, 1, 0x7f, 0x80, 0xff][random.below(5)]),
            2 => change(input, random, |_, random| random.next().to_le_bytes()[0]),
            3 => input.insert(at, random.next().to_le_bytes()[0]),
            4 => {
                let end = (at + 1 + random.below(16)).min(input.len());
                input.drain(at.min(end)..end);
            }
            5 => {
                let from = random.below(other.len());
                let to = from + random.below(other.len() - from + 1);
                input.splice(at..at, other[from..to].iter().copied());
            }
            // What is there, once more: lists grow.
            6 => {
                let to = at + random.below((input.len() - at).min(2_000) + 1);
                let piece = input[at..to].to_vec();
                input.splice(at..at, piece);
            }
            7 => input.truncate(at),
            8 => number(input, random),
            9 => digits(input, random),
            _ => {
                if let Some(word) = random.of(words) {
                    // Over what is there, or between it.
                    let end = if random.below(2) == 0 { at } else { (at + word.len()).min(input.len()) };
                    input.splice(at..end, word.iter().copied());
                }
            }
        }
    }
    input.truncate(LENGTH_MAX);
}

fn change(input: &mut [u8], random: &mut Random, new: impl FnOnce(u8, &mut Random) -> u8) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = new(*byte, random);
    }
}

/// Writes a binary number over two, four or eight bytes, in either order of bytes.
fn number(input: &mut [u8], random: &mut Random) {
    let width = 2 << random.below(3);
    if input.len() < width {
        return;
    }
    let at = random.below(input.len() - width + 1);
    let value = match random.below(3) {
        0 => EDGES[random.below(EDGES.len())],
        1 => random.next() >> random.below(64),
        // Lengths and offsets: some number near the size of the input.
        _ => u64::try_from(random.below(input.len() * 2)).unwrap_or(0),
    };
    let bytes = value.to_le_bytes();
    let target = &mut input[at..at + width];
    target.copy_from_slice(&bytes[..width]);
    if random.below(2) == 0 {
        target.reverse();
    }
}

/// Writes another number over a run of decimal digits.
fn digits(input: &mut Vec<u8>, random: &mut Random) {
    let from = random.below(input.len());
    let Some(start) = input[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
    let end = start + input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = match random.below(3) {
        0 => EDGES[random.below(EDGES.len())].to_string(),
        1 => (random.next() >> random.below(64)).to_string(),
        _ => format!("-{}", random.below(300)),
    };
    input.splice(start..end, value.into_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_stay_bounded_and_a_seed_repeats_them() {
        let run = |seed| {
            let mut random = Random::new(seed);
            let mut input = Vec::new();
            for _ in 0..20_000 {
                let other = [7; 2_000];
                mutate(&mut input, &other, &[b"word"], &mut random);
                assert!(input.len() <= LENGTH_MAX);
            }
            input
        };
        assert!(run(5) == run(5));
        assert!(run(5) != run(9));
    }
}
