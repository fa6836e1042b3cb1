//! What the bench program shares with the micro-benchmarks.

pub mod hot;
pub mod tokens;
