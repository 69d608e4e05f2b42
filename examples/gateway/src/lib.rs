//! A drop-in base URL for Gemini SDKs that never pays twice.

pub mod openai;
pub mod status;
