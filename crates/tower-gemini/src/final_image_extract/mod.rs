//! Gives the final images of a response, and nothing else; or the same JSON without the drafts.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::{GeminiStack, WireBody};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let upstream = service_fn(|_: Request<WireBody>| async {
//!     // A draft, marked as a thought, and the final image (one byte each, for brevity).
//!     let body = br#"{"candidates":[{"content":{"parts":[
//!         {"inlineData":{"mimeType":"image/png","data":"AA=="},"thought":true},
//!         {"inlineData":{"mimeType":"image/png","data":"AQ=="}}]},"finishReason":"STOP"}]}"#;
//!     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(body))))
//! });
//! let stack = GeminiStack::new().images(upstream);
//! let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::new())).unwrap();
//! let image = stack.oneshot(request).await.unwrap().into_body();
//! assert_eq!(&image.bytes[..], [1]);
//! assert_eq!(image.drafts, 1);
//! # }
//! ```
//!
//! # Which images are final
//!
//! All that are not marked as a thought, with one exception: a model that thinks (by the catalogue)
//! also sends drafts without a mark, so of its images without text between them the last wins. Where
//! all are marked, it is the last of any kind, and [`FinalImage::is_thought`] says so. Never by the
//! presence of a signature: drafts have been seen with signatures. Of several final images the first
//! is the [`FinalImage`], and [`FinalImage::others`] are the further ones in order.
//!
//! # What it reads
//!
//! Responses of Gemini and Vertex, whole, in a JSON array and as server-sent events; Imagen's
//! predictions; OpenAI-style chat (`images[]`, data URIs) and images (`b64_json`). Images are
//! decoded while they arrive, each into one buffer.
//!
//! # Order in the stack
//!
//! Outermost of the judged layers: it uses the verdict up. Needs
//! [`CollectRequest`](crate::CollectRequest) outside it for the request to be known, and
//! [`ClassifyGeminiError`](crate::ClassifyGeminiError) inside.
//!
//! # Defaults
//!
//! | setting | value | source |
//! | --- | --- | --- |
//! | largest image | 64 MiB | three times the 20 MB of a large 4K PNG |
//! | thought signature | kept | editing the image in a further turn needs it |
//!
//! # Errors
//!
//! A refusal, an empty response, a response with an error status and a body that is not whole are
//! typed [`Error`](crate::error::Error)s that name the reason and the charge. The
//! `json` form passes responses with an error status on as they are.
//!
//! # Cancel safety
//!
//! Dropping the future drops the response; what was charged stays charged, and the trail says so.

mod image;
mod json;
mod layer;
mod save;
mod service;

pub use image::FinalImage;
pub use json::{FinalImageJson, FinalImageJsonLayer, StrippedBody};
pub use layer::FinalImageExtractLayer;
pub use save::save_image;
pub use service::{FinalImageExtract, extract};
