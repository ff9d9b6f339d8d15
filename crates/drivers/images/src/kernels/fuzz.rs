//! Fuzzing of kernels and modules, which come from packages or from the user.

use microvm_fuzz::Fuzz;

use super::{bzimage, elf};

/// An ELF file with one program header that names a note, and one section with a name.
fn sound() -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01");
    put(0x20, &0x40u64.to_le_bytes());
    put(0x36, &[56, 0, 1, 0]);
    put(0x28, &0x80u64.to_le_bytes());
    put(0x3a, &[64, 0, 1, 0, 0, 0]);
    put(0x40, &4u32.to_le_bytes());
    put(0x48, &0x100u64.to_le_bytes());
    put(0x60, &20u64.to_le_bytes());
    put(0x98, &0x180u64.to_le_bytes());
    put(0xa0, &16u64.to_le_bytes());
    put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 1, 2, 3, 4]);
    put(0x180, b".modinfo\0");
    bytes
}

fn boot_image(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    bytes[0x1f1] = 1;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    bytes[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn kernels_and_modules() {
    let packed = zstd::encode_all(&sound()[..], 1).unwrap();
    assert!(elf::has_pvh_entry(&sound()) && elf::section(&sound(), b".modinfo").is_some());
    assert!(bzimage::extract_vmlinux(&boot_image(&packed)).is_some());
    // A kernel may have 512 MiB when it is unpacked.
    Fuzz::new("kernels")
        .seed(sound())
        .seed(boot_image(&packed))
        .seed(boot_image(
            &[&[0x02, 0x21, 0x4c, 0x18][..], &[5, 0, 0, 0], b"\x40abcd", &[4, 0, 0, 0]].concat(),
        ))
        .words(&[b"HdrS", b"\x7fELF\x02\x01", b"Xen\0", b"Linux version 6.1 ", b".modinfo\0"])
        .memory(1 << 30, 64)
        .run(|bytes| {
            let found = (
                elf::has_pvh_entry(bytes),
                elf::section(bytes, b".modinfo").is_some(),
                bzimage::release(bytes).is_some(),
                bzimage::extract_vmlinux(bytes).is_some(),
            );
            format!("{found:?}")
        });
}

#[test]
fn headers_that_all_name_the_same_take_no_time() {
    // 65,535 headers, all the first one, over half a megabyte of empty notes, and as many sections without names.
    let mut bytes = sound();
    bytes[0x36..0x3a].copy_from_slice(&[0, 0, 0xff, 0xff]);
    bytes[0x3a..0x3e].copy_from_slice(&[0, 0, 0xff, 0xff]);
    bytes[0x60..0x68].copy_from_slice(&0x8_0000u64.to_le_bytes());
    bytes[0xa0..0xa8].copy_from_slice(&0x8_0000u64.to_le_bytes());
    bytes.resize(0x9_0000, 1);
    bytes[0x100..0x8_0000].fill(0);
    let begun = std::time::Instant::now();
    assert!(!elf::has_pvh_entry(&bytes) && elf::section(&bytes, b".missing").is_none());
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}
