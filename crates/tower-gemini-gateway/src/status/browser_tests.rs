//! The page in a real browser, headless: it is drawn, its script runs under its policy, and what
//! changes is put in.

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

use super::{StatusView, csp, json, page, sample};

/// Finds Chromium: the one in the variable `CHROMIUM`, or by the names that systems give it.
fn chromium() -> Option<PathBuf> {
    let usual = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    named.or_else(|| test_programs::find(&usual, "chromium"))
}

/// Serves the page, and JSON of a later state, counting who asks for it.
async fn serve(view: StatusView, later: StatusView) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let (html, json) = (Bytes::from(page(&view)), Bytes::from(json(&later)));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (html, json, count) = (html.clone(), json.clone(), count.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, kind, body) = match request.uri().path() {
                        // The same, with a script that measures it, which the policy would not let
                        // run.
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
    let script = "<script>document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth</script></body>";
    Bytes::from(String::from_utf8_lossy(html).replace("</body>", script))
}

/// Runs the browser once, and gives what it printed.
async fn browse(browser: &Path, profile: &Path, arguments: &[String]) -> String {
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

#[test]
fn the_page_is_drawn_by_a_browser_and_its_script_updates_it() {
    let Some(browser) = chromium() else { return };
    let view = sample::view();
    let mut later = view.clone();
    // What only the script can have put in.
    later.upstream = "put-in-by-the-script.example <b>&amp;".to_owned();
    let target = PathBuf::from(
        std::env::var_os("CARGO_TARGET_DIR")
            .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../target").into()),
    );
    let shots = target.join("status-page");
    std::fs::create_dir_all(&shots).unwrap();
    std::fs::write(shots.join("page.html"), page(&view)).unwrap();
    let profile = std::env::temp_dir().join(format!("status-page-{}", std::process::id()));

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dom, asked) = runtime.block_on(async {
        let (port, asked) = serve(view, later).await;
        let url = format!("http://127.0.0.1:{port}/status");
        // The script looks after a second, and every five: twelve seconds of the browser's time see
        // it do so twice.
        let budget = "--virtual-time-budget=12000".to_owned();
        let dom = browse(
            &browser,
            &profile,
            &["--dump-dom".into(), budget.clone(), "--window-size=1280,900".into(), url.clone()],
        )
        .await;
        for (name, size) in [
            ("phone-390x844", "390,844"),
            ("desktop-1280x900", "1280,900"),
            ("phone-whole-390", "390,4200"),
            ("desktop-whole-1280", "1280,2300"),
        ] {
            for (scheme, flag) in [("light", "1"), ("dark", "0")] {
                let shot = shots.join(format!("{name}-{scheme}.png"));
                let arguments = [
                    format!("--screenshot={}", shot.display()),
                    format!("--window-size={size}"),
                    // 0 is dark, 1 is light.
                    format!("--blink-settings=preferredColorScheme={flag}"),
                    budget.clone(),
                    url.clone(),
                ];
                browse(&browser, &profile, &arguments).await;
                let png = std::fs::read(&shot).unwrap();
                assert!(
                    png.starts_with(b"\x89PNG") && png.len() > 20_000,
                    "{} is a picture",
                    shot.display()
                );
            }
        }
        for width in [360, 390, 760, 1280] {
            let arguments = [
                "--dump-dom".into(),
                format!("--window-size={width},900"),
                format!("http://127.0.0.1:{port}/measured"),
            ];
            let dom = browse(&browser, &profile, &arguments).await;
            assert!(
                dom.contains("data-overflow=\"0\""),
                "nothing stands out at {width} px: {:?}",
                dom.split("data-overflow=").nth(1).map(|at| &at[..6])
            );
        }
        (dom, asked.load(Ordering::Relaxed))
    });
    let _ = std::fs::remove_dir_all(&profile);

    assert!(
        dom.contains("put-in-by-the-script.example &lt;b&gt;&amp;amp;"),
        "the script has put in what came later"
    );
    assert!(dom.contains("data-live=\"yes\""), "and says so");
    assert!(asked >= 2, "it has asked again: {asked}");
    println!("screenshots are in {}", shots.display());
}
