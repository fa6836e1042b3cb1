//! JSON as bytes: a reader that says where things are, and strings in their escaped form.
//!
//! It is for what is read per token, where a tree of values would cost more than everything else.
//! What is read once a task is read by serde.
//!
//! ```text
//! scan    a reader that says where things are; it copies nothing
//!   skip    where a value ends
//! text    strings, escaped and plain
//! ```

pub mod text;

pub(crate) mod scan;

mod skip;

/// In what way a text is not one JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is not UTF-8.
    #[error("is not valid UTF-8")]
    NotUtf8,
    /// A JSON syntax error.
    #[error("is not valid JSON")]
    NotJson,
    /// Valid JSON, but of another type.
    #[error("is not a JSON object")]
    NotObject,
    /// Nested more deeply than 128 levels.
    #[error("is nested too deeply")]
    TooDeep,
    /// Longer than 4 GiB.
    #[error("is too long")]
    TooLong,
}
