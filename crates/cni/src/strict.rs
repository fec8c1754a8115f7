//! A strict deserializer for JSON values.
//!
//! serde accepts an array for a struct and assigns its elements to the fields in order. This
//! deserializer requires the JSON type that the target needs. Otherwise the error names, in JSON
//! terms, the expected type and the type found.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// Deserializes `value` into a `T`. The error message contains the path of the key, the expected
/// type and the value found.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| error.to_string())
}

/// The reason why a value does not match the target type.
#[derive(Debug)]
pub(crate) struct Error(String);

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("the key {field:?} is missing"))
    }
}

/// A deserializer that accepts a value only for a target of its own JSON type.
#[derive(Clone, Copy)]
struct Strict<'de>(&'de Value);

impl<'de> Strict<'de> {
    fn object(self) -> Result<&'de serde_json::Map<String, Value>, Error> {
        self.0.as_object().ok_or_else(|| self.expected("an object"))
    }

    fn expected(self, what: &str) -> Error {
        Error(format!("expected {what}, found {}", described(self.0)))
    }

    fn integer<T>(self, least: i128, greatest: i128) -> Result<T, Error>
    where
        T: TryFrom<i128>,
    {
        let what = format!("a whole number from {least} to {greatest}");
        let number = self.0.as_i64().map(i128::from);
        let number = number.or(self.0.as_u64().map(i128::from));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| self.expected(&what))
    }
}

/// Returns the JSON type and the text of a value. A long text is truncated.
fn described(value: &Value) -> String {
    const LONGEST: usize = 60;
    let kind = match value {
        Value::Null => return "null".to_owned(),
        Value::Bool(_) => "the boolean",
        Value::Number(_) => "the number",
        Value::String(_) => "the string",
        Value::Array(_) => "the array",
        Value::Object(_) => "the object",
    };
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    format!("{kind} {text}")
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(self.integer(i128::from(<$type>::MIN), i128::from(<$type>::MAX))?)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (_, Some(number)) => visitor.visit_i64(number),
                _ => visitor.visit_f64(number.as_f64().expect("JSON has no other numbers")),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = self.0.as_bool();
        visitor.visit_bool(value.ok_or_else(|| self.expected("true or false"))?)
    }

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let number = self.0.as_f64();
        visitor.visit_f64(number.ok_or_else(|| self.expected("a number"))?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.0.as_str();
        visitor.visit_borrowed_str(text.ok_or_else(|| self.expected("a string"))?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let list = self.0.as_array().ok_or_else(|| self.expected("an array"))?;
        visitor.visit_seq(SeqDeserializer::new(list.iter().map(Strict)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let entries = self.object()?.iter();
        let entries = entries.map(|(key, value)| (key.as_str(), Strict(value)));
        visitor.visit_map(MapDeserializer::new(entries))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // Keys match without regard to case, as in Go.
        let field = |key: &'de str| {
            let mut fields = fields.iter().copied();
            fields
                .find(|field| field.eq_ignore_ascii_case(key))
                .unwrap_or(key)
        };
        let entries = self.object()?.iter();
        let entries = entries.map(|(key, value)| (field(key), Strict(value)));
        visitor.visit_map(MapDeserializer::new(entries))
    }

    forward_to_deserialize_any! {
        char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
