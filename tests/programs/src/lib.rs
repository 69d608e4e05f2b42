//! Finds and starts the programs that some tests need and no Rust toolchain brings.
//!
//! A test whose program is missing passes and says so, in a line that `.ci/run` reads:
//! `skipped: <package> <test> needs <program>; <how to get it>`.

use std::io::Write as _;
use std::path::PathBuf;

#[cfg(unix)]
pub mod postgres;

/// Returns the path of the first of these programs that is in `PATH`, or says that the calling test
/// is [skipped](skip) for want of it.
///
/// ```
/// assert!(test_programs::find(&["no-such-program", "cargo"], "cargo").is_some());
/// ```
pub fn find(names: &[&str], apt_package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = find_in(std::env::split_paths(&path), names);
    if found.is_none() {
        skip(names.first().unwrap_or(&""), &format!("`apt-get install {apt_package}`"));
    }
    found
}

fn find_in(dirs: impl Iterator<Item = PathBuf>, names: &[&str]) -> Option<PathBuf> {
    dirs.flat_map(|dir| names.iter().map(move |name| dir.join(name))).find(|path| path.is_file())
}

/// Says on standard error, which the test harness does not capture, that the calling test is
/// skipped. The test must be running on the thread that bears its name.
pub fn skip(needs: &str, how_to_get_it: &str) {
    let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("skipped: {package} {test} needs {needs}; {how_to_get_it}\n");
    // One write, so that the lines of tests that run at once do not mix.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
