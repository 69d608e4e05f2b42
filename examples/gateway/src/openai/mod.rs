//! OpenAI-style requests as Gemini requests, and the answers back.
