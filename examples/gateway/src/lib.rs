//! A drop-in base URL for Gemini SDKs that never pays twice: the logic of the `gateway` program.
//!
//! | room | holds |
//! | --- | --- |
//! | `config`, `args`, `reload` | what is asked for |
//! | `gateway`, `services` | what that makes: layers, stacks, who may use them |
//! | `server`, `limits`, `auth` | the door: connections, bounds, credentials |
//! | `proxy`, `wire`, `hold`, `answers`, `report` | one request on its way |
//! | `openai` | the same requests in OpenAI's words |
//! | `pages`, `status` | what it says of itself |
//!
//! [`start`] runs one inside another program; [`app`] is the whole program over any arguments and outputs, so that a test runs it.

#[allow(dead_code)] mod answers;
mod args;
mod auth;
pub mod config;
mod hold;
mod limits;
pub mod openai;
mod reload;
mod report;
mod server;
pub mod status;
mod wire;

