//! `tower-gemini` for reqwest: the stack as one middleware, and reqwest as a stack's client.

mod client;
mod error;
mod gemini;
mod leaf;
mod middleware;
mod service;
mod sync_body;

pub use client::client_builder;
pub use error::LayerError;
pub use gemini::GeminiMiddleware;
pub use leaf::{ChannelLeaf, LeafFuture};
pub use middleware::StackMiddleware;
pub use service::{ReqwestService, ResponseFuture};
