//! Clients written in Rust. They run in this process, and tell what the programs print.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use genai::adapter::AdapterKind;
use genai::chat::{BinarySource, ChatMessage, ChatOptions, ChatRequest};
use genai::resolver::{AuthData, Endpoint};
use genai::{ModelIden, ServiceTarget};
use reqwest_middleware::ClientBuilder;
use rig_core::image_generation::ImageGenerationRequestBuilder;
use rig_core::providers::gemini::{Gemini, GeminiConfig};
use rig_reqwest::ReqwestMiddlewareClient;
use serde_json::json;
use tower_gemini_reqwest::{GeminiMiddleware, client_builder};

use super::{Image, Job, Outcome, sha256};

const MODEL: &str = "gemini-3-pro-image";
const PROMPT: &str = "A cat in a teacup";

fn image_config(job: &Job) -> serde_json::Value {
    job.size.map_or_else(
        || json!({}),
        |size| json!({ "generationConfig": { "imageConfig": { "imageSize": size } } }),
    )
}

fn failed(kind: &str, error: &dyn std::fmt::Display) -> Outcome {
    Outcome {
        error_type: Some(kind.to_owned()),
        error: Some(error.to_string()),
        ..Outcome::default()
    }
}

/// rig: the image wire, on its own reqwest client.
pub(super) async fn rig(job: Job) -> Outcome {
    let client = GeminiConfig::new(job.key).with_base_url(job.url.clone()).client();
    rig_image(client, job).await
}

/// The same on a chain of reqwest-middleware with the stack in it: nothing stands between this
/// process and the server.
pub(super) async fn rig_with_the_stack(job: Job) -> Outcome {
    let http = client_builder().build().expect("a client without TLS of its own");
    let chain =
        ClientBuilder::new(http).with(GeminiMiddleware::with(job.stack.clone()).json()).build();
    let client = GeminiConfig::new(job.key)
        .with_base_url(job.url.clone())
        .connect(ReqwestMiddlewareClient::from(chain));
    rig_image(client, job).await
}

async fn rig_image(client: Gemini, job: Job) -> Outcome {
    let request = ImageGenerationRequestBuilder::new(PROMPT)
        .width(1024)
        .height(1024)
        .additional_params(image_config(&job))
        .build();
    match client.image_generation(MODEL).call(request).await {
        Ok(answer) => Outcome {
            ok: true,
            chosen_sha256: Some(sha256(&answer.image)),
            images: vec![Image { bytes: answer.image.len() }],
            ..Outcome::default()
        },
        Err(error) => {
            let report = error.report();
            Outcome { status: report.http_status, ..failed(&format!("{:?}", report.kind), &error) }
        }
    }
}

/// genai: a chat request, and the example's loop over binary parts, whose first file is
/// `generated_image_1`.
pub(super) async fn genai(job: Job) -> Outcome {
    let (endpoint, key) = (format!("{}/v1beta/", job.url), job.key);
    let client = genai::Client::builder()
        .with_service_target_resolver_fn(
            move |target: ServiceTarget| -> Result<ServiceTarget, genai::resolver::Error> {
                let model = ModelIden::new(AdapterKind::Gemini, target.model.model_name);
                Ok(ServiceTarget {
                    endpoint: Endpoint::from_owned(endpoint.clone()),
                    auth: AuthData::from_single(key),
                    model,
                })
            },
        )
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return failed("Build", &error),
    };
    let options =
        ChatOptions::default().with_extra_headers([("x-sim-call".to_owned(), job.call.to_owned())]);
    let options =
        if job.size.is_some() { options.with_extra_body(image_config(&job)) } else { options };
    let answer = match client
        .exec_chat(MODEL, ChatRequest::new(vec![ChatMessage::user(PROMPT)]), Some(&options))
        .await
    {
        Ok(answer) => answer,
        Err(error) => {
            let kind =
                format!("{error:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned();
            let status = [429, 503]
                .into_iter()
                .find(|status| format!("{error}").contains(&status.to_string()));
            return Outcome { status, ..failed(&kind, &error) };
        }
    };
    let files: Vec<Vec<u8>> = (&answer.content)
        .into_iter()
        .filter_map(|part| part.as_binary())
        .filter(|binary| binary.content_type.starts_with("image/"))
        .filter_map(|binary| match &binary.source {
            BinarySource::Base64(text) => STANDARD.decode(text.as_ref()).ok(),
            _ => None,
        })
        .collect();
    Outcome {
        ok: true,
        chosen_sha256: files.first().map(|file| sha256(file)),
        images: files.iter().map(|file| Image { bytes: file.len() }).collect(),
        finish_reason: answer.stop_reason.map(|reason| format!("{reason:?}")),
        ..Outcome::default()
    }
}
