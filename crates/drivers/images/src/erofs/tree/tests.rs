//! Tests of trees.

use proptest::prelude::*;

use super::*;

fn file() -> Kind {
    Kind::File(FileData::empty())
}

fn directory() -> Kind {
    Kind::Directory(BTreeMap::new())
}

fn put(tree: &mut Tree, path: &str, kind: Kind) {
    tree.insert(path.as_bytes(), Attributes::root(0o755), kind).unwrap();
}

fn has(tree: &Tree, path: &str) -> bool {
    tree.find(path.as_bytes()).unwrap().is_some()
}

proptest! {
    #[test]
    fn components_never_leave(path in prop::collection::vec(prop::sample::select(b"a./b\0\xff".to_vec()), 0..24)) {
        if let Ok(parts) = components(&path) {
            for part in parts {
                prop_assert!(!part.is_empty() && part != b"." && part != b".." && !part.contains(&b'/') && !part.contains(&0));
            }
        } else {
            prop_assert!(path.contains(&0) || path.split(|b| *b == b'/').any(|part| part == b".."));
        }
    }
}

#[test]
fn paths_are_limited() {
    assert!(components(&[b'a'; 256]).is_err());
    assert!(components(&b"a/".repeat(3000)).is_err());
}

#[test]
fn links_are_followed_inside_only() {
    let mut tree = Tree::new(100, 1 << 20, TreeMemory::of(1 << 20));
    put(&mut tree, "usr/lib", directory());
    put(&mut tree, "lib", Kind::Symlink((*b"usr/lib").into()));
    put(&mut tree, "escape", Kind::Symlink((*b"/../../../etc").into()));
    put(&mut tree, "lib/x", file());
    put(&mut tree, "escape/passwd", file());
    put(&mut tree, "loop", Kind::Symlink((*b"loop").into()));
    assert!(has(&tree, "usr/lib/x") && has(&tree, "etc/passwd"));
    assert!(tree.insert(b"loop/x", Attributes::root(0), file()).is_err());
}

#[test]
fn whiteouts_touch_earlier_layers_only() {
    let mut tree = Tree::new(100, 1 << 20, TreeMemory::of(1 << 20));
    put(&mut tree, "a/old", file());
    put(&mut tree, "a/deep/old", file());
    put(&mut tree, "b", file());
    tree.next_layer();
    put(&mut tree, "a/new", file());
    put(&mut tree, "a/deep/new", file());
    tree.make_opaque(b"a").unwrap();
    tree.white_out(b"", b"b").unwrap();
    assert!(!has(&tree, "a/old") && !has(&tree, "a/deep/old") && !has(&tree, "b"));
    assert!(has(&tree, "a/new") && has(&tree, "a/deep/new"));
    put(&mut tree, "c", file());
    tree.white_out(b"", b"c").unwrap();
    assert!(has(&tree, "c"));
}

#[test]
fn hard_links_need_their_target_and_entries_are_limited() {
    let mut tree = Tree::new(3, 1 << 20, TreeMemory::of(1 << 20));
    assert!(tree.hard_link(b"x", b"missing").is_err());
    put(&mut tree, "a", file());
    tree.hard_link(b"x", b"a").unwrap();
    assert_eq!(tree.find(b"x").unwrap(), tree.find(b"a").unwrap());
    assert!(tree.hard_link(b"y", b"/").is_err());
    put(&mut tree, "b", file());
    assert!(tree.insert(b"c", Attributes::root(0), file()).is_err());
}

#[test]
fn memory_is_charged_where_it_is_held() {
    let fills = |insert: &dyn Fn(&mut Tree, usize) -> Result<(), PathError>| {
        let mut tree = Tree::new(1_000_000, 1 << 20, TreeMemory::of(1 << 20));
        put(&mut tree, "a", file());
        let refused =
            (0..100_000).find_map(|count| insert(&mut tree, count).err().map(|error| (count, error)));
        let (count, error) = refused.expect("it is bounded");
        assert!(error.0.contains("memory"), "{error:?}");
        count
    };
    let links = fills(&|tree, count| tree.hard_link(format!("{count}").as_bytes(), b"a"));
    assert!((5_000..20_000).contains(&links), "{links}");
    let long =
        fills(&|tree, count| tree.insert(format!("{count:0>250}").as_bytes(), Attributes::root(0), file()));
    assert!(long < 4_000, "{long}");
    let big = Xattr { name: b"user.x".to_vec(), value: vec![0; 4096] };
    let attributes = || Attributes { xattrs: vec![big.clone()], ..Attributes::root(0) };
    assert!(fills(&|tree, count| tree.insert(format!("{count}").as_bytes(), attributes(), file())) < 256);
    // Also where nothing new is made.
    assert!(fills(&|tree, _| tree.insert(b"d", attributes(), directory())) < 256);
    let target = || Kind::Symlink(vec![b'x'; 4000].into());
    assert!(
        fills(&|tree, count| tree.insert(format!("{count}").as_bytes(), Attributes::root(0), target())) < 280
    );
}
