//! Fuzzing of what a snapshot is read from: the index of packed pages, its manifest, and the head of an exported file.

use microvm_durable::manifest;
use microvm_fuzz::Fuzz;
use microvm_ports::branch::PageRange;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::export_format::ExportManifest;
use super::manifest::{SnapshotManifest, check_description};
use super::page_file::{Content, Run, content_pages, content_start, decode_index, encode_index};
use super::part::{Part, PartHasher};

/// Pages of the memory that is tried.
const PAGES: u64 = 1_000;

/// Makes the checksum of an index right.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < 48 {
        return;
    }
    let entries = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
    let end = usize::try_from(entries.saturating_mul(16).saturating_add(48)).unwrap_or(usize::MAX);
    let mut sum = xxhash_rust::xxh64::Xxh64::new(0);
    sum.update(&bytes[..40]);
    sum.update(bytes.get(48..end).unwrap_or_default());
    bytes[40..48].copy_from_slice(&sum.digest().to_le_bytes());
}

#[test]
fn indexes_of_packed_pages() {
    let run = |first, count, zero, at| Run {
        range: PageRange { first, count },
        content: if zero { Content::Zero } else { Content::At(at) },
    };
    let sound = |runs: &[Run]| {
        let mut bytes = encode_index(PAGES, runs);
        let content = content_pages(runs) * 4_096;
        bytes.resize(bytes.len() + usize::try_from(content).unwrap(), 7);
        bytes
    };
    Fuzz::new("pages")
        .seed(sound(&[]))
        .seed(sound(&[run(0, 2, true, 0), run(5, 1, false, 4_096), run(990, 10, true, 0)]))
        .words(&[&[0; 16], &[0xff; 8], b"MVMPAGES"])
        .repair(repair)
        .run(|bytes| {
            let read = |buffer: &mut [u8], at: u64| {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let part = at.checked_add(buffer.len()).and_then(|end| bytes.get(at..end));
                part.map(|part| buffer.copy_from_slice(part)).ok_or(std::io::ErrorKind::UnexpectedEof.into())
            };
            match decode_index(bytes.len() as u64, PAGES, read) {
                Ok(runs) => {
                    let start = usize::try_from(content_start(runs.len() as u64)).unwrap();
                    assert!(encode_index(PAGES, &runs) == bytes[..start], "an index changes on its way");
                    format!("fine {}", "r".repeat(runs.len().min(50)))
                }
                Err(bad) => bad.0,
            }
        });
}

/// A body in an envelope with the right checksum: read, judged, written, and read again.
fn body<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    judge: fn(&T),
) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return "no text".to_owned() };
    let sum = microvm_durable::files::sha256(format!("1\n{text}").as_bytes());
    let envelope = format!(r#"{{"format_version":1,"sha256":"{sum}","body":{text}}}"#);
    match manifest::decode::<T>(envelope.as_bytes()) {
        Ok(value) => {
            judge(&value);
            assert_eq!(manifest::decode::<T>(&manifest::encode(&value)), Ok(value));
            "fine".to_owned()
        }
        Err(error) => error,
    }
}

fn judge_part(part: &Part) {
    let sound = part.is_sound();
    let found = Part::of_like(b"other bytes", part);
    if let Some(damage) = part.damage("x", &found) {
        assert!(!sound || damage.first_byte <= damage.end_byte, "{damage:?}");
    }
}

fn judge(snapshot: &SnapshotManifest) {
    let _ = (snapshot.pages(), check_description(&snapshot.description).is_ok());
    snapshot.state().for_each(|state| judge_part(state.part));
    judge_part(&snapshot.memory.file);
    snapshot.disk.layers.iter().for_each(|layer| judge_part(&layer.file));
}

#[test]
fn manifests_of_snapshots() {
    let part = serde_json::to_string(&Part::of(b"some bytes")).unwrap();
    let large = serde_json::to_string(&PartHasher::new(1 << 40).finish()).unwrap();
    let id = "0123456789abcdefghij";
    let disk = format!(
        r#"{{"disk_mib":64,"base":"b","base_sha256":"{}","layers":[{{"id":"{id}","file":{part}}}]}}"#,
        "ab".repeat(32)
    );
    let description = r#"{"memory_mib":64,"disk_mib":64,"discovery":"command_line","compatibility":{"VMM":"x"},"record":{}}"#;
    let snapshot = format!(
        r#"{{"id":"{id}","parent":null,"description":{description},"device_state":{part},
            "memory":{{"file":{large},"content_bytes":0,"depth":0}},"disk":{disk}}}"#
    );
    Fuzz::new("manifests")
        .seed(snapshot.clone())
        .seed(
            snapshot.replace(
                "\"memory\":{",
                &format!("\"state_parts\":{{\"configuration\":{part}}},\"memory\":{{"),
            ),
        )
        .seed(format!(r#"{{"snapshot":{snapshot},"base":{part}}}"#))
        .seed(part)
        .words(&[
            b"null",
            b"[]",
            b"{}",
            b"\"\"",
            b"18446744073709551615",
            b"4294967295",
            b"\"piece_length\":0,",
        ])
        .memory(1 << 20, 256)
        .run(|bytes| {
            let all = [
                body::<SnapshotManifest>(bytes, judge),
                body::<Part>(bytes, judge_part),
                serde_json::from_slice::<ExportManifest>(bytes).map_or_else(
                    |error| error.to_string(),
                    |export| {
                        judge(&export.snapshot);
                        judge_part(&export.base);
                        "fine".to_owned()
                    },
                ),
            ];
            all.concat()
        });
}
