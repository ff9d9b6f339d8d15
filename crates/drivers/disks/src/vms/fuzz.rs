//! Fuzzing of qcow2 files: headers of strangers, and tables that a VMM under its guest's control wrote.

use camino::Utf8Path;
use microvm_durable::manifest;
use microvm_fuzz::Fuzz;

use super::qcow2::{Qcow2Error, Qcow2Header, is_empty_overlay};
use super::qcow2_map::{CLUSTER, Cluster, Qcow2Map};
use super::{manifest::DiskManifest, qcow2_overlay};

/// Size of the disk that is tried.
const DISK: u64 = 1 << 30;

#[test]
fn headers_of_disks() {
    let mut sound = qcow2_overlay::encode(DISK, "/base");
    let with_backing = sound[..600].to_vec();
    sound[8..20].fill(0);
    sound.truncate(600);
    // Behind the header stands how long the file is.
    let length = (1u64 << 20).to_le_bytes();
    Fuzz::new("qcow2")
        .seed([&sound[..], &length].concat())
        .seed([&with_backing[..], &length].concat())
        .words(&[b"QFI\xfb", b"DATA", b"\0\0\0\x03", b"\xe2\x79\x2a\xca", b"\0\0\0\x10"])
        .run(|bytes| {
            let Some((header, length)) = bytes.split_last_chunk::<8>() else { return String::new() };
            match Qcow2Header::parse(header, u64::from_le_bytes(*length)) {
                Ok(found) => {
                    assert!(header[8..20].iter().all(|byte| *byte == 0), "it names a file below it");
                    assert!((2..=3).contains(&found.version) && (9..=21).contains(&found.cluster_bits));
                    format!("fine {found:?}")
                }
                Err(error @ Qcow2Error::Field(name)) => format!("{error} {name}"),
                Err(error) => error.to_string(),
            }
        });
}

#[test]
fn tables_of_tops() {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().join("top");
    let cluster = usize::try_from(CLUSTER).unwrap();
    let mut sound = qcow2_overlay::encode(DISK, "x");
    sound.resize(6 * cluster, 0);
    // An input is a list of changes to a sound file: a place (as a number of eight bytes), and what is written there.
    let change = |at: u64, value: u64| [&(at / 8).to_be_bytes()[5..], &value.to_be_bytes()[..]].concat();
    let (first, table) = (3 * CLUSTER, 4 * CLUSTER);
    Fuzz::new("tables")
        .seed([change(first, table | (1 << 63)), change(table, 5 * CLUSTER), change(table + 8, 1)].concat())
        .seed([change(first + 8, table), change(table + 16, 1 << 62), change(table, 1 << 55)].concat())
        .seed(change(32, 0x0000_0010_ffff_ffff))
        .memory(4 << 20, 64)
        .run(|bytes| {
            let mut file = sound.clone();
            for change in bytes.chunks_exact(11) {
                let place =
                    usize::from(change[0] & 1) << 16 | usize::from(change[1]) << 8 | usize::from(change[2]);
                if let Some(target) = file.get_mut(place * 8..place * 8 + 8) {
                    target.copy_from_slice(&change[3..]);
                }
            }
            std::fs::write(&path, &file).unwrap();
            let mut outcome = format!("{} ", is_empty_overlay(&path).unwrap_or(false));
            let told = Qcow2Map::open(&path, DISK).and_then(|map| {
                for index in 0..2 {
                    for found in map.clusters(index)?.unwrap_or_default() {
                        if let Cluster::Data(at) = found {
                            assert!(at < file.len() as u64, "content outside of its file");
                            map.read(at, &mut [0; 512])?;
                            outcome.push('d');
                        }
                    }
                }
                map.check_all()
            });
            if let Err(error) = told {
                outcome.push_str(&error.to_string().replace(path.as_str(), ""));
            }
            outcome
        });
}

#[test]
fn manifests_of_disks() {
    Fuzz::new("disks")
        .seed(*br#"{"disk_mib":64,"base":"ext4-64-v1.raw","top":"scratch-1.qcow2","pending":["a"],"layers":["b"],"own":[]}"#)
        .seed(*br#"{"disk_mib":64,"base":"b","own":[{"serial":"s","bytes":5,"top":"t","base":"x","home":"/h"}],"memory_base":"m"}"#)
        .words(&[b"null", b"[]", b"../", b"-1", b"4294967296"])
        .memory(1 << 20, 256)
        .run(|bytes| {
            let Ok(value) = serde_json::from_slice::<DiskManifest>(bytes) else { return "refused" };
            let written = manifest::encode(&value);
            assert_eq!(manifest::decode::<DiskManifest>(&written), Ok(value));
            "fine"
        });
}
