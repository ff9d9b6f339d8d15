//! Writing: the same format in the other direction.

use std::fmt::Display;

use serde::ser::{self, Impossible, Serialize, SerializeSeq, SerializeStruct};

use super::{QueryError, encode_into};

/// Appends parameters to a text.
pub(super) struct Query<'a>(pub(super) &'a mut String);

/// A field that no parameter can carry.
#[derive(Debug)]
pub(super) struct Shape(String);

impl From<Shape> for QueryError {
    fn from(shape: Shape) -> Self {
        Self::Shape(shape.0)
    }
}

impl Display for Shape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Shape {}

impl ser::Error for Shape {
    fn custom<T: Display>(detail: T) -> Self {
        Self(detail.to_string())
    }
}

fn unfit<T>() -> Result<T, Shape> {
    Err(Shape("parameters are numbers, texts, bytes, flags, words and lists of these".to_owned()))
}

/// Methods of a serializer for what this format does not have.
macro_rules! without {
    ($($method:ident ( $($argument:ty),* ) -> $answer:ty;)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<$answer, Shape> {
            unfit()
        }
    )*};
}

impl<'a> ser::Serializer for Query<'a> {
    type Ok = ();
    type Error = Shape;
    type SerializeSeq = Impossible<(), Shape>;
    type SerializeTuple = Impossible<(), Shape>;
    type SerializeTupleStruct = Impossible<(), Shape>;
    type SerializeTupleVariant = Impossible<(), Shape>;
    type SerializeMap = Impossible<(), Shape>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Impossible<(), Shape>;

    fn serialize_struct(self, _name: &'static str, _fields: usize) -> Result<Fields<'a>, Shape> {
        Ok(Fields(self.0))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _value: &T) -> Result<(), Shape> {
        unfit()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _value: &T,
    ) -> Result<(), Shape> {
        unfit()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        _value: &T,
    ) -> Result<(), Shape> {
        unfit()
    }

    without! {
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }
}

/// The fields of a struct as parameters.
pub(super) struct Fields<'a>(&'a mut String);

impl SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = Shape;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Shape> {
        value.serialize(Field { text: self.0, name })
    }

    fn end(self) -> Result<(), Shape> {
        Ok(())
    }
}

/// One parameter, which a list gives several times and an absent option not at all.
struct Field<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Field<'_> {
    fn put(self, value: &[u8]) {
        self.text.push(if self.text.is_empty() { '?' } else { '&' });
        self.text.push_str(self.name);
        self.text.push('=');
        encode_into(value, b"-._~/", self.text);
    }
}

macro_rules! as_text {
    ($($method:ident ( $type:ty );)*) => {$(
        fn $method(self, value: $type) -> Result<(), Shape> {
            self.put(value.to_string().as_bytes());
            Ok(())
        }
    )*};
}

impl<'a> ser::Serializer for Field<'a> {
    type Ok = ();
    type Error = Shape;
    type SerializeSeq = List<'a>;
    type SerializeTuple = Impossible<(), Shape>;
    type SerializeTupleStruct = Impossible<(), Shape>;
    type SerializeTupleVariant = Impossible<(), Shape>;
    type SerializeMap = Impossible<(), Shape>;
    type SerializeStruct = Impossible<(), Shape>;
    type SerializeStructVariant = Impossible<(), Shape>;

    as_text! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Shape> {
        self.put(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Shape> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Shape> {
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<(), Shape> {
        self.put(variant.as_bytes());
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), Shape> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        _value: &T,
    ) -> Result<(), Shape> {
        unfit()
    }

    fn serialize_seq(self, _length: Option<usize>) -> Result<List<'a>, Shape> {
        Ok(List(self))
    }

    without! {
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }
}

/// A parameter that is given several times.
struct List<'a>(Field<'a>);

impl SerializeSeq for List<'_> {
    type Ok = ();
    type Error = Shape;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Shape> {
        value.serialize(Field { text: self.0.text, name: self.0.name })
    }

    fn end(self) -> Result<(), Shape> {
        Ok(())
    }
}
