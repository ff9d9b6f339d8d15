//! Pages in which a memory differs from another, by content.

use microvm_durable::cancel::Cancel;
use microvm_ports::StorageError;
use microvm_ports::branch::{PAGE_SIZE, PageRange};

use super::page_file::{Content, Run};
use super::view::{View, byte};

/// Pages compared at once: 256 KiB of each.
pub(crate) const CHUNK: u64 = 64;
const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// True if a page is all zero.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == ZEROS
}

/// Pieces of at most [`CHUNK`] pages.
pub(crate) fn chunks(range: PageRange) -> impl Iterator<Item = PageRange> {
    let count = range.count.div_ceil(CHUNK);
    (0..count).map(move |index| {
        let first = range.first + index * CHUNK;
        PageRange { first, count: (range.end() - first).min(CHUNK) }
    })
}

/// Runs of pages in which `view` differs from `parent`, or from zeros. The place of their content is not told: it is
/// read through the view.
pub(crate) fn difference(
    view: &View,
    parent: Option<&View>,
    cancel: &Cancel,
) -> Result<Vec<Run>, StorageError> {
    let mut candidates = view.covered();
    match parent {
        // Both lie over the same file: only what covers it can differ.
        Some(parent) if same_base(view, parent) => candidates.extend(parent.covered()),
        Some(parent) => {
            candidates.extend(view.populated()?);
            candidates.extend(parent.populated()?);
        }
        None => candidates.extend(view.populated()?),
    }
    let (mut mine, mut theirs) = (vec![0; byte(CHUNK)], vec![0; byte(CHUNK)]);
    let mut runs: Vec<Run> = Vec::new();
    for range in PageRange::union(candidates).into_iter().flat_map(chunks) {
        cancel.check()?;
        let mine = &mut mine[..byte(range.count)];
        let theirs = &mut theirs[..byte(range.count)];
        view.read(range.first, mine)?;
        if let Some(parent) = parent {
            parent.read(range.first, theirs)?;
        }
        for (page, (mine, theirs)) in mine.chunks(PAGE_SIZE).zip(theirs.chunks(PAGE_SIZE)).enumerate() {
            if mine != theirs {
                push(&mut runs, range.first + page as u64, is_zero(mine));
            }
        }
    }
    Ok(runs)
}

fn same_base(one: &View, other: &View) -> bool {
    match (&one.base, &other.base) {
        (None, None) => true,
        (Some(one), Some(other)) => one.name == other.name,
        _ => false,
    }
}

fn push(runs: &mut Vec<Run>, page: u64, zero: bool) {
    let content = if zero { Content::Zero } else { Content::At(0) };
    match runs.last_mut() {
        Some(last) if last.range.end() == page && last.content == content => last.range.count += 1,
        _ => runs.push(Run { range: PageRange { first: page, count: 1 }, content }),
    }
}
