//! Gives the API back the thought signatures that it asks for in further turns, or says which one
//! is missing before anything is sent.
//!
//! ```
//! use std::convert::Infallible;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::{GeminiStack, ThoughtSignaturesLayer, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Answers with an image and its signature, and shows whether the request had one.
//! let client = service_fn(|request: Request<WireBody>| async {
//!     let body = request.into_body().collect().await.unwrap().to_bytes();
//!     let signed = String::from_utf8_lossy(&body).contains(r#""thoughtSignature":"c2lnbmVk""#);
//!     let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AAAA"},
//!         "thoughtSignature":"c2lnbmVk"}]},"finishReason":"STOP"}]}"#;
//!     Ok::<_, Infallible>(Response::builder().header("signed", signed.to_string()).body(Full::<Bytes>::from(body)).unwrap())
//! });
//! let gemini = GeminiStack::new().signatures(ThoughtSignaturesLayer::new()).raw(client);
//! let post = |body: &'static str| Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::<Bytes>::from(body));
//!
//! gemini.clone().oneshot(post(r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#)?).await?.into_body().collect().await?;
//!
//! // The next turn has lost the signature.
//! let answer = gemini.clone().oneshot(post(r#"{"contents":[{"role":"user","parts":[{"text":"a cat"}]},
//!     {"role":"model","parts":[{"inlineData":{"mimeType":"image/png","data":"AAAA"}}]},
//!     {"role":"user","parts":[{"text":"with a hat"}]}]}"#)?).await?;
//! assert_eq!(answer.headers()["signed"], "true");
//!
//! // No signature of this image was seen.
//! let refused = gemini.oneshot(post(r#"{"contents":[{"role":"user","parts":[{"text":"a dog"}]},
//!     {"role":"model","parts":[{"inlineData":{"mimeType":"image/png","data":"BBBB"}}]},
//!     {"role":"user","parts":[{"text":"with a hat"}]}]}"#)?).await?;
//! assert_eq!(refused.status(), 400);
//! let message = refused.body().verdict().message().unwrap();
//! assert!(message.starts_with("Image part is missing a thought_signature in content position 2, part position 1."));
//! # Ok(()) }
//! ```
//!
//! # What the API asks for
//!
//! Gemini 3 models sign what they draw, and want each signature back on the part it came with: on
//! every image part and on the first part after the thoughts. In image editing a missing one is a
//! 400 that names content and part, both counted from 1. Clients lose them: those of LiteLLM drop
//! the image's signature, and those that keep history in another shape have no place for it. The
//! request's quota is spent, and the user sees an error that no waiting cures.
//!
//! # What this does
//!
//! * Reads the model's turns of requests in Gemini's own dialects and finds checked parts without a
//!   signature.
//! * Restores what it has seen: answers are read along as they pass, and each part's signature is
//!   remembered under a hash of what the part decodes to. Images compare by their bytes, so that
//!   re-encoding in the other base64 alphabet, which google-genai does, changes nothing. Signatures
//!   of the Gemini API are never given to Vertex AI, nor the other way: each refuses the other's.
//! * Does by policy what remains: refuses, in the API's own words and without sending; or writes
//!   the documented [placeholder](PLACEHOLDER); or sends it as it is.
//!
//! Thoughts are not checked, nor are turns without an image, nor models that do not think. On
//! Vertex AI, Pro models are not: it does not enforce theirs. Calls to a model that the catalogue
//! does not know are restored, never refused.
//!
//! Requests are spliced, not written anew: megabytes of images stay where they are. What was
//! written is in the trail.
//!
//! # Order in the stack
//!
//! Outside the fallbacks, which decide what becomes of signatures when a call moves elsewhere;
//! inside [`FinalImageExtract`](crate::FinalImageExtract). It works alone too, over judged answers.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | a signature that is missing and was never seen | refused | ours: nothing is hidden, and nothing was paid |
//! | signatures remembered | 1024, of 64 MiB in all | ours: twenty to sixty images at the 1.1 to 2.9 MB recorded for one (2026) |
//! | Pro on Vertex AI | not checked | Vertex AI documentation, 2026-07 |
//!
//! # Errors
//!
//! The inner service's own. A refusal is an answer: 400 `INVALID_ARGUMENT`, `ErrorInfo.reason`
//! `MISSING_THOUGHT_SIGNATURE`, `domain` `tower-gemini`, with the position in message and metadata.
//!
//! # Cancel safety
//!
//! Nothing is held. A response that is dropped before its end is not remembered.

mod file;
mod layer;
mod policy;
mod service;
mod store;

pub use layer::ThoughtSignaturesLayer;
pub use policy::{Missing, PLACEHOLDER};
pub use service::ThoughtSignatures;
