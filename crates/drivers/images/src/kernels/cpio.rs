//! Writes initial file systems: the "newc" form of cpio, uncompressed (kernel `Documentation/driver-api/early-userspace/buffer-format.rst`).

/// Type bits of directories, files and character devices.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Builds an archive in memory. Everything belongs to root and is of 1970, so equal content gives equal bytes.
pub(crate) struct CpioWriter {
    bytes: Vec<u8>,
    inode: u32,
}

impl CpioWriter {
    /// An empty archive.
    pub(crate) const fn new() -> Self {
        Self { bytes: Vec::new(), inode: 0 }
    }

    /// A directory; `name` without a leading slash, here and below.
    pub(crate) fn directory(&mut self, name: &str, mode: u32) {
        self.entry(name, DIRECTORY | mode, (0, 0), &[]);
    }

    /// A file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, FILE | mode, (0, 0), content);
    }

    /// A character device.
    pub(crate) fn character_device(&mut self, name: &str, mode: u32, device: (u32, u32)) {
        self.entry(name, CHARACTER_DEVICE | mode, device, &[]);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        // Wraps to 0, the number of the trailer.
        self.inode = u32::MAX;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).expect("the agent and modules are far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are our own and short");
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads what was written: name, mode, content.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            let name_end = at + 110 + field(11) as usize;
            let name = String::from_utf8(bytes[at + 110..name_end - 1].to_vec()).unwrap();
            let data = name_end.next_multiple_of(4);
            let end = data + field(6) as usize;
            if name == "TRAILER!!!" {
                assert_eq!(end.next_multiple_of(4), bytes.len());
                return found;
            }
            found.push((name, field(1), bytes[data..end].to_vec()));
            at = end.next_multiple_of(4);
        }
    }

    proptest! {
        #[test]
        fn round_trips(files in prop::collection::vec(("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..40)), 0..6)) {
            let mut writer = CpioWriter::new();
            writer.directory("dev", 0o755);
            for (name, content) in &files {
                writer.file(name, 0o644, content);
            }
            let found = read(&writer.finish());
            prop_assert_eq!(found.len(), files.len() + 1);
            for (found, file) in found[1..].iter().zip(&files) {
                prop_assert_eq!(found, &(file.0.clone(), FILE | 0o644, file.1.clone()));
            }
        }
    }
}
