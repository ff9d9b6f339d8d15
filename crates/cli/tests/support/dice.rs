//! Numbers that look random.

/// xorshift64* (Vigna 2016).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    /// One of several; `None` if there are none.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let index = self.roll(from.len().max(1) as u64);
        from.get(usize::try_from(index).ok()?).cloned()
    }
}

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}
