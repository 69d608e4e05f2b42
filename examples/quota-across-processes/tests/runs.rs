//! The example as its users run it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail as tests do"
)]

use std::path::Path;

use quota_across_processes::app;

fn run(args: &[&str]) -> (quota_across_processes::Summary, String) {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let mut out = Vec::new();
    let summary =
        app(Path::new(env!("CARGO_BIN_EXE_quota-across-processes")), &args, &mut out).unwrap();
    (summary, String::from_utf8(out).unwrap())
}

#[test]
fn processes_together_stay_within_the_quota_and_use_it() {
    let (summary, out) = run(&["--rpm", "120", "--seconds", "3", "--processes", "3"]);
    assert!(summary.taken <= 120, "{out}");
    assert!(summary.taken >= 100, "{out}");
    assert!(out.contains("never over the limit") && out.contains("█"));
}

#[test]
fn in_a_file_each_goes_on_where_the_killed_one_stopped() {
    let (summary, out) = run(&["--file", "--rpm", "60", "--seconds", "3", "--processes", "3"]);
    assert!(!summary.over_redis);
    assert!(summary.taken <= 60 && summary.taken >= 45, "{out}");
}
