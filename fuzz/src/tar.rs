//! Tar headers whose checksums fit again after a mutation.

const BLOCK: usize = 512;
/// Where a header has the size of what follows it, and its checksum (POSIX.1-1988, ustar).
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// Sizes from here on are taken for none: the walk would end at once.
const SIZE_MAX: usize = 1 << 20;

/// Corrects the checksums of all headers, as far as the walk by their sizes leads. For [`crate::Fuzz::repair`].
pub fn repair(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + BLOCK) {
        if block.iter().any(|byte| *byte != 0) {
            block[CHECKSUM].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let digits = block[SIZE].iter().take_while(|byte| (b'0'..b'8').contains(byte));
        let size = digits.fold(0usize, |size, digit| size << 3 | usize::from(digit - b'0'));
        at += BLOCK + if size < SIZE_MAX { size.next_multiple_of(BLOCK) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_gets_its_checksum() {
        let mut bytes = vec![0; 4 * BLOCK];
        bytes[SIZE].copy_from_slice(b"00000000004\0");
        bytes[2 * BLOCK] = b'x';
        repair(&mut bytes);
        // Eight spaces stand for the checksum while it is made: 11 zeros and a 4 of 12 characters, and those.
        let first = 10 * u32::from(b'0') + u32::from(b'4') + 8 * u32::from(b' ');
        assert_eq!(&bytes[CHECKSUM], format!("{first:06o}\0 ").as_bytes());
        assert_eq!(bytes[BLOCK..2 * BLOCK], [0; BLOCK], "data were changed");
        assert_eq!(
            bytes[2 * BLOCK + CHECKSUM.start..][..8],
            *format!("{:06o}\0 ", u32::from(b'x') + 256).as_bytes()
        );
    }
}
