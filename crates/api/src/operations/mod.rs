//! All operations: one row each, read by columns.
//!
//! A row gives the operation of `microvm_types::operation` (its name for audit, its permission), method and path, whether a
//! request may be sent again and whether MCP may offer it, and the types of path, query, body and answer. Its documentation
//! is the summary and the description of the OpenAPI document. The server binds each to a handler of these types, the client
//! makes its calls from it.

pub mod context;
pub mod event;
pub mod file;
pub mod guest;
pub mod image;
pub mod kernel;
pub mod pool;
pub mod process;
pub mod snapshot;
pub mod system;
pub mod template;
pub mod vm;
pub mod volume;

use crate::operation::Row;

/// Writes rows: a type that implements [`crate::operation::Operation`] for each, and `ROWS`, all of them.
#[macro_export]
macro_rules! rows {
    ($(
        $(#[doc = $doc:literal])+
        $type:ident = $operation:ident, $method:ident $path:literal, $retry:ident, $mcp:ident,
            ($parameters:ty, $query:ty) $body:ty => $answer:ty;
    )*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy)]
            pub struct $type;

            impl $crate::operation::Operation for $type {
                const OPERATION: $crate::OperationName = $crate::OperationName::$operation;
                const METHOD: $crate::operation::Method = $crate::operation::Method::$method;
                const PATH: &'static str = $path;
                const RETRY: $crate::operation::Retry = $crate::operation::Retry::$retry;
                const MCP: $crate::operation::Mcp = $crate::operation::Mcp::$mcp;
                const DOCUMENTATION: &'static [&'static str] = &[$($doc),+];
                type Path = $parameters;
                type Query = $query;
                type Body = $body;
                type Answer = $answer;
            }
        )*

        /// All rows of this table.
        pub static ROWS: &[$crate::operation::Row] = &[$($crate::operation::Row::of::<$type>()),*];
    };
}

/// All rows, by subject.
pub fn all() -> impl Iterator<Item = &'static Row> {
    [
        vm::ROWS,
        guest::ROWS,
        process::ROWS,
        context::ROWS,
        file::ROWS,
        snapshot::ROWS,
        pool::ROWS,
        event::ROWS,
        image::ROWS,
        kernel::ROWS,
        volume::ROWS,
        template::ROWS,
        system::ROWS,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests;
