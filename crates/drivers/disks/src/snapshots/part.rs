//! Parts of a snapshot: their lengths and checksums, computed while they are written or read, once.
//!
//! SHA-256 over the whole part decides whether it is what was written; XXH64 over pieces of it tells where it is not.

use std::fs::File;
use std::io::Read;

use camino::Utf8Path;
use microvm_durable::cancel::Cancel;
use microvm_durable::error::io_error;
use microvm_durable::files::{hex, is_sha256, remove_all};
use microvm_durable::manifest;
use microvm_durable::stamp::Stamp;
use microvm_ports::StorageError;
use microvm_ports::snapshot::Damage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh64::Xxh64;

/// A damaged range is told as exactly as this many pieces allow, or by pages.
const PIECES_MAX: u64 = 256;
const PIECE_MIN: u64 = 4096;
/// Bytes read at once.
const BUFFER: usize = 1 << 18;

/// Length and checksums of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) length: u64,
    pub(crate) sha256: String,
    /// Bytes of each piece but the last.
    pub(crate) piece_length: u64,
    /// XXH64 of each piece in hexadecimal.
    pub(crate) pieces: Vec<String>,
}

/// Checksums kept beside a part, so that it is hashed again only after it was changed.
#[derive(Serialize, Deserialize)]
struct Measured {
    stamp: Stamp,
    part: Part,
}

/// Bytes of a piece of a part of `length` bytes.
pub(crate) fn piece_length(length: u64) -> u64 {
    length.div_ceil(PIECES_MAX).next_power_of_two().max(PIECE_MIN)
}

/// Computes a part's checksums from its bytes in order.
pub(crate) struct PartHasher {
    length: u64,
    sha256: Sha256,
    piece_length: u64,
    piece: Xxh64,
    in_piece: u64,
    pieces: Vec<String>,
}

impl PartHasher {
    /// For a part that is known to become `length` bytes long.
    pub(crate) fn new(length: u64) -> Self {
        Self::with_pieces(piece_length(length))
    }

    fn with_pieces(piece_length: u64) -> Self {
        Self {
            length: 0,
            sha256: Sha256::new(),
            piece_length,
            piece: Xxh64::new(0),
            in_piece: 0,
            pieces: Vec::new(),
        }
    }

    /// More bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.sha256.update(bytes);
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = usize::try_from(self.piece_length - self.in_piece).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.update(now);
            self.in_piece += now.len() as u64;
            if self.in_piece == self.piece_length {
                self.end_piece();
            }
            bytes = later;
        }
    }

    fn end_piece(&mut self) {
        self.pieces.push(format!("{:016x}", self.piece.digest()));
        self.piece.reset(0);
        self.in_piece = 0;
    }

    /// The part.
    pub(crate) fn finish(mut self) -> Part {
        if self.in_piece > 0 {
            self.end_piece();
        }
        let sha256 = hex(&self.sha256.finalize());
        Part { length: self.length, sha256, piece_length: self.piece_length, pieces: self.pieces }
    }
}

impl Part {
    /// The part of bytes in memory.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut hasher = PartHasher::new(bytes.len() as u64);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The part of bytes in memory, in pieces as `other` has them.
    pub(crate) fn of_like(bytes: &[u8], other: &Self) -> Self {
        let mut hasher = PartHasher::with_pieces(other.piece_length.max(1));
        hasher.update(bytes);
        hasher.finish()
    }

    /// True if the numbers fit each other; for manifests from elsewhere.
    pub(crate) fn is_sound(&self) -> bool {
        self.piece_length == piece_length(self.length)
            && self.pieces.len() as u64 == self.length.div_ceil(self.piece_length)
            && self
                .pieces
                .iter()
                .all(|piece| piece.len() == 16 && piece.bytes().all(|b| b.is_ascii_hexdigit()))
            && is_sha256(&self.sha256)
    }

    /// First difference between `found` and this part; `None` if they are equal.
    pub(crate) fn damage(&self, name: &str, found: &Self) -> Option<Damage> {
        if self.sha256 == found.sha256 && self.length == found.length {
            return None;
        }
        let shorter = self.length.min(found.length);
        let longer = self.length.max(found.length);
        let whole =
            |index: usize| (index as u64 + 1) * self.piece_length <= shorter || self.length == found.length;
        let differs = |index: &usize| whole(*index) && self.pieces.get(*index) != found.pieces.get(*index);
        let pieces = self.pieces.len().max(found.pieces.len());
        let first = (0..pieces).find(differs).map(|index| index as u64 * self.piece_length);
        let last = (0..pieces).rev().find(differs).map(|index| (index as u64 + 1) * self.piece_length);
        let (first_byte, end_byte) = if self.length == found.length {
            // Equal pieces and another SHA-256 do not happen by accident: then all of it is doubtful.
            (first.unwrap_or(0), last.unwrap_or(longer).min(longer))
        } else {
            (first.unwrap_or(shorter), longer)
        };
        let detail = if self.length == found.length {
            format!("its SHA-256 should be {}, but is {}", self.sha256, found.sha256)
        } else {
            format!("it should have {} bytes, but has {}", self.length, found.length)
        };
        Some(Damage { part: name.to_owned(), first_byte, end_byte, detail })
    }

    /// First difference between the file and this part. The checksums in `beside` are trusted while the file was not changed since.
    pub(crate) fn find_damage(
        &self,
        name: &str,
        file: &Utf8Path,
        beside: &Utf8Path,
        cancel: &Cancel,
    ) -> Result<Option<Damage>, StorageError> {
        if !microvm_durable::files::exists(file) {
            return Ok(Some(self.missing(name)));
        }
        // In pieces as the manifest has them: sums of other pieces could not be compared.
        let found = measure(file, Some(self.piece_length), beside, cancel)?;
        Ok(self.damage(name, &found))
    }

    /// The part as its file is now, by all of its content, and the first difference from this part. A missing file is an empty part.
    pub(crate) fn read_now(
        &self,
        name: &str,
        file: &Utf8Path,
        beside: &Utf8Path,
        cancel: &Cancel,
    ) -> Result<(Self, Option<Damage>), StorageError> {
        if !microvm_durable::files::exists(file) {
            return Ok((Self::of_like(&[], self), Some(self.missing(name))));
        }
        let now = hash(file, Some(self.piece_length), cancel)?;
        let found = self.damage(name, &now);
        if found.is_some() {
            // The next use looks again as well.
            remove_all(beside)?;
        }
        Ok((now, found))
    }

    fn missing(&self, name: &str) -> Damage {
        Damage {
            part: name.to_owned(),
            first_byte: 0,
            end_byte: self.length,
            detail: "the file is missing".to_owned(),
        }
    }
}

fn hash(file: &Utf8Path, piece: Option<u64>, cancel: &Cancel) -> Result<Part, StorageError> {
    let mut source = File::open(file).map_err(io_error("opening", file))?;
    let length = source.metadata().map_err(io_error("examining", file))?.len();
    let mut hasher = PartHasher::with_pieces(piece.unwrap_or_else(|| piece_length(length)));
    let mut buffer = vec![0; BUFFER];
    loop {
        cancel.check()?;
        let count = source.read(&mut buffer).map_err(io_error("reading", file))?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
    }
}

/// The part that a file is now, from what is kept in `beside` if the file was not changed since.
pub(crate) fn measure(
    file: &Utf8Path,
    piece: Option<u64>,
    beside: &Utf8Path,
    cancel: &Cancel,
) -> Result<Part, StorageError> {
    let stamp = Stamp::of(file)?;
    let kept = std::fs::read(beside).ok().and_then(|bytes| manifest::decode::<Measured>(&bytes).ok());
    if let Some(kept) = kept
        && kept.stamp == stamp
        && piece.is_none_or(|piece| piece == kept.part.piece_length)
    {
        return Ok(kept.part);
    }
    let part = hash(file, piece, cancel)?;
    // A stamp taken before the reading: a change while it was read is seen the next time.
    keep(stamp, &part, beside);
    Ok(part)
}

/// Remembers a part that was hashed while it was written.
pub(crate) fn remember(file: &Utf8Path, part: &Part, beside: &Utf8Path) {
    if let Ok(stamp) = Stamp::of(file) {
        keep(stamp, part, beside);
    }
}

fn keep(stamp: Stamp, part: &Part, beside: &Utf8Path) {
    // What cannot be kept costs time, nothing else. No sync: a torn one fails its own checksum. A name of its own for each
    // thread, because two may verify the same part at once.
    let temporary = format!("{beside}.{:?}", std::thread::current().id()).replace(['(', ')'], "-");
    let temporary = Utf8Path::new(&temporary);
    let body = manifest::encode(&Measured { stamp, part: part.clone() });
    if std::fs::write(temporary, body).and_then(|()| std::fs::rename(temporary, beside)).is_err() {
        let _ = remove_all(temporary);
        tracing::debug!(path = %beside, "a checksum could not be kept");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_flipped_bit_is_found_in_its_piece(length in 1usize..60_000, at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
            let mut bytes: Vec<u8> = (0..=250u8).cycle().step_by(31).take(length).collect();
            let sound = Part::of(&bytes);
            prop_assert!(sound.is_sound());
            prop_assert_eq!(sound.damage("x", &sound), None);
            let at = at.index(length);
            bytes[at] ^= 1;
            let damage = sound.damage("x", &Part::of(&bytes)).unwrap();
            prop_assert!(damage.first_byte <= at as u64 && (at as u64) < damage.end_byte);
            prop_assert!(damage.end_byte - damage.first_byte <= 4096);
            bytes[at] ^= 1;
            let cut = cut.index(length);
            let mut hasher = PartHasher::with_pieces(sound.piece_length);
            hasher.update(&bytes[..cut]);
            let damage = sound.damage("x", &hasher.finish()).unwrap();
            prop_assert_eq!((damage.first_byte, damage.end_byte), (cut as u64, length as u64));
        }

        #[test]
        fn any_split_gives_the_same_sums(bytes in prop::collection::vec(any::<u8>(), 0..20_000), at in any::<prop::sample::Index>()) {
            let at = at.index(bytes.len() + 1);
            let mut hasher = PartHasher::new(bytes.len() as u64);
            hasher.update(&bytes[..at]);
            hasher.update(&bytes[at..]);
            prop_assert_eq!(hasher.finish(), Part::of(&bytes));
        }
    }
}
