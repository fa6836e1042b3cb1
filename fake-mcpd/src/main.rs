//! `fake-mcpd`: the library as a process, for tests in any language.
fn main() {}
