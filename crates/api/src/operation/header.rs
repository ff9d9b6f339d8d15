//! Headers of answers, as the document describes them.

use microvm_types::files::{FileStat, LeftOut};
use serde_json::{Value, json};

use crate::schemas::Schemas;
use crate::{
    END_HEADER, FILE_STAT_HEADER, LEFT_OUT_HEADER, OFFSET_HEADER, REQUEST_ID_HEADER, SHA256_HEADER,
    UNREADABLE_HEADER,
};

/// A header of an answer, or a trailer, which OpenAPI has no word for.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Its name in lower case.
    pub name: &'static str,
    about: &'static str,
    value: Kind,
}

/// Value of a header.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    Sha256,
    Json(fn(&mut Schemas) -> Value),
}

const fn header(name: &'static str, about: &'static str, value: Kind) -> Header {
    Header { name, about, value }
}

/// Header of every answer.
pub(super) const REQUEST_ID: Header =
    header(REQUEST_ID_HEADER, "Id of the request, to be found in the log of the server", Kind::Text);
/// Trailer of streamed bytes.
pub(super) const SHA256: Header = header(
    SHA256_HEADER,
    "Trailer: SHA-256 of the body in lower-case hexadecimal; missing if the body is not complete",
    Kind::Sha256,
);
/// Header of a file.
pub(super) const FILE_STAT: Header =
    header(FILE_STAT_HEADER, "Description of the file", Kind::Json(Schemas::reference::<FileStat>));
/// Trailer of an archive.
pub(super) const LEFT_OUT: Header = header(
    LEFT_OUT_HEADER,
    "Trailer: entries that are not in the archive; missing if the guest's agent is too old to report them",
    Kind::Json(Schemas::reference::<LeftOut>),
);
/// Header of a part of a console.
pub(super) const OFFSET: Header = header(
    OFFSET_HEADER,
    "Offset of the first byte of the answer, from the beginning of the console",
    Kind::Number,
);
/// Header of a part of a console.
pub(super) const END: Header =
    header(END_HEADER, "Offset after the newest byte of the console", Kind::Number);
/// Header of a list that is a plain array.
pub(super) const UNREADABLE: Header =
    header(UNREADABLE_HEADER, "Number of stored entries that cannot be read; missing: none", Kind::Number);

impl Header {
    /// The header as an OpenAPI header object.
    pub(super) fn describe(&self, schemas: &mut Schemas) -> Value {
        let about = self.about;
        match self.value {
            Kind::Text => json!({ "description": about, "schema": { "type": "string" } }),
            Kind::Number => {
                json!({ "description": about, "schema": { "type": "integer", "format": "int64", "minimum": 0 } })
            }
            Kind::Sha256 => {
                json!({ "description": about, "schema": { "type": "string", "pattern": "^[0-9a-f]{64}$" } })
            }
            Kind::Json(schema) => {
                json!({ "description": about, "content": { "application/json": { "schema": schema(schemas) } } })
            }
        }
    }
}
