//! A look at a long JSON object before it is read as its type: only the fields that are made for it may be long.
//!
//! A reader that meets the wrong type repeats the text that it met, six bytes for each that has to be escaped, and its error is copied on
//! the way into the answer. Here nothing but lengths is kept.

use std::fmt;

use microvm_api::operation::SHORT_FIELD_MAX;
use serde::de::{self, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::failure::Failure;

/// Most bytes of a name that are shown.
const SHOWN: usize = 100;

/// Refuses an object with a long field that is not among `long`, and what is no object. JSON that cannot be read passes: whoever reads it
/// says where it is wrong.
pub(crate) fn check(json: &[u8], long: &[&str]) -> Result<(), Failure> {
    if json.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Failure::invalid("body_invalid", "the request is no JSON object"));
    }
    let mut found = None;
    let read = serde_json::Deserializer::from_slice(json).deserialize_map(Fields { long, found: &mut found });
    match (read, found) {
        (Err(_), Some(name)) => {
            let detail =
                format!("{name}: it is longer than the {SHORT_FIELD_MAX} bytes that this field may have");
            Err(Failure::invalid("body_invalid", detail))
        }
        _ => Ok(()),
    }
}

/// Reads the fields up to the first that is too long, whose name it leaves.
struct Fields<'a> {
    long: &'a [&'a str],
    found: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name { shown, bytes }) = map.next_key_seed(NameOf)? {
            let length = if self.long.contains(&shown.as_str()) {
                map.next_value::<IgnoredAny>()?;
                bytes
            } else {
                bytes.max(map.next_value_seed(Length)?)
            };
            if length > SHORT_FIELD_MAX {
                *self.found = Some(shown);
                return Err(A::Error::custom("a field is too long"));
            }
        }
        Ok(())
    }
}

/// The name of a field: its beginning, and its length.
struct Name {
    shown: String,
    bytes: usize,
}

/// Reads the name of a field.
struct NameOf;

impl<'de> DeserializeSeed<'de> for NameOf {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameOf {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
        let shown = text[..text.floor_char_boundary(SHOWN)].to_owned();
        Ok(Name { shown, bytes: text.len() })
    }
}

/// Reads a value as the bytes of the texts in it, and one for each element.
struct Length;

impl<'de> DeserializeSeed<'de> for Length {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Length {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<usize, E> {
        Ok(1)
    }

    fn visit_i64<E>(self, _: i64) -> Result<usize, E> {
        Ok(1)
    }

    fn visit_u64<E>(self, _: u64) -> Result<usize, E> {
        Ok(1)
    }

    fn visit_f64<E>(self, _: f64) -> Result<usize, E> {
        Ok(1)
    }

    fn visit_unit<E>(self) -> Result<usize, E> {
        Ok(1)
    }

    fn visit_str<E>(self, text: &str) -> Result<usize, E> {
        Ok(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<usize, A::Error> {
        let mut bytes = 0;
        while let Some(more) = elements.next_element_seed(Self)? {
            bytes += more + 1;
        }
        Ok(bytes)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut bytes = 0;
        while let Some(name) = map.next_key_seed(NameOf)? {
            bytes += name.bytes + map.next_value_seed(Self)? + 1;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_fields_that_are_made_for_it_are_long() {
        let long = "\u{7f}".repeat(SHORT_FIELD_MAX + 1);
        let refused =
            |json: &str| check(json.as_bytes(), &["content", "env"]).err().map(|failure| failure.0.detail);
        for json in [
            format!(r#" {{"content":"{long}","mode":"644"}}"#),
            format!(r#"{{"env":{{"{long}":"{long}"}},"parents":true,"n":[1,-1,1.5,null]}}"#),
            // What is no JSON is for its reader to tell.
            r#"{"content":"#.to_owned(),
            "{} and more".to_owned(),
        ] {
            assert_eq!(refused(&json), None);
        }
        for json in [
            format!(r#"{{"parents":"{long}"}}"#),
            format!(r#"{{"content":"x","parents":["x",{{"y":"{long}"}}]}}"#),
            format!(r#"{{"parents":[{}0]}}"#, "0,".repeat(SHORT_FIELD_MAX)),
            format!(r#"{{"parents":{{"{long}":1}}, and nothing more is read"#),
        ] {
            let detail = refused(&json).unwrap();
            assert!(detail.starts_with("parents: it is longer than"), "{detail}");
        }
        let detail = refused(&format!(r#"{{"{long}":1}}"#)).unwrap();
        assert!(detail.len() < 300, "{} bytes", detail.len());
        for json in ["", "  ", "[1]", "\"x\"", &format!("\"{long}\"")] {
            assert_eq!(refused(json).as_deref(), Some("the request is no JSON object"));
        }
    }
}
