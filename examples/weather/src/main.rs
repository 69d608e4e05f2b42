//! x
#![allow(clippy::print_stdout)]
fn main() {
    let seeds: u64 = std::env::args().nth(3).and_then(|s| s.parse().ok()).unwrap_or(1);
    let scale: f64 = std::env::args().nth(4).and_then(|s| s.parse().ok()).unwrap_or(0.25);
    let only = std::env::args().nth(1).unwrap_or_default();
    let pol = std::env::args().nth(2).unwrap_or_default();
    let mut jobs = vec![];
    for s in weather::scenario::all() {
        if only != "all" && s.name != only {
            continue;
        }
        for p in weather::zoo::ALL {
            if pol != "all" && !p.name.starts_with(&pol) {
                continue;
            }
            jobs.push((s.clone(), p));
        }
    }
    #[allow(clippy::disallowed_methods)]
    let r = weather::drive::side_by_side(
        &jobs,
        |(s, p)| {
            let t = std::time::Instant::now();
            let score = (0..seeds)
                .map(|seed| weather::drive::run(s, p, seed, scale))
                .reduce(weather::score::Score::merge)
                .unwrap();
            (score, t.elapsed())
        },
        |_, _| {},
    );
    for ((s, p), (x, t)) in jobs.iter().zip(r) {
        println!(
            "{:<15}{:<18} {:>5} calls {:>6.1}% {:>6.1}% as asked  p50 {:>6.1} p95 {:>6.1} p99 {:>6.1}  ${:.4} nothing {:>4} dup {:>4} quota {:.2} att {:.2} late {:>4} stated {:?} {:?}",
            s.name,
            p.name,
            x.calls,
            100.0 * x.success(),
            100.0 * x.as_asked as f64 / x.calls as f64,
            x.seconds(0.5),
            x.seconds(0.95),
            x.seconds(0.99),
            x.dollars_per_image(),
            x.for_nothing,
            x.duplicates,
            x.per_image(x.quota),
            x.per_image(x.attempts),
            x.out_of_time,
            x.stated,
            t
        );
    }
}
