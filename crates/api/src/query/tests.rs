use microvm_types::files::FileOwner;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct All {
    path: GuestPath,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    force: bool,
    mode: Option<Mode>,
    owner: Option<Owner>,
    modified: Option<ModifiedTime>,
    #[serde(default)]
    label: Vec<FilterPair>,
    #[serde(default = "one")]
    depth: u32,
    word: Option<Word>,
}

#[derive(Debug, Deserialize)]
struct Nothing {}

const fn one() -> u32 {
    1
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    First,
    TheSecond,
}

fn path(bytes: &[u8]) -> All {
    All {
        path: GuestPath::from(bytes),
        recursive: false,
        force: false,
        mode: None,
        owner: None,
        modified: None,
        label: Vec::new(),
        depth: 1,
        word: None,
    }
}

#[test]
fn a_flag_whose_value_was_not_set_says_nothing() {
    assert!(read::<All>("path=/a&recursive").unwrap().recursive);
    for query in ["path=/a&recursive=", "path=/a&force=&recursive"] {
        assert!(matches!(read::<All>(query), Err(QueryError::Value { .. })), "{query}");
    }
}

#[test]
fn reads_what_it_should() {
    let query = "path=/a%FFb%20c&recursive&mode=0755&label=a%3Db&label=c%3Dd&owner=&word=the_second";
    let wanted = All {
        recursive: true,
        mode: Some(Mode(0o755)),
        owner: Some(Owner(FileOwner::Default)),
        label: vec![FilterPair::of("a", "b"), FilterPair::of("c", "d")],
        word: Some(Word::TheSecond),
        ..path(b"/a\xffb c")
    };
    assert_eq!(read::<All>(query).unwrap(), wanted);
    assert_eq!(read::<All>(write(&wanted).unwrap().strip_prefix('?').unwrap()).unwrap(), wanted);
    for flag in ["force", "force=1", "force=true"] {
        assert!(read::<All>(&format!("path=/&{flag}")).unwrap().force, "{flag}");
    }
}

#[test]
fn refuses_the_rest() {
    let refused = |query: &str| read::<All>(query).unwrap_err();
    assert_eq!(refused(""), QueryError::Missing("path"));
    assert_eq!(refused("path=%f"), QueryError::Escape);
    let told = |query: &str| refused(query).to_string();
    assert_eq!(
        told("path=/&recursve"),
        "there is no query parameter `recursve` here: `recursive` was probably meant"
    );
    assert!(told("path=/&foo=bar").contains("it takes `path`, `recursive`"), "{}", told("path=/&foo=bar"));
    let none = read::<Nothing>("limit=0").unwrap_err().to_string();
    assert_eq!(none, "there is no query parameter `limit` here: it takes none");
    assert_eq!(refused("path=/&path=/"), QueryError::Twice("path"));
    let value = |name, value: &str, wanted: &str| QueryError::Value {
        name,
        value: value.to_owned(),
        wanted: wanted.to_owned(),
    };
    assert_eq!(refused("path=/&force=yes"), value("force", "yes", "true or false"));
    assert_eq!(refused("path=/&depth=-1"), value("depth", "-1", "a number, not below 0,"));
    assert_eq!(refused("path=/&mode=99999"), value("mode", "99999", "an octal number up to 7777"));
    assert_eq!(refused("path=/&owner=%FF"), value("owner", "\u{fffd}", "text in UTF-8"));
    assert_eq!(
        refused("path=/&modified=x"),
        value("modified", "x", "a decimal number of seconds since 1970")
    );
    assert!(matches!(refused("path=/&word=third"), QueryError::Value { name: "word", .. }));
    assert!(GuestPath::from(b"relative".as_slice()).absolute().is_err());
    assert!(FilterPair::of("a", "b").pair().is_ok());
    assert_eq!(
        read::<All>("path=/&label=x").unwrap().label[0].pair(),
        Err(FilterError::Pair("x".to_owned()))
    );
}

#[test]
fn what_no_parameter_can_carry_is_refused() {
    #[derive(Serialize)]
    struct Inner {
        a: u8,
    }
    #[derive(Serialize)]
    struct Outer {
        inner: Inner,
    }
    assert!(matches!(write(&Outer { inner: Inner { a: 1 } }), Err(QueryError::Shape(_))));
    assert!(matches!(write(&5), Err(QueryError::Shape(_))));
}

proptest! {
    #[test]
    fn any_bytes_come_back(bytes: Vec<u8>, depth: u32, label in prop::collection::vec(any::<String>(), 0..3)) {
        let label = label.iter().map(|text| FilterPair::of(text, text)).collect();
        let sent = All { depth, label, ..path(&bytes) };
        let raw = write(&sent).unwrap();
        prop_assert_eq!(read::<All>(&raw[1..]).unwrap(), sent);
    }

    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _ = read::<All>(&text);
    }
}
