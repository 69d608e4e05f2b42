//! The page in a real, headless browser: it is drawn under its policy, updated, and safe from markup
//! in values. With UPDATE_DOCS=1 the picture of the guide, `docs/status.png`, is made anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::process::Command;

use super::super::{Status, csp, page};
use super::{HOSTILE, hostile, sample};

/// Finds Chromium: the one in the variable `CHROMIUM`, or by the names that systems give it.
pub(crate) fn chromium() -> Option<PathBuf> {
    let usual = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    named.or_else(|| test_programs::find(&usual, "chromium"))
}

/// Serves the page and this status, and counts the requests for it.
async fn serve(status: &Status) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let (html, json) = (Bytes::from(page()), Bytes::from(status.to_json()));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (html, json, count) = (html.clone(), json.clone(), count.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, kind, body) = match request.uri().path() {
                        // The same with a script that measures it, which the policy forbids.
                        "/measured" => (200, "text/html; charset=utf-8", measured(&html)),
                        "/status" => (200, "text/html; charset=utf-8", html.clone()),
                        "/status.json" => {
                            count.fetch_add(1, Ordering::Relaxed);
                            (200, "application/json", json.clone())
                        }
                        _ => (404, "text/plain", Bytes::new()),
                    };
                    let response = Response::builder()
                        .status(status)
                        .header("content-type", kind)
                        .header("cache-control", "no-store")
                        .header(
                            "content-security-policy",
                            if request.uri().path() == "/measured" { "" } else { csp() },
                        )
                        .body(Full::new(body))
                        .unwrap();
                    std::future::ready(Ok::<_, std::convert::Infallible>(response))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (port, asked)
}

fn measured(html: &Bytes) -> Bytes {
    let script = "<script>setTimeout(() => { document.body.dataset.overflow = \
        document.documentElement.scrollWidth - innerWidth }, 2000)</script></body>";
    Bytes::from(String::from_utf8_lossy(html).replace("</body>", script))
}

/// Runs the browser once, and gives what it printed.
pub(crate) async fn browse(browser: &Path, profile: &Path, arguments: &[String]) -> String {
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .expect("the browser ends")
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A picture with a palette, which is a fourth as long: its 256 most frequent colours, the nearest
/// of them for each other one.
fn with_palette(png: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    let pixels = pixels[..frame.buffer_size()].chunks(frame.color_type.samples());
    let pixels: Vec<[u8; 3]> = pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    let mut counts = BTreeMap::<_, usize>::new();
    pixels.iter().for_each(|colour| *counts.entry(*colour).or_default() += 1);
    let mut palette: Vec<_> = counts.keys().copied().collect();
    palette.sort_by_key(|colour| std::cmp::Reverse(counts[colour]));
    palette.truncate(256);
    let distance = |a: &[u8; 3], b: &[u8; 3]| -> u32 {
        a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
    };
    let nearest = |colour: &[u8; 3]| {
        let index = (0..palette.len()).min_by_key(|at| distance(&palette[*at], colour)).unwrap();
        u8::try_from(index).unwrap()
    };
    let known: BTreeMap<_, _> = counts.keys().map(|colour| (*colour, nearest(colour))).collect();
    let indices: Vec<u8> = pixels.iter().map(|colour| known[colour]).collect();
    let mut short = Vec::new();
    let mut encoder = png::Encoder::new(&mut short, frame.width, frame.height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(palette.concat());
    encoder.set_filter(png::Filter::NoFilter);
    encoder.set_compression(png::Compression::High);
    encoder.write_header().unwrap().write_image_data(&indices).unwrap();
    short
}

/// The elements of a dumped page, without attributes and text.
pub(crate) fn elements(dom: &str) -> Vec<&str> {
    let body = dom.split("<body").nth(1).unwrap_or_default();
    let body = body.split("<script").next().unwrap_or_default();
    body.split('<').map(|tag| tag.split([' ', '>', '/']).next().unwrap_or_default()).collect()
}

#[test]
fn the_page_is_drawn_by_a_browser_and_no_value_becomes_markup() {
    let Some(browser) = chromium() else { return };
    let target = PathBuf::from(
        std::env::var_os("CARGO_TARGET_DIR")
            .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target").into()),
    );
    let shots = target.join("status-page");
    std::fs::create_dir_all(&shots).unwrap();
    let profile = std::env::temp_dir().join(format!("status-page-{}", std::process::id()));
    let mut status = sample::status();
    let of_guide = status.clone();
    status.upstream = "upstream.example <b>&amp;".to_owned();
    let harmless = hostile("harmless");
    let hostile = HOSTILE.map(|text| (text, hostile(text)));

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (port, asked) = serve(&status).await;
        let url = format!("http://127.0.0.1:{port}/status");
        // The script requests every five seconds: twelve of the browser's see it do so three times.
        let budget = "--virtual-time-budget=12000".to_owned();
        let dump = |url: String, width: u32| {
            let window = format!("--window-size={width},900");
            let arguments = ["--dump-dom".into(), budget.clone(), window, url];
            let (browser, profile) = (&browser, &profile);
            async move { browse(browser, profile, &arguments).await }
        };
        let dom = dump(url.clone(), 1280).await;
        assert!(dom.contains("to upstream.example &lt;b&gt;&amp;amp;"), "values are drawn as text");
        assert!(dom.contains("data-live=\"yes\""), "the script ran under the policy");
        for says in ["429 : 503 = ", "The line marks 70 %.", "pictures-eu", "Does not help:"] {
            assert!(dom.contains(says), "{says}");
        }
        let asked = asked.load(Ordering::Relaxed);
        assert!(asked >= 2, "it requests again: {asked}");
        for (name, size) in [("phone", "390,4200"), ("desktop", "1280,2400")] {
            // 0 is dark, 1 is light.
            for (scheme, flag) in [("light", "1"), ("dark", "0")] {
                let shot = shots.join(format!("{name}-{scheme}.png"));
                let arguments = [
                    format!("--screenshot={}", shot.display()),
                    format!("--window-size={size}"),
                    format!("--blink-settings=preferredColorScheme={flag}"),
                    budget.clone(),
                    url.clone(),
                ];
                browse(&browser, &profile, &arguments).await;
                let png = std::fs::read(&shot).unwrap();
                let is_picture = png.starts_with(b"\x89PNG") && png.len() > 20_000;
                assert!(is_picture, "{}", shot.display());
            }
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/status.png");
            let (port, _) = serve(&of_guide).await;
            // As far as the latest calls.
            let arguments = [
                format!("--screenshot={picture}"),
                "--window-size=1280,1636".to_owned(),
                "--blink-settings=preferredColorScheme=1".to_owned(),
                budget.clone(),
                format!("http://127.0.0.1:{port}/status"),
            ];
            browse(&browser, &profile, &arguments).await;
            let short = with_palette(&std::fs::read(picture).unwrap());
            assert!(short.len() < 200_000, "too long for a page: {}", short.len());
            std::fs::write(picture, short).unwrap();
        }
        for width in [360, 390, 760, 1280] {
            let dom = dump(format!("http://127.0.0.1:{port}/measured"), width).await;
            assert!(
                dom.contains("data-overflow=\"0\""),
                "nothing is wider than {width} px: {:?}",
                dom.split("data-overflow=").nth(1).map(|at| &at[..6])
            );
        }
        let of = async |status: &Status| {
            let (port, _) = serve(status).await;
            dump(format!("http://127.0.0.1:{port}/status"), 1280).await
        };
        let harmless = of(&harmless).await;
        for (text, status) in &hostile {
            let dom = of(status).await;
            assert_eq!(elements(&dom), elements(&harmless), "{text}");
        }
    });
    let _ = std::fs::remove_dir_all(&profile);
    println!("screenshots are in {}", shots.display());
}
