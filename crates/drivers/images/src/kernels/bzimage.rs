//! Takes the uncompressed kernel out of a bzImage.
//!
//! Under emulation the kernel's own unpacking costs most of a second of every boot; here it costs that once. Source of the
//! offsets: kernel `Documentation/x86/boot.rst`.

use std::io::Read;

use super::elf;

/// Largest kernel that is believed.
const UNPACKED_MAX: u64 = 512 << 20;
/// LZ4's "legacy" frame, as the kernel's build uses it: blocks of at most 8 MiB, each behind its length.
const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const LZ4_BLOCK: usize = 8 << 20;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// True if the bytes are an x86 boot image.
pub(crate) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// The release the image says it has.
pub(crate) fn release(bytes: &[u8]) -> Option<String> {
    if is_bzimage(bytes) {
        let at = usize::from(u16_at(bytes, 0x20e)?) + 0x200;
        return word(bytes.get(at..)?);
    }
    let mark = b"Linux version ";
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    word(&bytes[at + mark.len()..])
}

fn word(bytes: &[u8]) -> Option<String> {
    let word: Vec<u8> = bytes.iter().take(80).take_while(|byte| byte.is_ascii_graphic()).copied().collect();
    String::from_utf8(word).ok().filter(|word| !word.is_empty())
}

/// The `vmlinux` inside, if it is there and can be entered directly.
pub(crate) fn extract_vmlinux(bytes: &[u8]) -> Option<Vec<u8>> {
    // Images of older protocols do not say where the packed kernel is.
    if !is_bzimage(bytes) || u16_at(bytes, 0x206)? < 0x0208 {
        return None;
    }
    // 0 stands for 4; the boot sector before them is not counted.
    let setup_sectors = match *bytes.get(0x1f1)? {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + usize::try_from(u32_at(bytes, 0x248)?).ok()?;
    let length = usize::try_from(u32_at(bytes, 0x24c)?).ok()?;
    let payload = bytes.get(start..start.checked_add(length)?)?;
    let unpacked = unpack(payload)?;
    elf::has_pvh_entry(&unpacked).then_some(unpacked)
}

fn unpack(payload: &[u8]) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    // Behind the packed bytes the length of the unpacked ones is written, which streaming decoders must not take for theirs.
    let reader: Box<dyn Read> = match payload {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(payload).ok()?.single_frame())
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::bufread::XzDecoder::new(payload)),
        _ if payload.starts_with(&LZ4_LEGACY) => return lz4_legacy(&payload[4..]),
        _ => return None,
    };
    reader.take(UNPACKED_MAX).read_to_end(&mut unpacked).ok()?;
    Some(unpacked)
}

fn lz4_legacy(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    // The last four bytes are the length, see above.
    while rest.len() > 4 {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let packed = rest.get(4..4usize.checked_add(length)?)?;
        let count = lz4_flex::block::decompress_into(packed, &mut block).ok()?;
        unpacked.extend_from_slice(&block[..count]);
        if unpacked.len() as u64 > UNPACKED_MAX {
            return None;
        }
        rest = &rest[4 + length..];
    }
    (u32_at(rest, 0).map(u64::from) == Some(unpacked.len() as u64)).then_some(unpacked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_image_is_answered_without_panic(head in prop::collection::vec(any::<u8>(), 0x260), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = head;
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            bytes.extend(payload);
            let _ = extract_vmlinux(&bytes);
            let _ = release(&bytes);
            let _ = lz4_legacy(&bytes);
        }
    }

    #[test]
    fn lz4_blocks_are_joined_and_the_length_is_checked() {
        let mut frame = Vec::new();
        for part in [&[1u8; 1000][..], &[2; 500]] {
            let packed = lz4_flex::block::compress(part);
            frame.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            frame.extend(packed);
        }
        let sound = [&frame[..], &1500u32.to_le_bytes()].concat();
        assert_eq!(lz4_legacy(&sound).unwrap().len(), 1500);
        let wrong = [&frame[..], &1501u32.to_le_bytes()].concat();
        assert!(lz4_legacy(&wrong).is_none());
    }
}
