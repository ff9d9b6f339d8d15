//! The little of ELF that is needed: sections of kernel modules, and the note by which a kernel can be entered directly.

/// Owner and type of the note that holds a PVH entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: (&[u8], u32) = (b"Xen\0", 18);
const PROGRAM_NOTE: u32 = 4;
/// Program headers that are looked at, and bytes of the notes of each; kernels have five, with some hundred bytes. More would
/// let a small file take minutes: all its headers may name the same notes.
const HEADERS_MAX: u64 = 64;
const NOTES_MAX: u64 = 64 << 10;

fn number(bytes: &[u8], at: u64, length: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let part = bytes.get(at..at.checked_add(length)?)?;
    Some(part.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

fn range(bytes: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(length)?).ok()?)
}

/// True if the bytes begin like a 64-bit little-endian ELF file.
pub(crate) fn is_elf64(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01")
}

/// Content of a section by name.
pub(crate) fn section<'a>(bytes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !is_elf64(bytes) {
        return None;
    }
    let (table, size, count, names) =
        (number(bytes, 0x28, 8)?, number(bytes, 0x3a, 2)?, number(bytes, 0x3c, 2)?, number(bytes, 0x3e, 2)?);
    let header = |index: u64| table.checked_add(index.checked_mul(size)?);
    let content = |index: u64| -> Option<&'a [u8]> {
        let at = header(index)?;
        range(bytes, number(bytes, at.checked_add(0x18)?, 8)?, number(bytes, at.checked_add(0x20)?, 8)?)
    };
    let strings = content(names)?;
    (0..count).find_map(|index| {
        // Compared in place: a search for its end in each of 65,535 sections would take minutes of a small file.
        let start = usize::try_from(number(bytes, header(index)?, 4)?).ok()?;
        let rest = strings.get(start..)?.strip_prefix(name)?;
        if rest.first() == Some(&0) { content(index) } else { None }
    })
}

/// True if a kernel has a PVH entry point, so that QEMU can start it without a boot loader.
pub(crate) fn has_pvh_entry(bytes: &[u8]) -> bool {
    pvh_entry(bytes).is_some()
}

fn pvh_entry(bytes: &[u8]) -> Option<()> {
    if !is_elf64(bytes) {
        return None;
    }
    let (table, size, count) = (number(bytes, 0x20, 8)?, number(bytes, 0x36, 2)?, number(bytes, 0x38, 2)?);
    (0..count.min(HEADERS_MAX)).find_map(|index| {
        let at = table.checked_add(index.checked_mul(size)?)?;
        if number(bytes, at, 4)? != u64::from(PROGRAM_NOTE) {
            return None;
        }
        let notes = range(
            bytes,
            number(bytes, at.checked_add(8)?, 8)?,
            number(bytes, at.checked_add(0x20)?, 8)?.min(NOTES_MAX),
        )?;
        let mut at = 0u64;
        loop {
            let (name_length, length, kind) =
                (number(notes, at, 4)?, number(notes, at + 4, 4)?, number(notes, at + 8, 4)?);
            let name = range(notes, at + 12, name_length)?;
            if name == PVH_NOTE.0 && kind == u64::from(PVH_NOTE.1) {
                return Some(());
            }
            at += 12 + name_length.next_multiple_of(4) + length.next_multiple_of(4);
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.extend(bytes);
            let _ = section(&elf, b".modinfo");
            let _ = has_pvh_entry(&elf);
        }
    }
}
