use microvm_fuzz::Fuzz;
use proptest::prelude::*;

use super::*;

fn id(principal: Principal, name: &[u8]) -> Option<u32> {
    match principal {
        Principal::User => id_of(b"root:x:0:0::/:\nann:x:1000:100::/:\nodd name:x:7:7::/:\n", name),
        Principal::Group => id_of(b"root:x:0:\nvideo:x:44:ann\n", name),
    }
}

fn parse(text: &str) -> Result<Acl, AclError> {
    Acl::parse(text.as_bytes(), id)
}

/// What `setfacl -m u:1000:rw,g:44:r` keeps for a file of mode 0640, read with `getfattr -e hex` on ext4.
const KEPT: &[u8] =
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x08\0\x04\0\x2c\0\0\0\x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

#[test]
fn every_form_of_text_is_the_kernels_attribute() {
    for text in [
        // acl_to_text(3), as GNU tar writes it.
        "user::rw-\nuser:ann:rw-\ngroup::r--\ngroup:video:r--\nmask::rw-\nother::---\n",
        // star and libarchive: names with numbers, which count.
        "user::rw-,user:nobody-here:rw-:1000,group::r--,group:other-name:r--:44,mask::rw-,other::---",
        // Short, in another order, and with numbers.
        "m::rw,o::-,g:44:r,u::rw,u:1000:rw,g::r",
        // getfacl, with a comment; mask and others without the second field.
        "user::rw-\nuser:1000:rw-\t#effective:rw-\n\n# owner: x\ngroup::r--\ngroup:44:r--\nmask:rw-\nother:---",
    ] {
        let list = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(list.to_xattr(), KEPT, "{text}");
        assert_eq!((list.mode(), list.is_mode_only()), (0o660, false));
    }
    let list = Acl::from_xattr(KEPT).unwrap();
    assert_eq!(list.to_text(), "user::rw-,user:1000:rw-,group::r--,group:44:r--,mask::rw-,other::---");
    assert!(parse("u::rwx,g::r-x,o::r-x").unwrap().is_mode_only());
    let quoted = parse("u::rwx,u:odd\\040name:r,g::r,m::r,o::-").unwrap();
    assert_eq!(quoted, parse("u::rwx,u:7:r,g::r,m::r,o::-").unwrap());
}

#[test]
fn what_cannot_be_read_is_refused() {
    let base = |entry: &str| format!("user::rwx,group::r-x,mask::r-x,other::r-x,{entry}");
    let unknown = parse(&base("user:bob:r--")).unwrap_err();
    assert_eq!(unknown, AclError::UnknownUser("bob".to_owned()));
    // Users and groups have names of their own.
    assert_eq!(parse(&base("group:ann:r--")).unwrap_err(), AclError::UnknownGroup("ann".to_owned()));
    for entry in [
        "user",
        "user:ann",
        "user:ann:rwz",
        "user:ann:",
        "user:ann:r:x",
        "x::r",
        "mask:ann:r",
        "other::r:5",
        "user:ann:r:4294967295",
        "user:4294967295:r",
        "user:4294967296:r",
        "user:ann:r:1:2",
        "default:user::rwx",
    ] {
        let error = parse(&base(entry)).unwrap_err();
        assert!(matches!(error, AclError::Entry(_) | AclError::UnknownUser(_)), "{entry}: {error}");
    }
    for text in
        ["", "user::rwx", "u::r,g::r,o::r,u:1:r", "u::r,g::r,o::r,u::w", "u::r,g::r,o::r,m::r,u:1:r,u:1:w"]
    {
        assert_eq!(parse(text).unwrap_err(), AclError::Incomplete, "{text}");
    }
    for value in [&KEPT[..20], &KEPT[1..], b"\x01\0\0\0", b"\x02\0\0\0", b""] {
        assert_eq!(Acl::from_xattr(value), None);
    }
}

proptest! {
    #[test]
    fn lists_come_back_from_both_forms(users in prop::collection::btree_map(0u32..u32::MAX, 0u16..8, 0..9),
        groups in prop::collection::btree_map(0u32..u32::MAX, 0u16..8, 0..9), base in [0u16..8, 0u16..8, 0u16..8, 0u16..8])
    {
        let bits = |bits: u16| format!("{}{}{}", if bits & 4 > 0 { "r" } else { "-" },
            if bits & 2 > 0 { "w" } else { "-" }, if bits & 1 > 0 { "x" } else { "-" });
        let mut text = format!("u::{},g::{},o::{},m::{}", bits(base[0]), bits(base[1]), bits(base[2]), bits(base[3]));
        for (id, rights) in &users { text.push_str(&format!(",u:{id}:{}", bits(*rights))); }
        for (id, rights) in &groups { text.push_str(&format!(",g:{id}:{}", bits(*rights))); }
        let list = parse(&text).unwrap();
        prop_assert_eq!(Acl::from_xattr(&list.to_xattr()), Some(list.clone()));
        prop_assert_eq!(parse(&list.to_text()), Ok(list));
    }
}

#[test]
fn lists_of_any_bytes() {
    let words: &[&[u8]] =
        &[b"user:", b"g:", b"mask::", b"other::", b"rwx", b":", b",", b"\n", b"#", b"\\040", b"1000"];
    Fuzz::new("acl")
        .seed("user::rw-,user:1000:r--,group::r--,mask::r--,other::---")
        .seed(KEPT)
        .words(words)
        .memory(1 << 20, 256)
        .run(|bytes| {
            let told = match Acl::parse(bytes, id) {
                Ok(list) => {
                    assert_eq!(Acl::from_xattr(&list.to_xattr()), Some(list.clone()));
                    assert_eq!(Acl::parse(list.to_text().as_bytes(), |_, _| None), Ok(list));
                    "a list".to_owned()
                }
                Err(error) => error.to_string(),
            };
            if let Some(list) = Acl::from_xattr(bytes) {
                assert_eq!(Acl::parse(list.to_text().as_bytes(), |_, _| None), Ok(list));
            }
            told
        });
}
