//! A simulated day at Gemini's image models, and what each way of retrying makes of it.

pub mod client;
pub mod drive;
pub mod scenario;
pub mod score;
pub mod traffic;
pub mod world;
pub mod zoo;
