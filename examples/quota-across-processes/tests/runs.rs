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

// Without redis-server both tests fell back to one file, and the second failed to open it.
#[test]
fn two_runs_at_once_do_not_share_a_file() {
    let args = ["--file", "--rpm", "60", "--seconds", "2", "--processes", "2"];
    let other = std::thread::spawn(move || run(&args).0);
    let (summary, out) = run(&args);
    assert!((1..=60).contains(&summary.taken), "{out}");
    assert!((1..=60).contains(&other.join().unwrap().taken));
}

#[test]
fn processes_together_stay_within_the_quota_and_use_it() {
    let (summary, out) = run(&["--rpm", "120", "--seconds", "3", "--processes", "3"]);
    if !summary.over_redis {
        // It ran over a file: says that it is to run again where redis is.
        test_programs::find(&["redis-server"], "redis-server");
    }
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
