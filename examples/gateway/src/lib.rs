//! A drop-in base URL for Gemini SDKs that never pays twice.

mod hold;
pub mod openai;
mod report;
pub mod status;
mod wire;
