//! Run with
//!
//! ```not_rust
//! cargo run -p peak-hours
//! ```
//!
//! Lets another model go first in peak hours, and lets a call that can wait do so.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt as _;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::{Schedule, Window, Zone};
use tower_gemini::{CallOptions, GeminiStack, PeakHourRouterLayer};
use tower_gemini_sim::{Latency, Sim};

const FLASH: &str = "gemini-3.1-flash-image";
const PRO: &str = "gemini-3-pro-image";
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    app(&mut std::io::stdout()).await
}

async fn app(out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let sim = Sim::builder().latency(Latency::none()).tiny_images(true).build();

    // Published hours contradict each other, so there is no default schedule: this one is an
    // example. In it Pro goes first when Flash is asked for.
    let schedule = Schedule::new(Zone::utc(), [Window::daily("10:00", "14:00")])?;
    // 2026-01-05, 11:00 UTC: within the window.
    let clock = RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + HOUR * 490_979);
    let router = PeakHourRouterLayer::new(schedule).in_peak(FLASH, PRO).clock(clock);
    let gemini = GeminiStack::new()
        .peak_hours(router)
        .fallback_to(Chain::new([FLASH, PRO]))
        .images(sim.service());

    gemini.clone().oneshot(request(CallOptions::new())?).await?;
    // This one may wait up to six hours, so it goes to Flash when the window ends.
    let patient = CallOptions::new().deadline(8 * HOUR).deferrable_for(6 * HOUR);
    gemini.oneshot(request(patient)?).await?;

    for record in sim.ledger().requests() {
        let minutes = record.received_at.as_secs() / 60;
        writeln!(out, "after {minutes:>3} minutes: {}", record.model)?;
    }
    Ok(())
}

fn request(options: CallOptions) -> http::Result<Request<Full<Bytes>>> {
    Request::post(format!("https://gemini.example/v1beta/models/{FLASH}:generateContent"))
        .header("x-goog-api-key", "any key")
        .extension(options)
        .body(Full::from(r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#))
}

#[tokio::test(start_paused = true)]
async fn one_call_goes_to_pro_at_once_and_the_other_to_flash_in_quiet_hours() {
    let mut out = Vec::new();
    app(&mut out).await.expect("images");
    let out = String::from_utf8_lossy(&out);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], format!("after   0 minutes: {PRO}"), "{out}");
    assert!(lines[1].starts_with("after 18") && lines[1].ends_with(FLASH), "{out}");
}
