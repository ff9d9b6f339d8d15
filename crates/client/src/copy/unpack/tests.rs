//! Archives as a hostile guest would make them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

/// Enough for all but what is about the budget.
fn unpack(data: impl Read, target: &Path, prefix: &[u8]) -> Result<LeftOut, ClientError> {
    within(1 << 30, OutsideLinks::Keep, data, target, prefix)
}

/// Without links that may lead outside.
fn unpack_closed(data: impl Read, target: &Path, prefix: &[u8]) -> Result<LeftOut, ClientError> {
    within(1 << 30, OutsideLinks::Skip, data, target, prefix)
}

fn within(
    limit: u64,
    links: OutsideLinks,
    data: impl Read,
    target: &Path,
    prefix: &[u8],
) -> Result<LeftOut, ClientError> {
    super::unpack(data, target, prefix, false, &mut Rules { budget: Budget::new(limit), links })
}

/// Names of what was left out.
fn names(left_out: &LeftOut) -> Vec<&str> {
    left_out.entries.iter().map(|entry| entry.path.as_str()).collect()
}

/// Name, kind, link and content of an entry.
type Crafted<'a> = (&'a [u8], EntryType, &'a [u8], &'a [u8]);

/// An archive with names exactly as given: the checks of the `tar` crate are on purpose not asked.
fn archive(entries: &[Crafted<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, link, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Place {
    whole: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let whole = tempfile::tempdir().unwrap();
        fs::create_dir(whole.path().join("target")).unwrap();
        fs::write(whole.path().join("outside"), "untouched").unwrap();
        Self { whole }
    }

    fn target(&self) -> std::path::PathBuf {
        self.whole.path().join("target")
    }

    /// Nothing but the target was touched.
    fn is_safe(&self) -> bool {
        let mut names: Vec<_> =
            fs::read_dir(self.whole.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names == ["outside", "target"] && fs::read(self.whole.path().join("outside")).unwrap() == b"untouched"
    }
}

#[test]
fn good_archives_arrive_whole() {
    let place = Place::new();
    let data = archive(&[
        (b"out/", EntryType::Directory, b"", b""),
        (b"out/a \xff\n", EntryType::Regular, b"", b"hello"),
        (b"out/deep/er/b", EntryType::Regular, b"", b"x"),
        (b"out/link", EntryType::Symlink, b"deep/er/b", b""),
        (b"out/same", EntryType::Link, b"out/deep/er/b", b""),
    ]);
    unpack(&data[..], &place.target(), b"out").unwrap();
    let file = place.target().join(OsStr::from_bytes(b"a \xff\n"));
    assert_eq!(fs::read(&file).unwrap(), b"hello");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o755, "set-id bits are dropped");
    assert_eq!(fs::read(place.target().join("link")).unwrap(), b"x");
    assert_eq!(fs::read(place.target().join("same")).unwrap(), b"x");
    assert!(place.is_safe());
}

#[test]
fn nothing_leaves_the_target() {
    let place = Place::new();
    let data = archive(&[
        (b"out/../../outside", EntryType::Regular, b"", b"bad"),
        (b"../outside", EntryType::Regular, b"", b"bad"),
        (b"/tmp/microvm-test-outside", EntryType::Regular, b"", b"bad"),
        (b"out/up", EntryType::Symlink, b"..", b""),
        (b"out/up/outside", EntryType::Regular, b"", b"inside"),
        (b"out/abs", EntryType::Symlink, b"/etc", b""),
        (b"out/d/x", EntryType::Symlink, b"../../outside", b""),
        (b"out/hard", EntryType::Link, b"../outside", b""),
        (b"out/hard2", EntryType::Link, b"/etc/passwd", b""),
        (b"out/dev", EntryType::Block, b"", b""),
        (b"out/fifo", EntryType::Fifo, b"", b""),
    ]);
    let left_out = unpack_closed(&data[..], &place.target(), b"out").unwrap();
    let wanted = [
        "out/../../outside",
        "../outside",
        "/tmp/microvm-test-outside",
        "out/up",
        "out/abs",
        "out/d/x",
        "out/hard",
        "out/hard2",
        "out/dev",
    ];
    assert_eq!((left_out.count, names(&left_out)), (9, wanted.to_vec()));
    assert!(place.is_safe());
    assert!(!Path::new("/tmp/microvm-test-outside").exists());
    let fifo = fs::symlink_metadata(place.target().join("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo() && fifo.permissions().mode() & 0o7777 == 0o755, "{fifo:?}");
    for name in ["abs", "hard", "hard2", "dev"] {
        assert!(fs::symlink_metadata(place.target().join(name)).is_err(), "{name} was made");
    }
    // The link was left out, so that a true directory of its name could be made.
    assert_eq!(fs::read(place.target().join("up/outside")).unwrap(), b"inside");
}

#[test]
fn links_stay_links_wherever_they_lead_and_nothing_passes_them() {
    let links: [Crafted<'_>; 5] = [
        (b"out/bin/python3", EntryType::Symlink, b"/usr/bin/python3", b""),
        (b"out/up", EntryType::Symlink, b"..", b""),
        (b"out/far", EntryType::Symlink, b"../../../..", b""),
        (b"out/strange \xff", EntryType::Symlink, b"\xfe/\n", b""),
        (b"out/loop", EntryType::Symlink, b"loop", b""),
    ];
    let place = Place::new();
    assert_eq!(unpack(&archive(&links)[..], &place.target(), b"out").unwrap().count, 0);
    for (name, _, link, _) in links {
        let found = fs::read_link(place.target().join(OsStr::from_bytes(&name[4..]))).unwrap();
        assert_eq!(found.as_os_str().as_bytes(), link);
    }
    // Neither in the same archive nor in a later one does anything go through them.
    for (kind, link) in [
        (EntryType::Regular, &b""[..]),
        (EntryType::Directory, b""),
        (EntryType::Symlink, b"x"),
        (EntryType::Fifo, b""),
        (EntryType::Link, b"out/bin/python3"),
    ] {
        let through = archive(&[(b"out/up/outside", kind, link, b"")]);
        // Another name of a link is left out before it is looked where it would go.
        let refused = unpack(&through[..], &place.target(), b"out").map_or(1, |left_out| left_out.count);
        assert_eq!(refused, 1, "{kind:?}");
        let from = archive(&[(b"out/hard", EntryType::Link, b"out/up/outside", b"")]);
        assert!(unpack(&from[..], &place.target(), b"out").is_err());
        assert!(place.is_safe(), "{kind:?}");
    }
    let other = archive(&[(b"out/far", EntryType::Regular, b"", b"mine")]);
    unpack(&other[..], &place.target(), b"out").unwrap();
    assert_eq!(fs::read(place.target().join("far")).unwrap(), b"mine");
    assert!(place.is_safe());
}

#[test]
fn links_that_were_there_before_are_not_followed() {
    let place = Place::new();
    symlink("..", place.target().join("up")).unwrap();
    let data = archive(&[(b"out/up/outside", EntryType::Regular, b"", b"bad")]);
    assert!(unpack(&data[..], &place.target(), b"out").is_err());
    let data = archive(&[(b"out/up", EntryType::Regular, b"", b"replaced")]);
    unpack(&data[..], &place.target(), b"out").unwrap();
    assert_eq!(fs::read(place.target().join("up")).unwrap(), b"replaced");
    assert!(place.is_safe());
}

#[test]
fn a_link_inside_the_archive_is_not_followed_by_what_comes_after() {
    let place = Place::new();
    let data = archive(&[
        (b"out/real/x", EntryType::Regular, b"", b"x"),
        (b"out/alias", EntryType::Symlink, b"real", b""),
        (b"out/alias/y", EntryType::Regular, b"", b"y"),
    ]);
    assert!(unpack(&data[..], &place.target(), b"out").is_err());
    assert!(!place.target().join("real/y").exists());
}

#[test]
fn a_cut_off_archive_is_an_error() {
    let place = Place::new();
    let data = archive(&[(b"out/a", EntryType::Regular, b"", &[7; 4096])]);
    assert!(unpack(&data[..2000], &place.target(), b"out").is_err());
    assert_eq!(fs::read_dir(place.target()).unwrap().count(), 0, "half a file was left behind");
}

#[test]
fn a_link_is_not_moved_to_another_depth() {
    let place = Place::new();
    let data = archive(&[
        (b"out/a/b/l", EntryType::Symlink, b"../..", b""),
        (b"out/l2", EntryType::Link, b"out/a/b/l", b""),
        (b"out/esc", EntryType::Symlink, b"a/b/l/..", b""),
        (b"out/esc2", EntryType::Symlink, b"a/../..", b""),
        (b"out/a/b/back", EntryType::Symlink, b"../../a/./b", b""),
    ]);
    unpack_closed(&data[..], &place.target(), b"out").unwrap();
    for name in ["l2", "esc", "esc2"] {
        assert!(fs::symlink_metadata(place.target().join(name)).is_err(), "{name} was made");
    }
    for name in ["a/b/l", "a/b/back"] {
        let leads_to = fs::canonicalize(place.target().join(name)).unwrap();
        assert!(leads_to.starts_with(fs::canonicalize(place.target()).unwrap()), "{name}: {leads_to:?}");
    }
}

#[test]
fn long_names_arrive_and_longer_ones_are_refused() {
    let place = Place::new();
    let long = [b"out/".as_slice(), &[b'x'; 200]].concat();
    let record = [b"215 path=out/".as_slice(), &[b'y'; 201], b"\n"].concat();
    let data = archive(&[
        (b"long", EntryType::GNULongName, b"", &long),
        (b"out/cut", EntryType::Regular, b"", b"x"),
        (b"long", EntryType::XHeader, b"", &record),
        (b"out/cut", EntryType::Regular, b"", b"y"),
    ]);
    unpack(&data[..], &place.target(), b"out").unwrap();
    assert_eq!(fs::read(place.target().join("x".repeat(200))).unwrap(), b"x");
    assert_eq!(fs::read(place.target().join("y".repeat(201))).unwrap(), b"y");
}

/// Bytes without end, counted.
struct Endless<'a>(&'a std::cell::Cell<u64>);

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + buffer.len() as u64);
        assert!(self.0.get() < 64 << 20, "it is read without end");
        buffer.fill(b'a');
        Ok(buffer.len())
    }
}

#[test]
fn extensions_are_not_read_whatever_they_claim() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let place = Place::new();
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let taken = std::cell::Cell::new(0);
        let data = header.as_bytes().chain(Endless(&taken));
        let ClientError::Local(problem) = unpack(data, &place.target(), b"out").unwrap_err() else {
            panic!("not a problem")
        };
        assert_eq!(problem.code, "archive_invalid");
        assert_eq!(taken.get(), 0, "{kind:?}");
    }
}

#[test]
fn no_more_is_written_than_allowed() {
    let place = Place::new();
    let content = [7; 8192];
    let data = archive(&[
        (b"out/zeros", EntryType::Regular, b"", &[0; 1 << 20]),
        (b"out/a", EntryType::Regular, b"", &content),
        (b"out/b", EntryType::Regular, b"", &content),
    ]);
    within(16384, OutsideLinks::Keep, &data[..], &place.target(), b"out").unwrap();
    let place = Place::new();
    let error = within(16383, OutsideLinks::Keep, &data[..], &place.target(), b"out").unwrap_err();
    assert!(matches!(error, ClientError::Local(problem) if problem.code == "transfer_too_large"));
    assert!(!place.target().join("b").exists());
    let directories = archive(&[(b"out/1/2/3/4/5/6/7", EntryType::Directory, b"", b"")]);
    assert!(within(16384, OutsideLinks::Keep, &directories[..], &place.target(), b"out").is_err());
}

#[test]
fn directories_that_were_there_before_keep_their_permissions() {
    let place = Place::new();
    let mode = |name: &str| fs::metadata(place.target().join(name)).unwrap().permissions().mode() & 0o7777;
    fs::create_dir(place.target().join("mine")).unwrap();
    fs::set_permissions(place.target().join("mine"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut builder = Builder::new(Vec::new());
    for (name, mode) in
        [("out/mine", 0o777), ("out/new", 0o2755), ("out/closed", 0o555), ("out/closed/in", 0o500)]
    {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty()).unwrap();
    }
    unpack(&builder.into_inner().unwrap()[..], &place.target(), b"out").unwrap();
    assert_eq!((mode("mine"), mode("new"), mode("closed"), mode("closed/in")), (0o700, 0o755, 0o555, 0o500));
}

/// An entry with a time of its own before its header's.
fn timed(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, mode: u32, time: &str) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_mtime(1);
    builder.append_pax_extensions([("mtime", time.as_bytes())]).unwrap();
    if kind.is_symlink() {
        builder.append_link(&mut header, name, "nowhere").unwrap();
    } else {
        builder.append_data(&mut header, name, io::empty()).unwrap();
    }
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    use EntryType::{Directory, Fifo, Regular, Symlink};
    let place = Place::new();
    let mut builder = Builder::new(Vec::new());
    let entries = [
        ("out", Directory, "981173106.000000001"),
        ("out/d", Directory, "981173107.5"),
        ("out/d/e", Directory, "-1.25"),
        ("out/d/e/f", Regular, "981173108.123456789"),
        ("out/d/l", Symlink, "981173109.75"),
        ("out/d/p", Fifo, "981173110"),
        ("out/z", Regular, "4294967296.5"),
    ];
    for (name, kind, time) in entries {
        timed(&mut builder, name, kind, if kind == Directory { 0o550 } else { 0o640 }, time);
    }
    let data = builder.into_inner().unwrap();
    let mut rules = Rules { budget: Budget::new(1 << 30), links: OutsideLinks::Keep };
    super::unpack(&data[..], &place.target(), b"out", true, &mut rules).unwrap();
    for (name, kind, time) in entries {
        let path = place.target().join(name.strip_prefix("out").unwrap().trim_start_matches('/'));
        let found = fs::symlink_metadata(&path).unwrap();
        let time: FileTime = time.parse().unwrap();
        let kept = FileTime::new(found.mtime(), found.mtime_nsec().try_into().unwrap());
        assert_eq!(kept, time, "{name}");
        if kind == Directory {
            assert_eq!(found.permissions().mode() & 0o777, 0o550, "{name}");
        }
    }
    // A directory that was there before keeps what it had, the target too.
    let before = fs::metadata(place.target()).unwrap().permissions();
    unpack(&data[..], &place.target(), b"out").unwrap();
    assert_eq!(fs::metadata(place.target()).unwrap().permissions(), before);
    assert_ne!(fs::metadata(place.target()).unwrap().mtime(), 981_173_106);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_archive_escapes(
        entries in prop::collection::vec((
            prop::collection::vec(prop::sample::select(vec!["..", ".", "", "out", "a", "b", "outside"]), 1..5),
            prop::sample::select(vec![EntryType::Regular, EntryType::Symlink, EntryType::Link, EntryType::Directory]),
            prop::collection::vec(prop::sample::select(vec!["..", ".", "", "out", "a", "b", "outside"]), 1..5),
        ), 0..12)
    ) {
        let place = Place::new();
        let entries: Vec<_> = entries.into_iter().map(|(name, kind, link)| (name.join("/"), kind, link.join("/"))).collect();
        let parts: Vec<_> = entries
            .iter()
            .map(|(name, kind, link)| {
                let content: &[u8] = if *kind == EntryType::Regular { b"bad" } else { b"" };
                (name.as_bytes(), *kind, link.as_bytes(), content)
            })
            .collect();
        // Whether it succeeds does not matter, only what it touches.
        let _ = unpack(&archive(&parts)[..], &place.target(), b"out");
        prop_assert!(place.is_safe());
        let _ = unpack_closed(&archive(&parts)[..], &place.target(), b"out");
        prop_assert!(place.is_safe());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let place = Place::new();
        let _ = unpack(&bytes[..], &place.target(), b"out");
    }
}
