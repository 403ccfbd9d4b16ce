//! The `obelisk` command-line program.
fn main() {}
