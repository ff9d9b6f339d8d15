//! Finds out by magic bytes how a stream is compressed, and unpacks it in this process.

use std::io::{self, BufReader, Read};

use microvm_durable::error::bad_input;
use microvm_ports::StorageError;

/// Dictionary size of xz and window of zstd are bounded, so that a small archive cannot ask for all our memory.
const DECODER_MEMORY: u64 = 256 << 20;
/// The same as a power of two, for zstd.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Compression of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    /// By the first bytes (6 are enough).
    pub(crate) fn of(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(start) {
            Self::Zstd
        } else if start.starts_with(b"\xfd7zXZ\0") {
            Self::Xz
        } else if start.starts_with(b"BZh") {
            Self::Bzip2
        } else {
            Self::None
        }
    }
}

/// True if a frame of zstd begins here that holds no data (RFC 8878, 3.1.2): pzstd has one before each frame with data.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// A reader of the unpacked bytes of `reader`.
pub(crate) fn decompress<'a>(
    what: &str,
    mut reader: impl Read + 'a,
) -> Result<Box<dyn Read + 'a>, StorageError> {
    let mut start = Vec::with_capacity(6);
    reader.by_ref().take(6).read_to_end(&mut start).map_err(|error| bad_input(what, error.to_string()))?;
    let kind = Compression::of(&start);
    let reader = BufReader::with_capacity(1 << 16, io::Cursor::new(start).chain(reader));
    unpack(kind, reader).map_err(|error| bad_input(what, error.to_string()))
}

fn unpack<'a>(kind: Compression, reader: BufReader<impl Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match kind {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(reader, stream))
        }
        Compression::Bzip2 => {
            return Err(io::Error::other(
                "it is compressed with bzip2; unpack it first, or use gzip, zstd or xz",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_kind_is_unpacked_and_bzip2_is_named() {
        let data = vec![7; 300_000];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        let zstd = zstd::encode_all(&data[..], 1).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&data).unwrap();
        let pzstd = [b"\x5f\x2a\x4d\x18\x04\0\0\0abcd", &zstd[..]].concat();
        for packed in [data.clone(), gzip.finish().unwrap(), zstd, pzstd, xz.finish().unwrap()] {
            let mut unpacked = Vec::new();
            decompress("x", &packed[..]).unwrap().read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == data);
        }
        assert!(decompress("x", &b"BZh91AY"[..]).err().unwrap().to_string().contains("bzip2"));
    }
}
