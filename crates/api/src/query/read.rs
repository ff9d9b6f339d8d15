//! Reading: a serde format whose struct is the query and whose values are decoded bytes.

use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::{QueryError, decode, shown, unknown};

/// The raw query of a URL.
pub(super) struct Query<'a>(pub(super) &'a str);

/// Why a value cannot be read, before it is known which parameter it is of.
#[derive(Debug)]
pub(super) enum Failure {
    Query(QueryError),
    /// What the value should be.
    Wanted(String),
}

impl From<Failure> for QueryError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Query(error) => error,
            Failure::Wanted(detail) => Self::Shape(detail),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Query(error) => error.fmt(formatter),
            Self::Wanted(detail) => formatter.write_str(detail),
        }
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: Display>(detail: T) -> Self {
        Self::Wanted(detail.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Query(QueryError::Missing(field))
    }
}

/// Names with their values; a name that stands alone has none.
type Pairs = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Query<'_> {
    fn pairs(&self) -> Result<Pairs, QueryError> {
        let pairs = self.0.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (name, value) =
                    pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value)));
                Ok((decode(name)?, value.map(decode).transpose()?))
            })
            .collect()
    }
}

impl<'de> de::Deserializer<'de> for Query<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Failure> {
        Err(Failure::Wanted("only a struct has parameters".to_owned()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let pairs = self.pairs().map_err(Failure::Query)?;
        if let Some((name, _)) =
            pairs.iter().find(|(name, _)| !fields.iter().any(|field| field.as_bytes() == name))
        {
            return Err(Failure::Query(unknown(name, fields)));
        }
        visitor.visit_map(Fields { pairs, fields: fields.iter(), name: "" })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The fields of a struct that are in the query.
struct Fields {
    pairs: Pairs,
    fields: std::slice::Iter<'static, &'static str>,
    /// The field whose value comes next.
    name: &'static str,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        for name in self.fields.by_ref() {
            if self.pairs.iter().any(|(key, _)| key == name.as_bytes()) {
                self.name = name;
                return seed.deserialize(StrDeserializer::new(name)).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let values = self.pairs.extract_if(.., |(key, _)| key == self.name.as_bytes());
        let values: Vec<Option<Vec<u8>>> = values.map(|(_, value)| value).collect();
        seed.deserialize(Values { name: self.name, values })
    }
}

/// All values of one parameter; at least one.
struct Values {
    name: &'static str,
    values: Vec<Option<Vec<u8>>>,
}

impl Values {
    /// The only value.
    fn only(mut self) -> Result<Value, Failure> {
        match (self.values.pop(), self.values.is_empty()) {
            (Some(value), true) => {
                let alone = value.is_none();
                Ok(Value { name: self.name, bytes: value.unwrap_or_default(), alone })
            }
            _ => Err(Failure::Query(QueryError::Twice(self.name))),
        }
    }
}

macro_rules! forward_to_the_only_value {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.only()?.$method(visitor)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Values {
    type Error = Failure;

    forward_to_the_only_value! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_map
        deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_seq(List { name: self.name, values: self.values.into_iter() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let value = self.only()?;
        let (name, bytes) = (value.name, value.bytes.clone());
        visitor.visit_enum(value).map_err(|failure| placed(failure, name, &bytes))
    }

    forward_to_deserialize_any! { i128 u128 unit_struct tuple tuple_struct struct }
}

struct List {
    name: &'static str,
    values: std::vec::IntoIter<Option<Vec<u8>>>,
}

impl<'de> SeqAccess<'de> for List {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        let Some(value) = self.values.next() else { return Ok(None) };
        seed.deserialize(Values { name: self.name, values: vec![value] }).map(Some)
    }
}

/// One value of a parameter.
struct Value {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether there is the name only.
    alone: bool,
}

/// Says which parameter is not what it should be.
fn placed(failure: Failure, name: &'static str, bytes: &[u8]) -> Failure {
    match failure {
        Failure::Wanted(wanted) => Failure::Query(QueryError::Value { name, value: shown(bytes), wanted }),
        told @ Failure::Query(_) => told,
    }
}

impl Value {
    fn refused(&self, wanted: &str) -> Failure {
        placed(Failure::Wanted(wanted.to_owned()), self.name, &self.bytes)
    }

    fn parsed<T: std::str::FromStr>(&self, wanted: &str) -> Result<T, Failure> {
        let parsed = std::str::from_utf8(&self.bytes).ok().and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| self.refused(wanted))
    }
}

macro_rules! numbers {
    ($($method:ident, $visit:ident, $wanted:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            let number = self.parsed($wanted)?;
            visitor.$visit(number).map_err(|failure| placed(failure, self.name, &self.bytes))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Value {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        // A name alone says yes. One with nothing behind its `=` comes of a variable that was not set, and some of these
        // flags remove things.
        match self.bytes.as_slice() {
            b"" if self.alone => visitor.visit_bool(true),
            b"true" | b"1" => visitor.visit_bool(true),
            b"false" | b"0" => visitor.visit_bool(false),
            _ => Err(self.refused("true or false")),
        }
    }

    numbers! {
        deserialize_i8, visit_i8, "a number";
        deserialize_i16, visit_i16, "a number";
        deserialize_i32, visit_i32, "a number";
        deserialize_i64, visit_i64, "a number";
        deserialize_u8, visit_u8, "a number, not below 0,";
        deserialize_u16, visit_u16, "a number, not below 0,";
        deserialize_u32, visit_u32, "a number, not below 0,";
        deserialize_u64, visit_u64, "a number, not below 0,";
        deserialize_f32, visit_f32, "a number";
        deserialize_f64, visit_f64, "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let text = std::str::from_utf8(&self.bytes).map_err(|_| self.refused("text in UTF-8"))?;
        visitor.visit_str(text).map_err(|failure| placed(failure, self.name, &self.bytes))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_byte_buf(self.bytes)
    }

    forward_to_deserialize_any! {
        i128 u128 char option unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

impl<'de> EnumAccess<'de> for Value {
    type Error = Failure;
    type Variant = Unit;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Unit), Failure> {
        let text = std::str::from_utf8(&self.bytes).map_err(|_| self.refused("text in UTF-8"))?;
        Ok((seed.deserialize(StrDeserializer::<Failure>::new(text))?, Unit))
    }
}

/// A variant without fields.
struct Unit;

impl<'de> VariantAccess<'de> for Unit {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Failure> {
        Err(de::Error::custom("a word"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value, Failure> {
        Err(de::Error::custom("a word"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Failure> {
        Err(de::Error::custom("a word"))
    }
}
