//! A client of reqwest takes requests of its own.

use tower_gemini::*;

fn main() {
    let _ = GeminiStack::new().images(reqwest::Client::new());
}
