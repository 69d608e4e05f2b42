//! The program as its users meet it.

use std::future::Future;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use quickstart::{Surroundings, app};
use tokio::sync::oneshot;
use tower_gemini_sim::{Fault, Sim, serve};

/// Looks like a key, and must never be seen anywhere.
const SENTINEL: &str = "AIzaSySENTINEL7890abcdefghijklmnopqrstu";

/// A directory of this test's own, gone when it ends.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "quickstart-test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.0)
            .expect("the directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Ran {
    code: u8,
    output: String,
    errors: String,
}

fn run_with(
    args: &[&str],
    out: &Path,
    answer: Option<&str>,
    output: &mut dyn Write,
    interrupted: impl Future<Output = ()>,
) -> (u8, String) {
    let mut args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.extend(["--out".to_owned(), out.to_string_lossy().into_owned()]);
    let mut answer = answer.map(str::as_bytes);
    let mut errors = Vec::new();
    let surroundings = Surroundings {
        key: Some(SENTINEL.to_owned()),
        input: answer.as_mut().map(|answer| answer as &mut dyn io::BufRead),
        output,
        errors: &mut errors,
        colour: false,
    };
    let code = app(&args, surroundings, interrupted);
    (code, String::from_utf8(errors).expect("UTF-8"))
}

fn run(args: &[&str], out: &Path, answer: Option<&str>) -> Ran {
    let mut output = Vec::new();
    let (code, errors) = run_with(args, out, answer, &mut output, std::future::pending());
    let ran = Ran { code, output: String::from_utf8(output).expect("UTF-8"), errors };
    assert!(
        !ran.output.contains("SENTINEL") && !ran.errors.contains("SENTINEL"),
        "{}{}",
        ran.output,
        ran.errors
    );
    ran
}

fn decoded(path: &Path) -> (usize, usize) {
    let file = std::fs::read(path).expect("a file");
    if path.extension().is_some_and(|extension| extension == "png") {
        let mut reader = png::Decoder::new(io::Cursor::new(&file)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut pixels).expect("pixels");
        (info.width as usize, info.height as usize)
    } else {
        let mut decoder = zune_jpeg::JpegDecoder::new(io::Cursor::new(&file));
        decoder.decode().expect("a JPEG");
        decoder.dimensions().expect("dimensions")
    }
}

/// The lines of the table that belong to one call, as cells.
fn rows(output: &str, call: &str) -> Vec<Vec<String>> {
    let table = output.split_once("OUR TRAILS").expect("a table").1;
    let cells = |line: &str| {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    table
        .lines()
        .skip_while(|line| !line.starts_with(call))
        .enumerate()
        .take_while(|(index, line)| *index == 0 || line.starts_with(' '))
        .map(|(_, line)| cells(line))
        .collect()
}

#[test]
fn the_bad_weather_is_survived_and_the_books_hold() {
    let dir = Dir::new();
    let ran = run(&["--quick"], &dir.0, None);
    assert_eq!((ran.code, ran.errors.as_str()), (0, ""), "{}", ran.output);

    assert_eq!(
        dir.files(),
        [
            "brass-orrery.jpg",
            "fox-in-a-library.png",
            "greenhouse.jpg",
            "harbour-crane.jpg",
            "lighthouse.jpg",
            "mountain-range.jpg",
            "paper-boat.jpg",
            "red-bicycle.png",
        ]
    );
    for (name, side) in [
        ("lighthouse.jpg", 16),
        ("brass-orrery.jpg", 32),
        ("mountain-range.jpg", 64),
        ("red-bicycle.png", 16),
    ] {
        assert_eq!(decoded(&dir.0.join(name)), (side, side), "{name}");
    }
    // The draft is a 1K image, the final one is 2K: a reader that takes the first keeps the sketch.
    assert_eq!(decoded(&dir.0.join("greenhouse.jpg")), (32, 32));

    let orrery = rows(&ran.output, "brass-orrery");
    assert_eq!(
        orrery[0][..7],
        ["brass-orrery", "1", "success (200)", "charged", "gemini-3-pro-image", "2K", "32x32"]
    );
    assert!(
        ran.output.contains("32x32, ") && ran.output.contains("2 drafts left out"),
        "{}",
        ran.output
    );

    let range = rows(&ran.output, "mountain-range");
    let outcomes: Vec<_> =
        range.iter().map(|row| row[usize::from(row[0] == "mountain-range") + 1].as_str()).collect();
    assert_eq!(outcomes, ["overloaded (503)", "deadline (503)", "success (200)"]);

    let train = rows(&ran.output, "night-train");
    assert_eq!(
        (train.len(), train[0][2].as_str(), train[0][3].as_str()),
        (1, "interrupted", "maybe")
    );
    assert!(train[0].iter().any(|cell| cell.starts_with("$0.0000 to $")), "{train:?}");
    assert!(
        ran.output.contains("night-train: the connection broke after the request was sent"),
        "{}",
        ran.output
    );

    // How often it is refused depends on how soon the door opens; that it is let in at last does
    // not.
    let crane = rows(&ran.output, "harbour-crane");
    assert_eq!(
        (crane[0][2].as_str(), crane[0][3].as_str()),
        ("not_sent", "none"),
        "{}",
        ran.output
    );
    assert!(crane.len() >= 2 && crane[crane.len() - 1][1] == "success (200)", "{}", ran.output);
    let fox = rows(&ran.output, "fox-in-a-library");
    assert_eq!((fox[0][2].as_str(), fox[0][3].as_str()), ("no_image (200)", "waived"));
    let senator = rows(&ran.output, "senator-in-a-tub");
    assert_eq!(
        (senator.len(), senator[0][2].as_str(), senator[0][3].as_str()),
        (1, "content_blocked (200)", "charged")
    );

    for line in [
        "resent after a charge                                0",
        "images delivered       8                             8",
    ] {
        assert!(ran.output.contains(line), "{line}\n{}", ran.output);
    }
    assert!(
        ran.output.trim_end().ends_with("nothing was sent again after it was charged."),
        "{}",
        ran.output
    );
}

#[test]
fn the_same_seed_draws_the_same_pictures() {
    let (one, two) = (Dir::new(), Dir::new());
    for dir in [&one, &two] {
        assert_eq!(run(&["--quick", "--seed", "3"], &dir.0, None).code, 0);
    }
    let read = |dir: &Dir| std::fs::read(dir.0.join("red-bicycle.png")).expect("a file");
    assert_eq!(read(&one), read(&two));
}

/// Interrupts the program when it has printed something.
struct At<'a> {
    words: &'a str,
    printed: Vec<u8>,
    interrupt: Option<oneshot::Sender<()>>,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.printed.extend_from_slice(bytes);
        if String::from_utf8_lossy(bytes).contains(self.words)
            && let Some(interrupt) = self.interrupt.take()
        {
            let _ = interrupt.send(());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_interrupted_run_says_what_may_have_been_paid() {
    let dir = Dir::new();
    let (interrupt, interrupted) = oneshot::channel();
    // Without --quick attempts take seconds: none has ended when the first is announced.
    let mut output =
        At { words: "attempt 1 goes to", printed: Vec::new(), interrupt: Some(interrupt) };
    let (code, errors) = run_with(&[], &dir.0, None, &mut output, async {
        let _ = interrupted.await;
    });
    let printed = String::from_utf8(output.printed).expect("UTF-8");
    assert_eq!((code, errors.as_str()), (130, ""), "{printed}");
    assert!(
        printed.contains("perhaps charged") && printed.contains("cut off while it ran"),
        "{printed}"
    );
    assert!(
        printed.contains("not sent")
            && printed.contains("The ledger's truth lies within our interval"),
        "{printed}"
    );
    assert_eq!(dir.files(), Vec::<String>::new());
}

#[test]
fn a_reader_who_left_does_not_stop_the_work() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = Dir::new();
    assert_eq!(run_with(&["--quick"], &dir.0, None, &mut Gone, std::future::pending()).0, 0);
    assert_eq!(dir.files().len(), 8);
}

#[test]
fn what_cannot_work_is_said_before_anything_is_sent() {
    let dir = Dir::new();
    let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = busy.local_addr().expect("an address").port().to_string();
    let ran = run(&["--port", &port], &dir.0, None);
    assert!(ran.code == 2 && ran.errors.contains("cannot listen on 127.0.0.1:"), "{}", ran.errors);

    let file = dir.0.join("file");
    std::fs::write(&file, "x").expect("a file");
    let ran = run(&["--quick"], &file.join("below"), None);
    assert!(
        ran.code == 2 && ran.errors.contains("cannot make the output directory"),
        "{}",
        ran.errors
    );

    let ran = run(&["--verbose"], &dir.0, None);
    assert_eq!((ran.code, ran.output.as_str()), (2, ""));
    assert!(ran.errors.contains("unexpected argument '--verbose'"), "{}", ran.errors);

    let ran = run(&["--help"], &dir.0, None);
    assert!(ran.code == 0 && ran.output.contains("--real"));
}

#[test]
fn without_a_key_or_consent_nothing_is_sent_to_google() {
    let dir = Dir::new();
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let surroundings = Surroundings {
        key: None,
        input: None,
        output: &mut output,
        errors: &mut errors,
        colour: false,
    };
    let code =
        app(&["--real".to_owned(), "--yes".to_owned()], surroundings, std::future::pending());
    assert_eq!(code, 2);
    assert!(
        String::from_utf8_lossy(&errors).contains("set the environment variable GEMINI_API_KEY")
    );

    let nobody = run(&["--real"], &dir.0, None);
    assert!(nobody.code == 2 && nobody.errors.contains("--yes agrees"), "{}", nobody.errors);
    let two = ["--real", "--model", "gemini-3.1-flash-image", "--count", "2"];
    let no = run(&two, &dir.0, Some("n\n"));
    assert!(
        no.code == 1
            && no.output.contains(
                "2 images of gemini-3.1-flash-image at 1K: usually little more than $0.134"
            ),
        "{}",
        no.output
    );
    assert!(no.output.contains("Nothing was sent."), "{}", no.output);
    let size = run(&["--real", "--model", "gemini-2.5-flash-image", "--size", "4K"], &dir.0, None);
    assert!(size.code == 2 && size.errors.contains("does not draw at 4K"), "{}", size.errors);
}

#[test]
fn the_real_mode_keeps_what_was_paid_for_and_never_prints_the_key() {
    let dir = Dir::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let start = |sim: &Sim| {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        runtime.block_on(async { serve(sim.clone(), addr).await }).expect("a server")
    };
    let sim = Sim::quick([Fault::None]);
    let server = start(&sim);
    let url = server.url();
    let args = [
        "--real",
        "--yes",
        "--count",
        "2",
        "--prompt",
        "A cat!",
        "--size",
        "2k",
        "--endpoint",
        &url,
    ];
    assert_eq!(run(&args, &dir.0, None).code, 0);
    let again = run(&args[..], &dir.0, None);
    assert!(
        again.code == 0
            && again.output.contains("2 sends: 2 charged, 0 perhaps charged, 0 surely not."),
        "{}",
        again.output
    );
    // Nothing that was paid for is written over.
    assert_eq!(dir.files(), ["a-cat-1-2.jpg", "a-cat-1.jpg", "a-cat-2-2.jpg", "a-cat-2.jpg"]);
    assert_eq!(decoded(&dir.0.join("a-cat-1.jpg")), (32, 32));

    // Google's answer to a bad key holds the key.
    let strict =
        Sim::builder().reject_key(SENTINEL).latency(tower_gemini_sim::Latency::none()).build();
    let strict_server = start(&strict);
    let url = strict_server.url();
    let refused = run(&["--real", "--yes", "--endpoint", &url], &dir.0, None);
    assert!(
        refused.code == 1 && refused.output.contains("API key not valid"),
        "{}",
        refused.output
    );
    assert!(
        refused.output.contains("0 charged, 0 perhaps charged, 1 surely not"),
        "{}",
        refused.output
    );
    runtime.block_on(async {
        server.shutdown().await;
        strict_server.shutdown().await;
    });
}
