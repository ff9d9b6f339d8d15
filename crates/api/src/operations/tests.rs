use std::collections::BTreeSet;

use super::*;
use crate::operation::{Method, Operation, Retry};
use crate::query;

#[test]
fn rows_differ_and_are_whole() {
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    for row in all() {
        assert!(names.insert(row.name), "{} twice", row.name);
        assert!(places.insert((row.method.as_str(), row.path)), "{} {} twice", row.method.as_str(), row.path);
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        assert!(row.name.split('.').count() == 2 && row.name.split('.').all(plain), "{}", row.name);
        assert!(row.path.starts_with('/') && !row.path.ends_with('/'), "{}", row.name);
        let braces: Vec<&str> =
            row.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(braces, row.path_names, "{}", row.name);
        assert!(!row.summary().is_empty() && !row.summary().contains('\n'), "{}", row.name);
        // What is read may be read again; a stream into a guest may not.
        let reads = row.method == Method::Get && row.status != 101;
        assert!(!reads || row.retry == Retry::Safe, "{}", row.name);
    }
    assert!(names.len() > 70, "only {} rows", names.len());
}

/// Every query struct is written and read by the same format: one that no parameter can carry is found here.
#[test]
fn queries_come_back() {
    fn again<O: Operation>(query: &str) {
        let read: O::Query = query::read(query).unwrap();
        let written = query::write(&read).unwrap();
        let second: O::Query = query::read(written.strip_prefix('?').unwrap_or_default()).unwrap();
        assert_eq!(query::write(&second).unwrap(), written, "{}", O::NAME);
    }
    again::<vm::List>("label=a%3Db&label=c%3Dd&state=running&name=x&waiting=true");
    again::<vm::Start>("cold");
    again::<vm::Console>("limit=5&offset=6");
    again::<vm::Wait>("state=running&state=paused&gone=true&timeout_seconds=5");
    again::<event::Follow>("vm=dev&vm=00000000000000000000&state=stopped");
    again::<file::Read>("path=/a%FF&offset=1&length=2");
    again::<file::Write>("path=/a&mode=0644&owner=1:2&parents=1&modified=-1.5");
    again::<file::Remove>("path=/a&recursive");
    again::<file::List>("path=/a&depth=3");
    again::<file::MakeDir>("path=/a&mode=700&parents&owner=root");
    again::<file::Rename>("from=/a&to=/b");
    again::<file::Watch>("path=/a&recursive=true");
    again::<file::Pull>("path=/a&exclude=x&exclude=%FF&holes=1");
    again::<file::Push>("path=/a&owner=");
    again::<snapshot::List>("vm=a&golden=true");
    again::<snapshot::CleanUp>("days_old=1&older_than_seconds=2&keep=3&named=true");
    again::<snapshot::Remove>("cascade=true");
    again::<snapshot::Create>("incremental=false");
    again::<vm::Delete>("forget_disks");
    again::<vm::Get>("");
    assert!(query::read::<<vm::Get as Operation>::Query>("whatever").is_err());
}

#[test]
fn each_operation_of_the_engine_has_one_row_in_the_order_of_its_table() {
    let rows: Vec<_> = all().map(|row| row.name).collect();
    let table: Vec<_> =
        microvm_types::OperationName::ALL.iter().map(|operation| operation.as_str()).collect();
    assert_eq!(rows, table);
}
