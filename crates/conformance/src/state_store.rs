//! Suite of every [`StateStore`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::state::{StateError, StateStore};
use microvm_types::lifecycle::Phase;
use microvm_types::vm::{Limits, PlannedShutdown, VmRecord};
use microvm_types::{LastStop, Life, Name, StopReason, VmId};

use crate::{Must, Suite};

/// Gives the suite its stores.
#[async_trait]
pub trait StateStoreHarness: Send + Sync {
    /// A new store without rows.
    async fn empty(&self) -> Arc<dyn StateStore>;

    /// Opens the data of the newest [`empty`](Self::empty) store once more, as a restarted server would; `None` for a
    /// store that lives in memory only.
    async fn reopened(&self) -> Option<Arc<dyn StateStore>>;
}

/// A record with every field filled, for tests of stores.
///
/// # Panics
/// If `name` is not a name.
#[must_use]
pub fn sample_record(number: u32, name: &str) -> VmRecord {
    let template = serde_json::json!({
        "name": "sample", "image": "debian-python", "environment": {"KEY": "wört\u{0}h \"quoted\""},
        "extra_disks": [{"name": "data", "path": "/somewhere/disk.raw", "read_only": true}],
        "hooks": [{"at": "before_start", "program": ["/bin/true"]}],
    });
    VmRecord {
        id: VmId::from_parts(1_700_000_000_000 + u64::from(number), u64::from(number)),
        name: name.parse::<Name>().must("sample name"),
        tenant: "local".to_owned(),
        created_by: "uid:0".to_owned(),
        life: Life::stored(Phase::Stopped, None, false),
        failure: Some("a reason\nof two lines".to_owned()),
        template: serde_json::from_value(template).must("sample template"),
        image_digest: format!("sha256:{number:064x}"),
        labels: BTreeMap::from([("team".to_owned(), "größe; DROP TABLE vms --'".to_owned())]),
        metadata: BTreeMap::from([("note".to_owned(), "x".repeat(5000))]),
        limits: Limits {
            pause_seconds: Some(5),
            hibernate_seconds: None,
            idle_seconds: Some(u64::from(u32::MAX) * 3),
            lifetime_seconds: None,
            ephemeral: true,
        },
        machine: Some(serde_json::json!({"driver": "fake", "data": {"pid": 1, "nested": [null, 1.5]}})),
        origin: microvm_types::vm::Origin::Boot,
        pool: None,
        epoch: u64::MAX,
        generation: 7,
        boot_ms: Some(120),
        memory_now_mib: Some(64),
        created_ms: 1_700_000_000_000 + i64::from(number),
        updated_ms: i64::MAX,
        started_ms: Some(-1),
        planned_shutdown: Some(PlannedShutdown { since_ms: 5, delay_seconds: u64::MAX, force: true }),
        last_stop: Some(LastStop {
            reason: StopReason::GuestPanic,
            at_ms: -1,
            detail: Some("of \"two\"\nlines".to_owned()),
        }),
    }
}

async fn all(store: &Arc<dyn StateStore>) -> Vec<VmRecord> {
    store.vms().await.must("reading all VMs").records
}

/// Runs every check over stores of `harness`.
///
/// # Panics
/// If a check fails.
pub async fn run(harness: &dyn StateStoreHarness) {
    let mut suite = Suite::new("state store", Duration::from_secs(30));
    suite.check("a new store has no VMs", async { assert_eq!(all(&harness.empty().await).await, []) }).await;
    suite.check("a row comes back as it went in", round_trip(harness)).await;
    suite.check("a taken name is refused and nothing is written", taken_name(harness)).await;
    suite.check("another tenant may use the same name", other_tenant(harness)).await;
    suite.check("an update replaces the whole row", update(harness)).await;
    suite.check("an update of nothing says so", update_unknown(harness)).await;
    suite.check("an update cannot take another VM's name", update_taken(harness)).await;
    suite.check("a deleted row is gone and its name free", delete(harness)).await;
    suite.check("rows come in order of creation", order(harness)).await;
    suite.check("of many inserts of one name exactly one wins", racing_inserts(harness)).await;
    suite.check("updates of many rows at once all arrive", racing_updates(harness)).await;
    suite.check("what was written is there after opening it again", durable(harness)).await;
    suite.check("documents are kept, replaced and removed by kind and key", documents(harness)).await;
    suite.finish();
}

async fn documents(harness: &dyn StateStoreHarness) {
    use microvm_ports::state::DocumentKind::{GoldenChoice, Pool};
    let store = harness.empty().await;
    let value = |text: &str| serde_json::json!({ "text": text, "number": 7 });
    for (kind, key, text) in
        [(Pool, "b", "x"), (Pool, "a", "y"), (GoldenChoice, "a", "z"), (Pool, "b", "new")]
    {
        store.put_document(kind, key, &value(text)).await.must("keeping a document");
    }
    let store = harness.reopened().await.unwrap_or(store);
    let of = async |kind| store.documents(kind).await.must("reading documents").documents;
    assert_eq!(of(Pool).await, [("a".to_owned(), value("y")), ("b".to_owned(), value("new"))]);
    assert_eq!(of(GoldenChoice).await, [("a".to_owned(), value("z"))]);
    for _ in 0..2 {
        store.delete_document(Pool, "a").await.must("removing a document");
    }
    assert_eq!(of(Pool).await, [("b".to_owned(), value("new"))]);
    assert_eq!(of(GoldenChoice).await.len(), 1, "another kind lost its document");
}

async fn round_trip(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let full = sample_record(1, "full");
    let mut bare = sample_record(2, "Bare_2");
    (bare.failure, bare.machine, bare.started_ms, bare.epoch) = (None, None, None, 0);
    bare.labels.clear();
    bare.metadata.clear();
    store.insert_vm(&full).await.must("inserting a full row");
    store.insert_vm(&bare).await.must("inserting a bare row");
    assert_eq!(all(&store).await, [full, bare]);
}

async fn taken_name(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let first = sample_record(1, "same");
    store.insert_vm(&first).await.must("inserting the first");
    let error = store.insert_vm(&sample_record(2, "same")).await.must_fail("inserting the same name again");
    assert!(matches!(&error, StateError::NameTaken(name) if name.as_str() == "same"), "wrong error: {error}");
    assert_eq!(all(&store).await, [first]);
}

async fn other_tenant(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let first = sample_record(1, "same");
    let other = VmRecord { tenant: "somebody-else".to_owned(), ..sample_record(2, "same") };
    store.insert_vm(&first).await.must("inserting for one tenant");
    store.insert_vm(&other).await.must("inserting for another tenant");
    assert_eq!(all(&store).await, [first, other]);
}

async fn update(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let other = sample_record(2, "other");
    store.insert_vm(&sample_record(1, "before")).await.must("inserting");
    store.insert_vm(&other).await.must("inserting another");
    let mut changed = sample_record(1, "after");
    changed.life = Life::stored(Phase::Running, None, false);
    changed.labels.clear();
    changed.machine = None;
    changed.failure = None;
    store.update_vm(&changed).await.must("updating");
    assert_eq!(all(&store).await, [changed, other]);
    store.insert_vm(&sample_record(3, "before")).await.must("using the name that became free");
}

async fn update_unknown(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let record = sample_record(1, "nobody");
    let error = store.update_vm(&record).await.must_fail("updating a row that is not there");
    assert!(matches!(&error, StateError::Unknown(id) if *id == record.id), "wrong error: {error}");
    assert_eq!(all(&store).await, []);
}

async fn update_taken(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let (first, second) = (sample_record(1, "first"), sample_record(2, "second"));
    store.insert_vm(&first).await.must("inserting");
    store.insert_vm(&second).await.must("inserting");
    let thief = sample_record(2, "first");
    let error = store.update_vm(&thief).await.must_fail("renaming to a taken name");
    assert!(matches!(error, StateError::NameTaken(_)), "wrong error: {error}");
    assert_eq!(all(&store).await, [first, second]);
}

async fn delete(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let record = sample_record(1, "gone");
    store.insert_vm(&record).await.must("inserting");
    store.delete_vm(&record.id).await.must("deleting");
    store.delete_vm(&record.id).await.must("deleting what is not there");
    assert_eq!(all(&store).await, []);
    store.insert_vm(&sample_record(2, "gone")).await.must("using the name again");
}

async fn order(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    for number in [30, 10, 20] {
        store.insert_vm(&sample_record(number, &format!("vm-{number}"))).await.must("inserting");
    }
    let mut touched = sample_record(10, "vm-10");
    touched.updated_ms = 0;
    store.update_vm(&touched).await.must("updating");
    let names: Vec<String> = all(&store).await.into_iter().map(|record| record.name.to_string()).collect();
    assert_eq!(names, ["vm-10", "vm-20", "vm-30"]);
}

async fn racing_inserts(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..32 {
        let store = Arc::clone(&store);
        tasks.spawn(async move { store.insert_vm(&sample_record(number, "wanted")).await });
    }
    let mut winners = 0;
    for outcome in tasks.join_all().await {
        match outcome {
            Ok(()) => winners += 1,
            Err(StateError::NameTaken(_)) => {}
            Err(error) => panic!("a loser got the wrong error: {error}"),
        }
    }
    assert_eq!((winners, all(&store).await.len()), (1, 1));
}

async fn racing_updates(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    for number in 0..16 {
        store.insert_vm(&sample_record(number, &format!("vm-{number}"))).await.must("inserting");
    }
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut record = sample_record(number, &format!("vm-{number}"));
            for epoch in 1..=8 {
                record.epoch = epoch;
                store.update_vm(&record).await.must("updating");
            }
        });
    }
    tasks.join_all().await;
    assert!(all(&store).await.iter().all(|record| record.epoch == 8), "an update was lost");
}

async fn durable(harness: &dyn StateStoreHarness) {
    let store = harness.empty().await;
    let (kept, dropped) = (sample_record(1, "kept"), sample_record(2, "dropped"));
    store.insert_vm(&kept).await.must("inserting");
    store.insert_vm(&dropped).await.must("inserting");
    store.delete_vm(&dropped.id).await.must("deleting");
    // The first handle stays open on purpose: nothing may depend on an orderly end.
    if let Some(again) = harness.reopened().await {
        assert_eq!(all(&again).await, std::slice::from_ref(&kept));
        let error = again.insert_vm(&sample_record(3, "kept")).await.must_fail("inserting a taken name");
        assert!(matches!(error, StateError::NameTaken(_)), "wrong error: {error}");
    }
}
