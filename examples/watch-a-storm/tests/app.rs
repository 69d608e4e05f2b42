//! The program as its users meet it.

fn run(args: &[&str]) -> (u8, String, String) {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = watch_a_storm::app(&args, &mut out, &mut err);
    (code, String::from_utf8(out).expect("UTF-8"), String::from_utf8(err).expect("UTF-8"))
}

fn row(text: &str, name: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.trim_start().starts_with(name)).expect(name);
    line.split_whitespace().rev().take(2).map(str::to_owned).collect()
}

#[test]
fn the_fallback_delivers_more_and_nobody_pays_twice() {
    let (code, out, err) = run(&["--hours", "4", "--every", "120"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let images: Vec<u32> =
        row(&out, "images").iter().map(|number| number.parse().expect("a number")).collect();
    let (fallback, retry) = (images[0], images[1]);
    assert!(fallback >= 114 && fallback > retry, "{out}");
    assert_eq!(row(&out, "calls sent again after a charge"), ["0", "0"]);
    assert_eq!(row(&out, "paid and not delivered"), ["0", "0"]);
}

#[test]
fn the_same_seed_gives_the_same_storm() {
    let args = ["--hours", "2", "--seed", "7", "--every", "300"];
    assert_eq!(run(&args), run(&args));
}

#[test]
fn wrong_arguments_are_said_and_help_is_given() {
    assert_eq!(run(&["--help"]).0, 0);
    for args in [&["--hours"][..], &["--hours", "x"], &["--storm"]] {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.contains(args[0]) && err.contains("try '--help'"), "{err}");
    }
}
