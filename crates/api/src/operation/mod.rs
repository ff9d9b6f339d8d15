//! Operations as data: request, answer and permission of each thing that the API can do.
//!
//! [`Operation`] ties the types of one operation together at compile time; [`Row`] is the same without its types, for
//! code that needs all of them (router, document, tests, audit, MCP). Rows are written in [`crate::operations`].

mod answer;
mod body;
mod header;
mod path;
mod row;

use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use microvm_types::OperationName;
use microvm_types::caller::Permission;

use crate::PREFIX;
use crate::query::{self, QueryError};

pub use answer::{Answer, AnyJson, Array, Created, CreatedOrAccepted, Lines, Message, Socket, Whole};
pub use body::{
    Archive, Bytes, CommandJson, Data, Extents, FileJson, Handshake, Json, LongJson, Media, MetricsText,
    Nothing, RequestBody, SHORT_FIELD_MAX,
};
pub use header::Header;
pub use path::{
    ComponentRef, ImageRef, KernelRef, PathError, PathParameters, PoolRef, Port, Segment, SnapshotRef,
    SnapshotVm, TemplateRef, VolumeRef,
};
pub use row::Row;

/// One thing that the API can do. Implemented by the rows of [`crate::operations`], on types without values of their own.
pub trait Operation: Copy + Send + Sync + 'static {
    /// The operation in the table by which the engine authorises: name and permission.
    const OPERATION: OperationName;
    /// Name for audit, logs and metrics, for example `vm.create`. Never changed, never used again.
    const NAME: &'static str = Self::OPERATION.as_str();
    /// Method of its request.
    const METHOD: Method;
    /// Path below [`crate::PREFIX`]; segments in braces are the parameters of [`Self::Path`], in order.
    const PATH: &'static str;
    /// The permission that a caller needs.
    const PERMISSION: Permission = Self::OPERATION.permission();
    /// A second permission that a caller needs, of operations on things of two kinds.
    const FURTHER_PERMISSION: Option<Permission> = Self::OPERATION.further_permission();
    /// Safety of a second request when no answer came. The client obeys it.
    const RETRY: Retry;
    /// Offer as a tool to language models.
    const MCP: Mcp;
    /// Lines of its documentation: the first is the summary, the rest after an empty line is the description.
    const DOCUMENTATION: &'static [&'static str];
    /// Parameters in the path.
    type Path: PathParameters;
    /// Parameters in the query.
    type Query: Parameters;
    /// Body of the request.
    type Body: RequestBody;
    /// The answer.
    type Answer: Answer;
}

/// Path and query of a request for an operation.
///
/// # Errors
/// [`QueryError::Shape`] if the query has a field that no parameter can carry, which the tests of all rows would find.
pub fn uri<O: Operation>(path: &O::Path, query: &O::Query) -> Result<String, QueryError> {
    let mut uri = String::from(PREFIX);
    let mut segments = path.write().into_iter();
    for part in O::PATH.split('/').skip(1) {
        uri.push('/');
        let segment = if part.starts_with('{') { segments.next() } else { None };
        uri.push_str(segment.as_deref().unwrap_or(part));
    }
    uri.push_str(&query::write(query)?);
    Ok(uri)
}

/// Methods of HTTP in use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads; answers `HEAD` too.
    Get,
    /// Acts.
    Post,
    /// Writes the whole of a thing.
    Put,
    /// Removes.
    Delete,
}

impl Method {
    /// As in a request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    /// As in an OpenAPI document.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

/// Safety of a second request when no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Twice leaves what once leaves, and answers the same.
    Safe,
    /// The first request may have been served, and a second would act once more or fail because of the first.
    Never,
}

/// Offer of an operation as a tool to language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mcp {
    /// It may.
    Offered,
    /// It is for people and programs: it streams, or it acts on the host.
    Withheld,
}

/// Parameters in a query: a plain struct with named fields of numbers, texts, flags, options and lists of these.
pub trait Parameters: Serialize + DeserializeOwned + ToSchema + Send + 'static {}

impl<T: Serialize + DeserializeOwned + ToSchema + Send + 'static> Parameters for T {}
