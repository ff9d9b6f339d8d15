//! Fuzzing of the small things that callers write: names, ids, sizes, shares, templates.

use std::fmt::Display;
use std::str::FromStr;

use microvm_fuzz::Fuzz;
use microvm_types::template::{Overrides, Template};
use microvm_types::{ByteSize, Name, ProcessId, Share, SnapshotId, VmId, VmRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most characters of a message about a text, however long that is: messages go to logs and terminals.
const MESSAGE_MAX: usize = 600;

/// What is accepted and shown is accepted again, as the same.
fn text<T: FromStr<Err: Display> + Display + PartialEq>(text: &str) -> String {
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string().parse::<T>().ok();
            assert!(again.is_some_and(|again| again == value), "`{value}` is read as something else");
            "fine".to_owned()
        }
        Err(error) => short(&error),
    }
}

fn short(error: &impl Display) -> String {
    let text = error.to_string();
    assert!(text.chars().count() <= MESSAGE_MAX, "a message has {} bytes", text.len());
    text
}

/// What is read from JSON is read again from what is written of it, as the same.
fn json<T: DeserializeOwned + Serialize + PartialEq>(bytes: &[u8]) -> String {
    match serde_json::from_slice::<T>(bytes) {
        Ok(value) => {
            let written = serde_json::to_vec(&value).unwrap_or_default();
            let again = serde_json::from_slice::<T>(&written).ok();
            assert!(again.is_some_and(|again| again == value), "{}", String::from_utf8_lossy(&written));
            "fine".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_and_ids() {
    Fuzz::new("names")
        .seed(*b"my-name_1")
        .seed(*b"0123456789abcdefghij")
        .seed(*b"startcommand00000001")
        .words(&[b"-", b"_", b"/", b"..", "ä".as_bytes(), b"\n", b"\0"])
        .run(|bytes| {
            let given = String::from_utf8_lossy(bytes);
            if let Ok(id) = given.parse::<VmId>() {
                // Nothing may be assumed of an id but its form.
                let _ = (id.as_u128(), id.time_ms());
            }
            if let Ok(name) = given.parse::<Name>() {
                let host = name.to_host_name();
                assert!((1..=63).contains(&host.len()) && !host.starts_with('-'), "{host}");
                assert!(!name.as_str().contains(['/', '.', '\0']), "a name is used as the name of a file");
            }
            let all = [
                text::<Name>(&given),
                text::<VmRef>(&given),
                text::<VmId>(&given),
                text::<SnapshotId>(&given),
                text::<ProcessId>(&given),
                json::<Name>(bytes),
                json::<VmId>(bytes),
            ];
            all.concat()
        });
}

#[test]
fn sizes_and_shares() {
    Fuzz::new("sizes")
        .seed(*b"512MiB")
        .seed(*b"1.5G")
        .seed(*b"./data:/data:ro")
        .seed(*b"/a:b:/c:rw")
        .words(&[b":", b":ro", b":rw", b"/", b"..", b"KiB", b"TB", b"P", b"e", b"."])
        .run(|bytes| {
            let given = String::from_utf8_lossy(bytes);
            // Sizes are shown to one decimal, so what is shown is not read again.
            let size = given.parse::<ByteSize>();
            let mut outcome = size.as_ref().map_or_else(short, ByteSize::to_string);
            match given.parse::<Share>() {
                Ok(share) => {
                    assert!(!share.target.split('/').any(|part| part == ".."), "{share:?}");
                    outcome.push_str(if share.check().is_ok() { "sound" } else { "relative" });
                }
                Err(error) => outcome.push_str(&error.to_string()),
            }
            outcome
        });
}

#[test]
fn templates_and_overrides_as_json() {
    let template = br#"{"name":"t","image":"i","kernel":"k","kernel_arguments":["a"],"vcpus":2,"memory_mib":256,
        "disk_mib":1024,"network":"isolated","environment":{"A":"1"},"start_commands":["true"],"warm_up":["x"],
        "init":{"image":"/sbin/init"},"boot_timeout_ms":5,"labels":{"a":"b"},
        "extra_disks":[{"name":"d","path":"/p","read_only":true,"format":"raw"}],
        "shares":[{"source":"/s","target":"/t","read_only":false}],
        "hooks":[{"at":"before_start","program":["/bin/true"],"timeout_ms":50,"on_failure":"ignore"},
                 {"at":"after_stop","webhook":"http://h/"}]}"#;
    Fuzz::new("templates")
        .seed(*template)
        .seed(*br#"{"vcpus":4,"init":"agent","environment":{"B":"2"},"hooks":[]}"#)
        .words(&[
            b"null",
            b"{}",
            b"[]",
            b"\"\"",
            b"-1",
            b"1e400",
            b"\"webhook\":\"x\",",
            b"\"init\":\"agent\",",
        ])
        .memory(1 << 20, 256)
        .run(|bytes| [json::<Template>(bytes), json::<Overrides>(bytes)].concat());
}
