//! Forms of memory: what comes in one is given in another, as far as anybody but its VMM can read it.

use std::os::unix::fs::FileExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::branch::{PAGE_SIZE, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::snapshot::{BranchFiles, BranchSource};
use microvm_ports::storage::StorageError;

use super::SnapshotHarness;
use super::bench::{Bench, MEMORY_MIB, page, snapshot_id};
use crate::Must;

/// A branch of VM 1 with these pages in one whole file of the VM's.
async fn in_a_file(bench: &Bench<'_>, pages: &[(u64, u8)]) -> (BranchFiles, Utf8PathBuf) {
    let path = bench.files(1).await.directory.join("saved.memory");
    let mut memory = vec![0; (MEMORY_MIB as usize) << 20];
    for (number, value) in pages {
        let at = usize::try_from(*number).unwrap_or(usize::MAX) * PAGE_SIZE;
        memory[at..at + PAGE_SIZE].copy_from_slice(&page(*value));
    }
    std::fs::write(&path, memory).must("writing a memory");
    let mut files = bench.branch(1, &[]).await;
    files.branch.memory = StateMemory::File(path.clone());
    files.description.memory = MemoryShape::WholeFile;
    (files, path)
}

async fn given(bench: &Bench<'_>, number: u64, load: MemoryShape) -> Result<BranchSource, StorageError> {
    bench.snapshots().snapshot_source(&snapshot_id(number), 1, load).await
}

pub(super) async fn whole_files(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "saved").await;
    for load in [MemoryShape::WholeFile, MemoryShape::PagesOverBase] {
        let (files, path) = in_a_file(&bench, &[(3, 1), (900, 3)]).await;
        let source = bench.snapshots().fork_point(files, 2, load).await.must("making a fork point");
        assert_eq!(source.memory.shape(), load);
        bench.has_memory(&source, &[(3, 1), (4, 0), (900, 3)]);
        // Its VMM may still write to it: nobody else is launched over it.
        assert_ne!(source.memory.file(), Some(Utf8Path::new(&path)));
        assert!(!path.exists(), "what was saved is left beside what was made of it");
    }
    // The machine of one that ended with its save goes on from it first, and then it is used by whoever asked for it.
    let (mut files, path) = in_a_file(&bench, &[(3, 1), (900, 3)]).await;
    files.branch.ended = true;
    let own = bench.snapshots().fork_point(files.clone(), 1, MemoryShape::WholeFile).await;
    bench.has_memory(&own.must("going on from it"), &[(3, 1), (900, 3)]);
    files.branch.ended = false;
    let next = bench.snapshots().fork_point(files, 2, MemoryShape::WholeFile).await;
    bench.has_memory(&next.must("using it once more"), &[(3, 1), (900, 3)]);
    assert!(!path.exists(), "what was saved is left beside what was made of it");
    let (first, path) = in_a_file(&bench, &[(3, 1), (900, 3)]).await;
    assert_eq!(bench.keep(1, first).await.memory_bytes, 2 * 4096, "zeros are kept");
    assert!(!path.exists(), "what was saved is left beside the snapshot");
    let (second, _) = in_a_file(&bench, &[(3, 1), (5, 7), (900, 3)]).await;
    let second = bench.keep(2, second).await;
    assert_eq!(
        (second.parent, second.memory_bytes),
        (Some(snapshot_id(1)), 4096),
        "more than what changed is kept"
    );
    for load in [MemoryShape::WholeFile, MemoryShape::PagesOverBase] {
        let source = given(&bench, 2, load).await.must("using a snapshot");
        assert_eq!(source.memory.shape(), load);
        bench.has_memory(&source, &[(3, 1), (4, 0), (5, 7), (900, 3)]);
    }
    // Pages are given as a whole file, too.
    bench.vm(2).await;
    bench.keep(3, bench.branch(2, &[(8, page(4))]).await).await;
    let source = given(&bench, 3, MemoryShape::WholeFile).await.must("using pages as a file");
    assert_eq!(source.memory.shape(), MemoryShape::WholeFile);
    bench.has_memory(&source, &[(7, 0), (8, 4)]);
    // One that is no memory of the VM.
    let (bad, path) = in_a_file(&bench, &[]).await;
    std::fs::write(&path, "short").must("cutting it short");
    let error =
        bench.snapshots().fork_point(bad, 1, MemoryShape::WholeFile).await.must_fail("a short memory");
    assert!(matches!(error, StorageError::BadInput { .. }), "wrong error: {error}");
}

/// A branch of VM 1 with these changed pages in a sparse file of the driver's, over `previous`.
async fn in_a_sparse_file(
    bench: &Bench<'_>,
    pages: &[(u64, u8)],
    previous: Option<&Utf8Path>,
) -> (BranchFiles, Utf8PathBuf) {
    let path = bench.files(1).await.directory.join("saved.changes");
    let file = std::fs::File::create(&path).must("making a file for changes");
    file.set_len(u64::from(MEMORY_MIB) << 20).must("giving it the size of the memory");
    for (number, value) in pages {
        file.write_all_at(&page(*value), number * PAGE_SIZE as u64).must("writing a page");
    }
    let mut files = bench.branch(1, &[]).await;
    files.branch.memory =
        StateMemory::Sparse { changes: path.clone(), previous: previous.map(ToOwned::to_owned) };
    files.description.memory = MemoryShape::SparseFileOverPrevious;
    (files, path)
}

pub(super) async fn sparse_files(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "saved").await;
    let (first, _) = in_a_sparse_file(&bench, &[(3, 1), (900, 3)], None).await;
    assert_eq!(bench.keep(1, first).await.memory_bytes, 2 * 4096, "zeros are kept");
    // The driver's own copy of the memory at that save.
    let previous = bench.files(1).await.directory.join("saved.previous");
    let (whole, path) = in_a_file(&bench, &[(3, 1), (900, 3)]).await;
    std::fs::rename(&path, &previous).must("keeping the memory of the save before");
    drop(whole);
    // A page that became zero is written, too: a hole would show what was there before.
    let changed = [(3, 0), (5, 7)];
    let (second, changes) = in_a_sparse_file(&bench, &changed, Some(&previous)).await;
    let second = bench.keep(2, second).await;
    assert_eq!(
        (second.parent, second.memory_bytes),
        (Some(snapshot_id(1)), 4096),
        "what changed, without zeros"
    );
    assert!(changes.exists() && previous.exists(), "the driver needs its files for the next save");
    for load in [MemoryShape::WholeFile, MemoryShape::PagesOverBase] {
        let source = given(&bench, 2, load).await.must("using a snapshot");
        bench.has_memory(&source, &[(3, 0), (4, 0), (5, 7), (900, 3)]);
        let (again, _) = in_a_sparse_file(&bench, &changed, Some(&previous)).await;
        let source = bench.snapshots().fork_point(again, 2, load).await.must("making a fork point");
        assert_eq!(source.memory.shape(), load);
        assert_ne!(source.memory.file(), Some(&*previous), "its driver will change that file");
        bench.has_memory(&source, &[(3, 0), (4, 0), (5, 7), (900, 3)]);
    }
    // Changes alone are no memory to launch from.
    let error = given(&bench, 2, MemoryShape::SparseFileOverPrevious).await.must_fail("giving changes only");
    assert!(matches!(error, StorageError::BadInput { .. }), "wrong error: {error}");
    let (bad, _) = in_a_sparse_file(&bench, &changed, Some(&previous)).await;
    std::fs::write(&previous, "short").must("cutting the save before short");
    let error =
        bench.snapshots().fork_point(bad, 1, MemoryShape::WholeFile).await.must_fail("a short memory");
    assert!(matches!(error, StorageError::BadInput { .. }), "wrong error: {error}");
}

pub(super) async fn inside(harness: &dyn SnapshotHarness) {
    let bench = Bench::new(harness).await;
    bench.vm(1).await;
    bench.write(1, "saved").await;
    let branch = async || {
        let mut files = bench.branch(1, &[]).await;
        files.branch.memory = StateMemory::Inside;
        files.description.memory = MemoryShape::InsideState;
        files
    };
    let files = branch().await;
    let state = files.branch.parts.clone();
    let point = bench.snapshots().fork_point(files, 2, MemoryShape::InsideState).await.must("a fork point");
    assert!(matches!(point.memory, StateMemory::Inside) && point.parts == state);
    bench.child(2, &point).await;
    bench.shows(2, "saved").await;
    bench.keep(1, branch().await).await;
    let source = given(&bench, 1, MemoryShape::InsideState).await.must("using a snapshot");
    assert!(matches!(source.memory, StateMemory::Inside) && source.parts == state);
    bench.child(3, &source).await;
    bench.shows(3, "saved").await;
    // Nobody else can read it, and it cannot be made of what others read.
    for load in [MemoryShape::PagesOverBase, MemoryShape::WholeFile] {
        let error = given(&bench, 1, load).await.must_fail("giving what nobody can read");
        assert!(matches!(error, StorageError::BadInput { .. }), "wrong error: {error}");
    }
    bench.vm(4).await;
    bench.keep(2, bench.branch(4, &[(8, page(4))]).await).await;
    let error = given(&bench, 2, MemoryShape::InsideState).await.must_fail("putting pages into a state");
    assert!(matches!(error, StorageError::BadInput { .. }), "wrong error: {error}");
}
