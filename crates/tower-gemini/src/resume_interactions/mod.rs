//! Fetches an interaction whose response broke off by its id, and delivers it.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Method, Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::{CallOptions, GeminiStack, Trail, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // The response to the POST is cut; the interaction goes on.
//! let client = service_fn(|request: Request<WireBody>| async move {
//!     let body = match request.method() {
//!         &Method::POST => r#"{"id": "v1_abc", "steps": [{"type": "model_out"#,
//!         _ if request.uri().path().ends_with("/interactions/v1_abc") => {
//!             r#"{"id": "v1_abc", "status": "completed", "steps": [{"type": "model_output", "content": [
//!                 {"type": "image", "mime_type": "image/png", "data": "AQID"}]}]}"#
//!         }
//!         _ => "",
//!     };
//!     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from(body))))
//! });
//! let gemini = GeminiStack::new().images(client);
//! let body = r#"{"model": "gemini-3-pro-image", "input": "a red apple"}"#;
//! let trail = Trail::new();
//! let request = Request::post("/v1beta/interactions")
//!     .extension(CallOptions::new().trail(trail.clone()))
//!     .body(Full::<Bytes>::from(body))
//!     .unwrap();
//! let image = gemini.oneshot(request).await.unwrap().into_body();
//! assert_eq!(image.bytes[..], [1, 2, 3]);
//! // One attempt was made, and the interaction that it started was fetched.
//! assert_eq!(trail.attempts().len(), 1);
//! assert_eq!(trail.interaction_id().as_deref(), Some("v1_abc"));
//! # }
//! ```
//!
//! # Why
//!
//! The Interactions API stores what it makes, and says under which id as soon as it begins. Sending
//! the request again would make and charge it twice; fetching it costs nothing.
//!
//! # What it does
//!
//! | response to `POST …/interactions` | what is passed on |
//! | --- | --- |
//! | complete, whatever its status: `completed`, `failed`, and `in_progress` in response to `background: true` | itself |
//! | cut off, by an error or without one, before its id | itself: it may have been charged |
//! | cut off behind its id | the interaction, once a fetch says that it has ended |
//! | a stream | its complete events; cut off, then those behind the last, and no event twice |
//! | a stream that cannot be resumed (400, 404, no `event_id`) | the event `interaction.completed` with the whole interaction, once it has ended |
//! | an error status, or compressed | itself |
//!
//! An interaction is fetched from where it was started, by the same credentials and headers. Each
//! fetch is a step of the [trail](crate::trail::Step::Fetched), and neither an attempt nor a charge.
//! From the moment its id is known, which is a [step](crate::trail::Step::Interaction) too, the call
//! is never sent again, whatever was
//! [allowed](crate::CallOptions::maybe_charged_resends). Only a call whose interaction has ended
//! without a charge may be.
//!
//! A whole response is held until it is complete. A stream ends with `interaction.completed`, with an
//! error or with `[DONE]`: what breaks behind these is not noticed.
//!
//! # Order in the stack
//!
//! Innermost, directly over the client and below
//! [`ClassifyGeminiError`](crate::ClassifyGeminiError), which then judges a response that did not
//! break. Requests that start no interaction pass through: that costs one comparison.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | held of a response, or of one event | 64 MiB | a 4K image and two drafts have 54 MB of JSON |
//! | wait before the second fetch in a row | 1 s, doubling up to 10 s | ours: an image takes seconds |
//! | fetches in a row that fail | 5 | ours: 15 s |
//! | fetches in a row that find nothing new | 100 | ours: 16 minutes; the limits of [`AttemptTimeout`](crate::AttemptTimeout) end them before |
//!
//! # Errors
//!
//! The client's own. Where an interaction cannot be fetched, its response breaks off as it did:
//! *maybe charged*, or charged, with the id in
//! [`Error::interaction_id`](crate::Error::interaction_id).
//!
//! # Cancel safety
//!
//! The time limits of [`AttemptTimeout`](crate::AttemptTimeout) and the call's deadline hold for the
//! fetches too; a stream that waits for one passes nothing on, so its idle limit runs.
//! Dropping the future or the body drops the client's and ends the fetches. The interaction goes on
//! at the server.

mod body;
mod fetch;
mod layer;
mod plan;
mod service;

pub use body::ResumedBody;
pub use layer::ResumeInteractionsLayer;
pub use service::{ResumeFuture, ResumeInteractions};
