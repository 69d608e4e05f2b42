//! Run with
//!
//! ```not_rust
//! cargo run -p gateway -- --simulate
//! ```

fn main() {}
