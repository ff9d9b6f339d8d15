//! Saves of one machine, each of the pages that were written since the one before.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use camino::Utf8Path;
use microvm_ports::branch::{MemoryPages, PAGE_SIZE, StateMemory};

use crate::holes::pages;

const CHANGES: &str = "saved.changes";
const PREVIOUS: &str = "saved.previous";

/// Saves that a machine has made.
#[derive(Debug, Default)]
pub(crate) struct SparseSaves(u64);

fn create(path: &Utf8Path, length: u64) -> std::io::Result<File> {
    let file = File::create(path)?;
    file.set_len(length)?;
    Ok(file)
}

/// Reads page `number`.
fn page(file: &File, number: u64) -> std::io::Result<Vec<u8>> {
    let mut content = vec![0; PAGE_SIZE];
    file.read_exact_at(&mut content, number * PAGE_SIZE as u64)?;
    Ok(content)
}

impl SparseSaves {
    /// Writes those of `all` pages of the memory that differ from the save before.
    pub(crate) fn save(
        &mut self,
        directory: &Utf8Path,
        all: &MemoryPages,
        memory_mib: u32,
    ) -> std::io::Result<StateMemory> {
        let (changes, previous) = (directory.join(CHANGES), directory.join(PREVIOUS));
        let length = u64::from(memory_mib) << 20;
        match self.0 {
            // Files of an earlier machine in this directory are of another memory.
            0 => self.remove(directory),
            1 => std::fs::rename(&changes, &previous)?,
            _ => merge(&changes, &previous)?,
        }
        let before = (self.0 > 0).then(|| File::open(&previous)).transpose()?;
        let file = create(&changes, length)?;
        for (range, content) in all.iter() {
            for (number, new) in (range.first..).zip(content.chunks(PAGE_SIZE)) {
                let differs = match &before {
                    Some(before) => page(before, number)? != new,
                    None => true,
                };
                if differs {
                    file.write_all_at(new, number * PAGE_SIZE as u64)?;
                }
            }
        }
        self.0 += 1;
        Ok(StateMemory::Sparse { changes, previous: before.map(|_| previous) })
    }

    /// Removes the files of all saves.
    pub(crate) fn remove(&mut self, directory: &Utf8Path) {
        for name in [CHANGES, PREVIOUS] {
            // What stays goes with the directory of its VM.
            let _ = std::fs::remove_file(directory.join(name));
        }
        self.0 = 0;
    }
}

/// Puts the pages of one save over those of the save before.
fn merge(changes: &Utf8Path, previous: &Utf8Path) -> std::io::Result<()> {
    let (from, to) = (File::open(changes)?, OpenOptions::new().write(true).open(previous)?);
    for number in pages(changes)? {
        to.write_all_at(&page(&from, number)?, number * PAGE_SIZE as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use microvm_ports::branch::PageRange;

    use super::*;

    #[test]
    fn each_save_holds_what_was_written_since_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Utf8Path::from_path(directory.path()).unwrap();
        std::fs::write(directory.join(PREVIOUS), "of an earlier machine").unwrap();
        let mut saves = SparseSaves::default();
        let mut save = |values: [u8; 3]| {
            let data: Vec<u8> = values.into_iter().flat_map(|value| vec![value; PAGE_SIZE]).collect();
            let ranges = vec![PageRange { first: 1, count: 3 }];
            let saved = saves.save(directory, &MemoryPages { ranges, data: data.into() }, 1).unwrap();
            let StateMemory::Sparse { changes, previous } = saved else { panic!("not sparse") };
            let before = previous.map(|path| page(&File::open(path).unwrap(), 2).unwrap()[0]);
            (pages(&changes).unwrap(), before)
        };
        assert_eq!(save([1, 1, 1]), (vec![1, 2, 3], None));
        assert_eq!(save([1, 2, 1]), (vec![2], Some(1)));
        assert_eq!(save([1, 2, 3]), (vec![3], Some(2)));
        assert_eq!(save([1, 3, 3]), (vec![2], Some(2)));
        saves.remove(directory);
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}
