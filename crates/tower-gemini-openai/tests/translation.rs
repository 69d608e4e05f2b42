//! OpenAI's format and Gemini's, both ways: every mapping as a table, and what no input may break as
//! properties.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, outside their functions

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower_gemini_core::call::{Call, Framing, ModelId, Verb};
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::scan::Scanner;
use tower_gemini_openai::{
    Endpoint, GeminiRequest, OpenAiError, ResponseTranslator, list_models, to_gemini,
    translate_error,
};

/// A second of 2026-11-25.
const NOW: u64 = 1_795_600_000;

fn translate_raw(
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<GeminiRequest, OpenAiError> {
    to_gemini(endpoint, headers, &Bytes::copy_from_slice(body))
}

fn translate(endpoint: Endpoint, body: &Value) -> Result<GeminiRequest, OpenAiError> {
    translate_raw(endpoint, &HeaderMap::new(), body.to_string().as_bytes())
}

fn body_of(translated: &GeminiRequest) -> Value {
    serde_json::from_slice(&translated.body).unwrap()
}

fn with(mut base: Value, more: &Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

/// A chat of one message, with these members beside it.
fn chat(more: Value) -> Value {
    with(
        json!({ "model": "gemini-3-pro-image", "messages": [{ "role": "user", "content": "a cat" }] }),
        &more,
    )
}

fn image(more: Value) -> Value {
    with(json!({ "model": "gemini-3-pro-image", "prompt": "a cat" }), &more)
}

fn config(endpoint: Endpoint, body: &Value) -> Value {
    let translated = translate(endpoint, body).unwrap_or_else(|error| panic!("{error}: {body}"));
    body_of(&translated).get("generationConfig").cloned().unwrap_or(json!({}))
}

/// The error of a request that is rejected: its `param` and its message.
fn refusal(endpoint: Endpoint, body: &Value) -> (Value, String) {
    let error = translate(endpoint, body).err().unwrap_or_else(|| panic!("translated: {body}"));
    let (status, body) = error.into_parts();
    assert_eq!(status, 400);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["type"], "invalid_request_error");
    (body["error"]["param"].clone(), body["error"]["message"].as_str().unwrap().to_owned())
}

#[test]
fn endpoints_are_found_under_any_prefix() {
    use Endpoint::{ChatCompletions, ImageEdits, ImageGenerations, Models};
    for (path, endpoint) in [
        ("/v1/chat/completions", Some(ChatCompletions)),
        ("/v1beta/openai/chat/completions", Some(ChatCompletions)),
        ("/openai/v1/chat/completions/", Some(ChatCompletions)),
        ("/chat/completions", Some(ChatCompletions)),
        ("/gw/t1//v1//chat//completions", Some(ChatCompletions)),
        ("/v1/chat/completions?key=x", Some(ChatCompletions)),
        ("/v1/images/generations", Some(ImageGenerations)),
        ("/v1beta/openai/images/generations", Some(ImageGenerations)),
        ("/v1/images/edits", Some(ImageEdits)),
        ("/v1/models", Some(Models)),
        ("/v1beta/openai/models", Some(Models)),
        ("/openai/v1/models", Some(Models)),
        ("/v1beta/models", None),
        ("/v1beta/models/gemini-3-pro-image:generateContent", None),
        ("/v1/images/variations", None),
        ("/v1/completions", None),
        ("/completions", None),
        ("", None),
        ("/", None),
    ] {
        assert_eq!(Endpoint::from_path(path), endpoint, "{path}");
    }
}

#[test]
fn model_names_and_their_suffixes_are_resolved() {
    for (name, id, size, ratio) in [
        ("gemini-3-pro-image", "gemini-3-pro-image", None, None),
        ("nano-banana-pro", "gemini-3-pro-image", None, None),
        ("Nano-Banana-Pro", "gemini-3-pro-image", None, None),
        ("nano-banana", "gemini-2.5-flash-image", None, None),
        ("nano-banana-2", "gemini-3.1-flash-image", None, None),
        ("nano-banana-2.1", "gemini-nano-banana-2.1", None, None),
        ("google/gemini-3-pro-image", "gemini-3-pro-image", None, None),
        ("google/nano-banana-pro", "gemini-3-pro-image", None, None),
        ("models/gemini-3-pro-image", "gemini-3-pro-image", None, None),
        ("publishers/google/models/gemini-3-pro-image", "gemini-3-pro-image", None, None),
        ("gemini-3-pro-image-4k", "gemini-3-pro-image", Some("4K"), None),
        ("nano-banana-pro-2k-9x16", "gemini-3-pro-image", Some("2K"), Some("9:16")),
        ("google/gemini-3-pro-image-16x9", "gemini-3-pro-image", None, Some("16:9")),
        (" nano-banana-pro ", "gemini-3-pro-image", None, None),
        ("gemini-9-image-4k", "gemini-9-image", Some("4K"), None),
        ("some-text-model-4k", "some-text-model-4k", None, None),
        ("gemini-2.5-flash", "gemini-2.5-flash", None, None),
    ] {
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, chat(json!({ "model": name }))),
            (Endpoint::ImageGenerations, image(json!({ "model": name }))),
        ] {
            let translated = translate(endpoint, &body).unwrap();
            assert_eq!(
                translated.path_and_query,
                format!("/v1beta/models/{id}:generateContent"),
                "{name}"
            );
            let config = body_of(&translated)["generationConfig"]["imageConfig"].clone();
            assert_eq!(config.get("imageSize").and_then(Value::as_str), size, "{name}");
            assert_eq!(config.get("aspectRatio").and_then(Value::as_str), ratio, "{name}");
        }
    }
    let tuned =
        translate(Endpoint::ChatCompletions, &chat(json!({ "model": "tunedModels/my-cats" })))
            .unwrap();
    assert_eq!(tuned.path_and_query, "/v1beta/tunedModels/my-cats:generateContent");
    for name in [
        "",
        " ",
        "a/b",
        "../x",
        "m?key=x",
        "m:predict",
        "m#",
        "a b",
        "\u{e9}",
        "models/",
        "a..b",
        &"a".repeat(200),
    ] {
        assert_eq!(
            refusal(Endpoint::ChatCompletions, &chat(json!({ "model": name }))).0,
            "model",
            "{name}"
        );
    }
    assert_eq!(refusal(Endpoint::ChatCompletions, &chat(json!({ "model": null }))).0, "model");
    assert_eq!(refusal(Endpoint::ChatCompletions, &chat(json!({ "model": 5 }))).0, "model");
    assert!(
        refusal(Endpoint::ImageGenerations, &image(json!({ "model": "imagen-4" })))
            .1
            .contains("gemini-nano-banana-2.1")
    );
}

#[test]
fn sizes_and_ratios_become_image_config() {
    let google = |own: Value| json!({ "extra_body": { "google": own } });
    for (more, expected) in [
        (json!({}), json!(null)),
        (json!({ "size": "auto" }), json!(null)),
        (json!({ "size": "" }), json!(null)),
        (json!({ "size": null }), json!(null)),
        (json!({ "size": "1024x1024" }), json!({ "aspectRatio": "1:1", "imageSize": "1K" })),
        (json!({ "size": "2048x2048" }), json!({ "aspectRatio": "1:1", "imageSize": "2K" })),
        (json!({ "size": "4096x4096" }), json!({ "aspectRatio": "1:1", "imageSize": "4K" })),
        (json!({ "size": "1536x1024" }), json!({ "aspectRatio": "3:2", "imageSize": "1K" })),
        (json!({ "size": "1024x1536" }), json!({ "aspectRatio": "2:3", "imageSize": "1K" })),
        (json!({ "size": "1792x1024" }), json!({ "aspectRatio": "16:9", "imageSize": "1K" })),
        (json!({ "size": "1024x1792" }), json!({ "aspectRatio": "9:16", "imageSize": "1K" })),
        (json!({ "size": "3840x2160" }), json!({ "aspectRatio": "16:9", "imageSize": "4K" })),
        (json!({ "size": "4K" }), json!({ "imageSize": "4K" })),
        (json!({ "size": "2k" }), json!({ "imageSize": "2K" })),
        (json!({ "size": 2048 }), json!({ "imageSize": "2K" })),
        (json!({ "aspect_ratio": "16:9" }), json!({ "aspectRatio": "16:9" })),
        (
            json!({ "aspect_ratio": "16x9", "size": "2048x2048" }),
            json!({ "aspectRatio": "16:9", "imageSize": "2K" }),
        ),
        (json!({ "aspectRatio": "auto" }), json!(null)),
        (json!({ "image_size": "4K", "size": "1024x1024" }), json!({ "imageSize": "4K" })),
        (
            json!({ "image_config": { "image_size": "2K", "aspect_ratio": ["21:9"] } }),
            json!({ "aspectRatio": "21:9", "imageSize": "2K" }),
        ),
        (
            json!({ "imageConfig": { "imageSize": "2K" }, "size": "4096x4096" }),
            json!({ "imageSize": "2K" }),
        ),
        (
            google(json!({ "image_config": { "aspect_ratio": "3:4" } })),
            json!({ "aspectRatio": "3:4" }),
        ),
        (
            json!({ "extra_body": { "image_config": { "image_size": "4K" } } }),
            json!({ "imageSize": "4K" }),
        ),
        (
            json!({ "google": { "imageConfig": { "imageSize": "4K", "x": 1 } } }),
            json!({ "imageSize": "4K", "x": 1 }),
        ),
        (
            with(
                google(json!({ "generation_config": { "image_config": { "image_size": "2K" } } })),
                &json!({ "size": "1024x1024" }),
            ),
            json!({ "aspectRatio": "1:1", "imageSize": "2K" }),
        ),
        (
            json!({ "model": "nano-banana-pro-4k", "size": "1024x1024" }),
            json!({ "aspectRatio": "1:1", "imageSize": "1K" }),
        ),
        (
            json!({ "model": "nano-banana-pro-4k-16x9", "size": "2K" }),
            json!({ "aspectRatio": "16:9", "imageSize": "2K" }),
        ),
        // One size, and 400 to being asked for it.
        (json!({ "model": "nano-banana", "size": "1024x1024" }), json!({ "aspectRatio": "1:1" })),
        (
            json!({ "model": "nano-banana-2", "size": "512x512" }),
            json!({ "aspectRatio": "1:1", "imageSize": "512" }),
        ),
        // A ratio that the model does not take, from pixels: the nearest.
        (json!({ "size": "384x3072" }), json!({ "aspectRatio": "9:16", "imageSize": "1K" })),
    ] {
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, chat(more.clone())),
            (Endpoint::ImageGenerations, image(more.clone())),
        ] {
            assert_eq!(
                config(endpoint, &body).get("imageConfig").cloned().unwrap_or(Value::Null),
                expected,
                "{body}"
            );
        }
    }
    for (more, param, words) in [
        (json!({ "size": "huge" }), "size", "1024x1024"),
        (json!({ "size": "8K" }), "size", "4K"),
        (json!({ "size": "1x1" }), "size", "1024x1024"),
        (json!({ "size": "512x512" }), "size", "makes 1K, 2K, 4K"),
        (json!({ "model": "nano-banana", "size": "4096x4096" }), "size", "makes 1K"),
        (json!({ "model": "nano-banana-4k" }), "model", "makes 1K"),
        (json!({ "image_config": { "image_size": "3K" } }), "image_config", "1K"),
    ] {
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, chat(more.clone())),
            (Endpoint::ImageGenerations, image(more.clone())),
        ] {
            let (at, message) = refusal(endpoint, &body);
            assert!(at == param && message.contains(words), "{body}: {at} {message}");
        }
    }
}

#[test]
fn qualities_of_the_images_api_become_sizes() {
    for (model, quality, size) in [
        ("nano-banana-pro", "high", Some("2K")),
        ("nano-banana-pro", "hd", Some("2K")),
        ("nano-banana-pro", "standard", None),
        ("nano-banana-pro", "medium", None),
        ("nano-banana-pro", "auto", None),
        ("nano-banana-pro", "low", None),
        ("nano-banana-2", "low", Some("512")),
        ("nano-banana", "high", None),
        ("nano-banana-pro-4k", "standard", Some("4K")),
    ] {
        let body = image(json!({ "model": model, "quality": quality }));
        let config = config(Endpoint::ImageGenerations, &body);
        assert_eq!(config["imageConfig"].get("imageSize").and_then(Value::as_str), size, "{body}");
    }
    let body = image(json!({ "quality": "high", "size": "1024x1024" }));
    assert_eq!(
        config(Endpoint::ImageGenerations, &body)["imageConfig"]["imageSize"],
        "1K",
        "what is said in pixels is meant"
    );
    assert_eq!(
        refusal(Endpoint::ImageGenerations, &image(json!({ "quality": "superb" }))).0,
        "quality"
    );
}

#[test]
fn settings_become_generation_config() {
    let schema = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": "object" } } });
    for (more, expected) in [
        (json!({ "temperature": 0.5 }), json!({ "temperature": 0.5 })),
        (json!({ "top_p": 1 }), json!({ "topP": 1 })),
        (json!({ "top_k": 40 }), json!({ "topK": 40 })),
        (json!({ "max_tokens": 4000 }), json!({ "maxOutputTokens": 4000 })),
        (
            json!({ "max_completion_tokens": 5000, "max_tokens": 4000 }),
            json!({ "maxOutputTokens": 5000 }),
        ),
        (json!({ "stop": "x" }), json!({ "stopSequences": ["x"] })),
        (json!({ "stop": ["x", "y"] }), json!({ "stopSequences": ["x", "y"] })),
        (json!({ "stop": [] }), json!({})),
        (json!({ "seed": 7 }), json!({ "seed": 7 })),
        (
            json!({ "modalities": ["image", "text"] }),
            json!({ "responseModalities": ["IMAGE", "TEXT"] }),
        ),
        (
            json!({ "extra_body": { "modalities": ["image"] } }),
            json!({ "responseModalities": ["IMAGE"] }),
        ),
        (json!({ "response_format": { "type": "text" } }), json!({})),
        (
            json!({ "response_format": { "type": "json_object" } }),
            json!({ "responseMimeType": "application/json" }),
        ),
        (
            json!({ "response_format": schema }),
            json!({ "responseMimeType": "application/json", "responseJsonSchema": { "type": "object" } }),
        ),
        (
            json!({ "extra_body": { "google": { "generation_config": { "top_p": 0.1 } } }, "top_p": 0.9 }),
            json!({ "topP": 0.1 }),
        ),
        (
            json!({ "google": { "generationConfig": { "mediaResolution": "LOW" } } }),
            json!({ "mediaResolution": "LOW" }),
        ),
        (json!({ "generation_config": { "seed": 1 } }), json!({ "seed": 1 })),
        (
            json!({ "extra_body": { "google": { "thinking_config": { "include_thoughts": true } } } }),
            json!({ "thinkingConfig": { "includeThoughts": true } }),
        ),
        (
            json!({ "model": "nano-banana-2", "reasoning_effort": "low", "google": { "thinking_config": { "include_thoughts": true } } }),
            json!({ "thinkingConfig": { "thinkingLevel": "minimal", "includeThoughts": true } }),
        ),
        (
            json!({ "model": "nano-banana-2", "reasoning_effort": "high" }),
            json!({ "thinkingConfig": { "thinkingLevel": "high" } }),
        ),
        // It always thinks, so there is nothing to ask for.
        (json!({ "reasoning_effort": "low" }), json!({})),
        (json!({ "n": 1 }), json!({})),
        (
            json!({ "temperature": null, "stop": null, "n": null, "tools": [], "functions": [], "stream": null }),
            json!({}),
        ),
        (
            json!({ "user": "u", "logprobs": true, "metadata": {}, "frequency_penalty": 0, "tool_choice": "none", "unheard": [1] }),
            json!({}),
        ),
    ] {
        assert_eq!(config(Endpoint::ChatCompletions, &chat(more.clone())), expected, "{more}");
    }
    for (more, member, expected) in [
        (json!({ "service_tier": "flex" }), "serviceTier", json!("flex")),
        (json!({ "service_tier": "priority" }), "serviceTier", json!("priority")),
        (json!({ "service_tier": "default" }), "serviceTier", json!("standard")),
        (json!({ "service_tier": "auto" }), "serviceTier", json!(null)),
        (
            json!({ "service_tier": "flex", "google": { "service_tier": "priority" } }),
            "serviceTier",
            json!("priority"),
        ),
        (
            json!({ "extra_body": { "google": { "cached_content": "c" } } }),
            "cachedContent",
            json!("c"),
        ),
        (
            json!({ "safety_settings": [{ "category": "c" }] }),
            "safetySettings",
            json!([{ "category": "c" }]),
        ),
        (
            json!({ "google": { "tools": [{ "googleSearch": {} }] } }),
            "tools",
            json!([{ "googleSearch": {} }]),
        ),
        (json!({ "google": { "labels": { "a_b": "c" } } }), "labels", json!({ "a_b": "c" })),
    ] {
        let body = body_of(&translate(Endpoint::ChatCompletions, &chat(more.clone())).unwrap());
        assert_eq!(body.get(member).cloned().unwrap_or(Value::Null), expected, "{more}");
    }
    let form = json!({ "response_format": "b64_json", "temperature": "0.5" });
    assert_eq!(
        config(Endpoint::ImageGenerations, &image(form)),
        json!({ "temperature": 0.5, "responseModalities": ["IMAGE"] })
    );
}

/// A chat whose only message is this one.
fn only(message: Value) -> Value {
    json!({ "messages": [message] })
}

fn user(content: Value) -> Value {
    json!({ "role": "user", "content": content })
}

fn shown(url: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url } })
}

const URI: &str = "data:image/png;base64,QUJD";

#[test]
fn what_would_be_charged_in_vain_is_rejected_with_a_reason() {
    for (more, param, words) in [
        (json!({ "n": 0 }), "n", "from 1 to 10"),
        (json!({ "n": 11 }), "n", "from 1 to 10"),
        (json!({ "n": "many" }), "n", "from 1 to 10"),
        (
            json!({ "google": { "generation_config": { "candidate_count": 3 } } }),
            "candidateCount",
            "one image per request",
        ),
        (json!({ "tools": [{ "type": "function" }] }), "tools", "Gemini request"),
        (json!({ "functions": [{}] }), "functions", "leave it out"),
        (json!({ "web_search_options": { "a": 1 } }), "web_search_options", "leave it out"),
        (json!({ "audio": { "voice": "x" } }), "audio", "leave it out"),
        (json!({ "modalities": ["audio"] }), "modalities", "text and image"),
        (json!({ "modalities": "image" }), "modalities", "list"),
        (json!({ "temperature": "warm" }), "temperature", "number"),
        (json!({ "stop": [1] }), "stop", "text"),
        (json!({ "response_format": { "type": "xml" } }), "response_format", "json_object"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format", "schema"),
        (json!({ "service_tier": "scale" }), "service_tier", "flex"),
        (json!({ "google": { "contents": [] } }), "google", "leave it out"),
        (json!({ "messages": [] }), "messages", "user"),
        (json!({ "messages": null }), "messages", "user"),
        (json!({ "messages": "hi" }), "messages", "user"),
        (only(json!({ "role": "system", "content": "x" })), "messages", "user"),
        (only(json!({ "role": "assistant", "content": null })), "messages", "user"),
        (only(json!({ "content": "x" })), "messages[0]", "role"),
        (only(json!("x")), "messages[0]", "role"),
        (only(json!({ "role": "tool", "content": "x" })), "messages[0]", "tools"),
        (only(json!({ "role": "assistant", "tool_calls": [{}] })), "messages[0]", "tools"),
        (only(user(json!(null))), "messages[0]", "empty"),
        (only(user(json!([]))), "messages[0]", "empty"),
        (only(user(json!(5))), "messages[0]", "content"),
        (only(user(json!([{ "type": "text" }]))), "messages[0].content[0]", "text"),
        (only(user(json!([{ "type": "input_audio" }]))), "messages[0].content[0]", "input_audio"),
        (only(user(json!([{ "type": "file" }]))), "messages[0].content[0]", "file_id"),
        (
            only(user(json!([{ "type": "file", "file": { "file_id": "file-abc" } }]))),
            "messages[0].content[0]",
            "data URI",
        ),
        (only(user(json!([shown("gs://bucket/cat")]))), "messages[0].content[0]", "format"),
        (only(user(json!([{}]))), "messages[0].content[0]", "type"),
        (only(user(json!([{ "type": "image_url" }]))), "messages[0].content[0]", "image_url.url"),
        (
            json!({ "messages": [user(json!("x")), user(json!([{ "type": "text", "text": "y" }, shown("https://host/cat.png")]))] }),
            "messages[1].content[1]",
            "data URI",
        ),
        (only(user(json!([shown("data:image/png;base64,*")]))), "messages[0].content[0]", "base64"),
        (
            json!({ "messages": [{ "role": "system", "content": [shown(URI)] }, user(json!("x"))] }),
            "messages[0]",
            "user message",
        ),
        (
            only(json!({ "role": "assistant", "images": [shown("http://x/y")] })),
            "messages[0].images[0]",
            "data URI",
        ),
    ] {
        let (at, message) = refusal(Endpoint::ChatCompletions, &chat(more.clone()));
        assert!(at == param && message.contains(words), "{more}: {at}: {message}");
    }
    for (endpoint, more, param, words) in [
        (Endpoint::ImageGenerations, json!({ "prompt": "" }), "prompt", "missing"),
        (Endpoint::ImageGenerations, json!({ "prompt": null }), "prompt", "missing"),
        (Endpoint::ImageGenerations, json!({ "n": 1.5 }), "n", "from 1 to 10"),
        (Endpoint::ImageGenerations, json!({ "n": "40" }), "n", "from 1 to 10"),
        (Endpoint::ImageGenerations, json!({ "stream": true }), "stream", "chat/completions"),
        (
            Endpoint::ImageGenerations,
            json!({ "background": "transparent" }),
            "background",
            "transparency",
        ),
        (
            Endpoint::ImageGenerations,
            json!({ "response_format": "gif" }),
            "response_format",
            "b64_json",
        ),
        (Endpoint::ImageEdits, json!({}), "image", "missing"),
        (Endpoint::ImageEdits, json!({ "image": [] }), "image", "missing"),
        (Endpoint::ImageEdits, json!({ "image": URI, "mask": URI }), "mask", "prompt"),
        (Endpoint::ImageEdits, json!({ "image": "https://host/cat.png" }), "image", "data URI"),
        (Endpoint::ImageEdits, json!({ "images": [{ "file_id": "f" }] }), "images", "data URI"),
        (Endpoint::ImageEdits, json!({ "image": "QUJD" }), "image", "type"),
        (Endpoint::ImageEdits, json!({ "image": 5 }), "image", "data URI"),
    ] {
        let (at, message) = refusal(endpoint, &image(more.clone()));
        assert!(at == param && message.contains(words), "{more}: {at}: {message}");
    }
    for body in ["", "{", "[]", "5", "null", "\"x\"", "{\"model\":\"\u{1}\"}"] {
        for endpoint in [
            Endpoint::ChatCompletions,
            Endpoint::ImageGenerations,
            Endpoint::ImageEdits,
            Endpoint::Models,
        ] {
            assert!(translate_raw(endpoint, &HeaderMap::new(), body.as_bytes()).is_err(), "{body}");
        }
    }
}

#[test]
fn files_of_googles_are_left_to_gemini_to_read() {
    const UPLOADED: &str = "https://generativelanguage.googleapis.com/v1beta/files/abc-123";
    let file = |uri: &str, mime: Value| {
        let mut file = json!({ "fileUri": uri });
        if !mime.is_null() {
            file["mimeType"] = mime;
        }
        json!({ "fileData": file })
    };
    for (part, expected) in [
        (shown("gs://bucket/a/cat.JPG"), file("gs://bucket/a/cat.JPG", json!("image/jpeg"))),
        (shown(UPLOADED), file(UPLOADED, json!(null))),
        (shown("files/abc-123"), file(UPLOADED, json!(null))),
        (
            json!({ "type": "image_url", "image_url": { "url": "gs://bucket/cat", "format": "image/webp" } }),
            file("gs://bucket/cat", json!("image/webp")),
        ),
        (
            json!({ "type": "file", "file": { "file_id": UPLOADED, "format": "image/jpg" } }),
            file(UPLOADED, json!("image/jpeg")),
        ),
        (
            json!({ "type": "input_image", "image_url": null, "file_id": "files/abc-123" }),
            file(UPLOADED, json!(null)),
        ),
        (
            json!({ "type": "input_file", "file_url": "gs://b/doc.pdf" }),
            file("gs://b/doc.pdf", json!("application/pdf")),
        ),
        (
            json!({ "type": "file", "file": { "filename": "cat.png", "file_data": URI } }),
            inline("image/png", "QUJD"),
        ),
    ] {
        let body = only(user(json!([{ "type": "text", "text": "redder" }, part])));
        let body = body_of(&translate(Endpoint::ChatCompletions, &chat(body)).unwrap());
        assert_eq!(body["contents"][0]["parts"], json!([{ "text": "redder" }, expected]), "{part}");
    }
    for image_of in [json!("gs://b/cat.png"), json!([{ "image_url": "gs://b/cat.png" }])] {
        let body = image(json!({ "image": image_of }));
        let body = body_of(&translate(Endpoint::ImageEdits, &body).unwrap());
        assert_eq!(body["contents"][0]["parts"][1], file("gs://b/cat.png", json!("image/png")));
    }
    // What the model made and left in a bucket comes back beside its text.
    let drawn =
        json!({ "role": "assistant", "content": "here", "images": [shown("gs://b/o.png")] });
    let body = json!({ "messages": [drawn, user(json!("redder"))] });
    let body = body_of(&translate(Endpoint::ChatCompletions, &chat(body)).unwrap());
    let parts = json!([{ "text": "here" }, file("gs://b/o.png", json!("image/png"))]);
    assert_eq!(body["contents"][0]["parts"], parts);
    for (address, words) in [
        ("https://storage.googleapis.com/b/cat.png", "not fetched"),
        ("https://generativelanguage.googleapis.com/v1beta/models/x", "not fetched"),
        ("http://generativelanguage.googleapis.com/v1beta/files/x", "not fetched"),
        ("files/", "data URI"),
        ("gs://", "not fetched"),
    ] {
        let body = chat(only(user(json!([shown(address)]))));
        let (_, message) = refusal(Endpoint::ChatCompletions, &body);
        assert!(message.contains(words), "{address}: {message}");
    }
}

/// Objects are merged name by name: as many as a small body can hold would keep a processor busy
/// for minutes.
#[test]
fn objects_of_thousands_of_members_are_rejected() {
    let many: serde_json::Map<String, Value> =
        (0..10_000).map(|n| (format!("m{n}"), n.into())).collect();
    for more in [
        json!({ "google": many }),
        json!({ "extra_body": { "google": { "generation_config": { "image_config": many } } } }),
        Value::Object(many.clone()),
    ] {
        assert!(
            refusal(Endpoint::ChatCompletions, &chat(more)).1.contains("more than 1024 members")
        );
    }
    let images = vec![shown(URI); 65];
    let message = json!({ "role": "assistant", "images": images });
    assert!(
        refusal(
            Endpoint::ChatCompletions,
            &chat(json!({ "messages": [user(json!("x")), message] }))
        )
        .1
        .contains("more than 64 images")
    );
}

fn inline(mime: &str, data: &str) -> Value {
    json!({ "inlineData": { "mimeType": mime, "data": data } })
}

#[test]
fn conversations_become_contents() {
    let body = json!({ "model": "nano-banana-pro", "stream": true, "messages": [
        { "role": "system", "content": "be brief" },
        { "role": "developer", "content": [{ "type": "text", "text": "be kind" }] },
        { "role": "user", "content": [
            { "type": "text", "text": "what is this?" },
            { "type": "image_url", "image_url": { "url": "data:image/jpg;base64,_-8", "detail": "low" } },
            { "type": "input_image", "image_url": "data:image/webp;base64,QUJD" },
            "and this?",
        ] },
        { "role": "assistant", "content": "a cat ![it](data:image/png;base64,REVG) there", "refusal": null, "tool_calls": [] },
        { "role": "assistant", "content": "" },
        { "role": "user", "content": "draw it" },
    ] });
    let translated = translate(Endpoint::ChatCompletions, &body).unwrap();
    assert_eq!(
        translated.path_and_query,
        "/v1beta/models/gemini-3-pro-image:streamGenerateContent?alt=sse"
    );
    let user = json!([
        { "text": "what is this?" }, inline("image/jpeg", "/+8="), inline("image/webp", "QUJD"), { "text": "and this?" }]);
    assert_eq!(
        body_of(&translated),
        json!({
            "contents": [
                { "role": "user", "parts": user },
                { "role": "model", "parts": [{ "text": "a cat " }, inline("image/png", "REVG"), { "text": " there" }] },
                { "role": "user", "parts": [{ "text": "draw it" }] },
            ],
            "systemInstruction": { "parts": [{ "text": "be brief" }, { "text": "be kind" }] },
        })
    );
}

#[test]
fn images_of_the_model_are_sent_back_with_their_signatures() {
    let image = |more: Value| {
        with(json!({ "type": "image_url", "image_url": { "url": URI }, "index": 0 }), &more)
    };
    let signed =
        |part: Value, signature: &str| with(part, &json!({ "thoughtSignature": signature }));
    let (text, drawn) = (json!({ "text": "done" }), inline("image/png", "QUJD"));
    let google = |signature: &str| json!({ "google": { "thought_signature": signature } });
    for (message, parts) in [
        (
            json!({ "content": "done", "images": [image(json!({}))] }),
            vec![text.clone(), drawn.clone()],
        ),
        (
            json!({ "content": "done", "extra_content": google("t"), "images": [image(json!({ "thought_signature": "i" }))] }),
            vec![signed(text.clone(), "t"), signed(drawn.clone(), "i")],
        ),
        // The first part is signed: a text without a signature was not the first.
        (
            json!({ "content": "done", "images": [image(json!({ "thought_signature": "i" }))] }),
            vec![signed(drawn.clone(), "i"), text.clone()],
        ),
        (
            json!({ "content": null, "images": [image(json!({ "extra_content": google("i") }))] }),
            vec![signed(drawn.clone(), "i")],
        ),
        (
            json!({ "content": null, "extra_content": google("i"), "images": [image(json!({}))] }),
            vec![signed(drawn.clone(), "i")],
        ),
        (
            json!({ "content": "done", "extra_content": google("t") }),
            vec![signed(text.clone(), "t")],
        ),
        (
            json!({ "content": null, "extra_content": google("t") }),
            vec![signed(json!({ "text": "" }), "t")],
        ),
        (
            json!({ "content": [{ "type": "text", "text": "done", "thought_signature": "t" }, image(json!({ "thought_signature": "i" }))] }),
            vec![signed(text.clone(), "t"), signed(drawn.clone(), "i")],
        ),
        // Some relays give it twice: it is sent, and paid for, once.
        (
            json!({ "content": format!("done ![]({URI})"), "images": [image(json!({ "thought_signature": "i" }))] }),
            vec![json!({ "text": "done " }), signed(drawn, "i")],
        ),
        (json!({ "content": [{ "type": "refusal", "refusal": "done" }] }), vec![text]),
    ] {
        let message = with(message, &json!({ "role": "assistant" }));
        let body =
            chat(json!({ "messages": [user(json!("a cat")), message, user(json!("redder"))] }));
        let contents =
            body_of(&translate(Endpoint::ChatCompletions, &body).unwrap())["contents"].clone();
        assert_eq!(contents[1], json!({ "role": "model", "parts": parts }), "{body}");
    }
}

type Field<'a> = (&'a str, Option<&'a str>, &'a [u8]);

/// A form. A field with a type, even an empty one, is a file.
fn multipart(fields: &[Field<'_>]) -> (HeaderMap, Vec<u8>) {
    let mut body = Vec::new();
    for (name, mime, value) in fields {
        body.extend_from_slice(
            format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"").as_bytes(),
        );
        if let Some(mime) = mime {
            body.extend_from_slice(b"; filename=\"f\"");
            if !mime.is_empty() {
                body.extend_from_slice(format!("\r\nContent-Type: {mime}").as_bytes());
            }
        }
        body.extend_from_slice(&[b"\r\n\r\n", *value, b"\r\n"].concat());
    }
    body.extend_from_slice(b"--XX--\r\n");
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=XX"));
    (headers, body)
}

#[test]
fn images_to_edit_are_read_from_forms_and_json() {
    let png = b"\x89PNG\r\n\x1a\n rest \r\n--X";
    let fields: [Field<'_>; 7] = [
        ("model", None, b"nano-banana-pro"),
        ("image[]", Some("image/jpg"), b"first"),
        ("image[]", Some("application/octet-stream"), png),
        ("image", Some(""), b"\xff\xd8\xff\xe0 jpeg"),
        ("prompt", None, "redder, s'il vous pla\u{ee}t".as_bytes()),
        ("size", None, b"2048x2048"),
        ("n", None, b"4"),
    ];
    let (mut headers, body) = multipart(&fields);
    let translated = translate_raw(Endpoint::ImageEdits, &headers, &body).unwrap();
    let file = |mime: &str, bytes: &[u8]| inline(mime, &STANDARD.encode(bytes));
    let parts = json!([
        { "text": "redder, s'il vous pla\u{ee}t" },
        file("image/jpeg", b"first"), file("image/png", png), file("image/jpeg", b"\xff\xd8\xff\xe0 jpeg"),
    ]);
    let image_config = json!({ "aspectRatio": "1:1", "imageSize": "2K" });
    let expected = json!({
        "contents": [{ "role": "user", "parts": parts }],
        "generationConfig": { "responseModalities": ["IMAGE"], "imageConfig": image_config },
    });
    assert_eq!((body_of(&translated), translated.count), (expected, 4));
    assert!(
        translate_raw(Endpoint::ImageEdits, &headers, &body[..body.len() - 9]).is_err(),
        "a form that breaks off"
    );
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data"));
    assert!(
        translate_raw(Endpoint::ImageEdits, &headers, &body)
            .unwrap_err()
            .message()
            .contains("boundary")
    );

    for more in [
        json!({ "image": URI }),
        json!({ "image": [URI] }),
        json!({ "images": [{ "image_url": URI }] }),
        json!({ "images": [{ "image_url": { "url": URI } }] }),
    ] {
        let body = body_of(&translate(Endpoint::ImageEdits, &image(more)).unwrap());
        assert_eq!(
            body["contents"][0]["parts"],
            json!([{ "text": "a cat" }, inline("image/png", "QUJD")])
        );
    }
    let body = body_of(
        &translate(Endpoint::ImageEdits, &image(json!({ "image": STANDARD.encode(png) }))).unwrap(),
    );
    assert_eq!(body["contents"][0]["parts"][1], file("image/png", png));

    let base: [Field<'_>; 2] = [("model", None, b"nano-banana-pro"), ("prompt", None, b"x")];
    let good: Field<'_> = ("image", Some("image/png"), b"x");
    for (more, param) in [
        (vec![good, ("mask", Some("image/png"), b"x")], "mask"),
        (vec![("image", Some("image/png"), &b""[..])], "image"),
        (vec![("image", Some(""), &b"what"[..])], "image"),
        (vec![good, ("prompt", None, b"\xff")], "prompt"),
        (vec![good, ("size", None, b"huge")], "size"),
        (vec![good, ("n", None, b"11")], "n"),
        (vec![], "image"),
    ] {
        let (headers, body) = multipart(&[&base[..], &more].concat());
        let (_, body) =
            translate_raw(Endpoint::ImageEdits, &headers, &body).unwrap_err().into_parts();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["error"]["param"], param);
    }
}

/// What the layers read of the translated request is what was asked for.
#[test]
fn core_reads_the_same_of_both_requests() {
    let streaming =
        json!({ "model": "gemini-3-pro-image-4k-9x16", "stream": true, "modalities": ["image"] });
    for (endpoint, path, body) in [
        (Endpoint::ChatCompletions, "/v1/chat/completions", chat(streaming)),
        (
            Endpoint::ImageGenerations,
            "/v1/images/generations",
            image(json!({ "size": "5504x3072" })),
        ),
        (
            Endpoint::ImageEdits,
            "/v1/images/edits",
            image(json!({ "image": URI, "aspect_ratio": "4:5", "service_tier": "flex" })),
        ),
    ] {
        let theirs = Call::parse(
            &Method::POST,
            &Uri::from_static(path),
            &HeaderMap::new(),
            Some(body.to_string().as_bytes()),
        );
        let translated = translate(endpoint, &body).unwrap();
        let uri: Uri = translated.path_and_query.parse().unwrap();
        let ours = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(&translated.body));
        assert_eq!(
            (ours.size, &ours.aspect, ours.tier),
            (theirs.size, &theirs.aspect, theirs.tier),
            "{body}"
        );
        assert_eq!(
            (ours.verb, ours.framing, ours.wants_image, ours.images),
            (theirs.verb, theirs.framing, true, 1)
        );
        assert_eq!(ours.has_input_images, theirs.has_input_images);
        assert!(matches!(ours.verb, Verb::Generate | Verb::StreamGenerate));
    }
}

fn translator(endpoint: Endpoint) -> ResponseTranslator {
    match endpoint {
        Endpoint::ChatCompletions => {
            translate(endpoint, &chat(json!({ "stream_options": { "include_usage": true } })))
                .unwrap()
                .translator
        }
        _ => translate(Endpoint::ImageGenerations, &image(json!({}))).unwrap().translator,
    }
}

fn translated_response(translator: &ResponseTranslator, answer: &Value) -> (u16, Value) {
    let (status, body) = translator.response(StatusCode::OK, answer.to_string().as_bytes(), NOW);
    (status.as_u16(), serde_json::from_slice(&body).unwrap())
}

/// An answer of Gemini's, or the last event of one.
fn gemini(parts: Value, reason: &str) -> Value {
    json!({
        "candidates": [{ "content": { "parts": parts, "role": "model" }, "finishReason": reason, "index": 0 }],
        "usageMetadata": { "promptTokenCount": 5, "candidatesTokenCount": 1120, "thoughtsTokenCount": 100, "totalTokenCount": 1225,
            "promptTokensDetails": [{ "modality": "TEXT", "tokenCount": 5 }],
            "candidatesTokensDetails": [{ "modality": "IMAGE", "tokenCount": 1120 }] },
        "modelVersion": "m-1",
        "responseId": "r-1",
    })
}

fn picture(data: &str, more: Value) -> Value {
    with(inline("image/png", data), &more)
}

fn draft(data: &str) -> Value {
    picture(data, json!({ "thought": true }))
}

fn url(answer: &Value) -> &Value {
    &answer["choices"][0]["message"]["images"][0]["image_url"]["url"]
}

#[test]
fn a_whole_response_becomes_a_chat_completion() {
    let answer = gemini(
        json!([
            { "text": "hm", "thought": true },
            draft("RFJB"),
            { "text": "Here ", "thoughtSignature": "t" },
            { "text": "it is." },
            {},
            picture("MUtB", json!({})),
            picture("_-8", json!({ "thoughtSignature": "i" })),
        ]),
        "STOP",
    );
    let image = json!({
        "type": "image_url", "image_url": { "url": "data:image/png;base64,/+8=" }, "index": 0, "thought_signature": "i" });
    let message = json!({
        "role": "assistant", "content": "Here it is.", "refusal": null, "images": [image],
        "extra_content": { "google": { "thought_signature": "t" } },
    });
    let usage = json!({
        "prompt_tokens": 5, "completion_tokens": 1220, "total_tokens": 1225,
        "prompt_tokens_details": { "cached_tokens": 0, "text_tokens": 5, "image_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": 100, "image_tokens": 1120 },
    });
    let choice = json!({
        "index": 0, "message": message, "logprobs": null, "finish_reason": "stop", "native_finish_reason": "STOP" });
    let expected = json!({
        "id": "r-1", "object": "chat.completion", "created": NOW, "model": "m-1", "choices": [choice], "usage": usage });
    assert_eq!(
        translated_response(&translator(Endpoint::ChatCompletions), &answer),
        (200, expected)
    );

    // The other spelling and a lone marked image.
    let part = json!({ "inline_data": { "mime_type": "image/jpeg", "data": "QUJD" }, "thought": true, "thought_signature": "s" });
    let snake =
        json!({ "candidates": [{ "content": { "parts": [part] }, "finish_reason": "STOP" }] });
    let (_, answer) = translated_response(&translator(Endpoint::ChatCompletions), &snake);
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (url(&answer), &message["content"]),
        (&json!("data:image/jpeg;base64,QUJD"), &Value::Null)
    );
    let id = json!(format!("chatcmpl-{NOW}"));
    assert_eq!((&message["images"][0]["thought_signature"], &answer["id"]), (&json!("s"), &id));
    assert_eq!((&answer["model"], answer.get("usage")), (&json!("gemini-3-pro-image"), None));
    // An image elsewhere, and a server that answers in chunks.
    let file = gemini(
        json!([{ "fileData": { "mimeType": "image/png", "fileUri": "gs://b/o.png" } }]),
        "STOP",
    );
    assert_eq!(
        url(&translated_response(&translator(Endpoint::ChatCompletions), &file).1),
        "gs://b/o.png"
    );
    assert_eq!(
        translated_response(&translator(Endpoint::ImageGenerations), &file).1["data"],
        json!([{ "url": "gs://b/o.png" }])
    );
    let chunks = json!([
        gemini(json!([{ "text": "a" }]), "STOP"),
        gemini(json!([{ "text": "b" }, picture("QUJD", json!({}))]), "STOP")
    ]);
    let message = translated_response(&translator(Endpoint::ChatCompletions), &chunks).1["choices"]
        [0]["message"]
        .clone();
    assert_eq!(
        (&message["content"], message["images"].as_array().unwrap().len()),
        (&json!("ab"), 1)
    );
}

/// The beginning of a PNG file of that size, in base64.
fn png(width: u32, height: u32) -> String {
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    file.extend(width.to_be_bytes().into_iter().chain(height.to_be_bytes()).chain([8, 2, 0]));
    STANDARD.encode(file)
}

/// A degraded image looked like what was asked for: only headers said which model drew it, and how
/// large.
#[test]
fn an_answer_says_what_was_drawn_and_by_which_model() {
    let (small, large) = (png(1024, 768), png(4096, 3072));
    let one = json!([picture(&small, json!({}))]);
    let both = json!([picture(&small, json!({})), { "text": "and" }, picture(&large, json!({}))]);
    let images = translator(Endpoint::ImageGenerations);
    let (_, answer) = translated_response(&images, &gemini(one.clone(), "STOP"));
    assert_eq!((&answer["size"], &answer["model"]), (&json!("1024x768"), &json!("m-1")));
    let (_, answer) = translated_response(&images, &gemini(both.clone(), "STOP"));
    let sizes: Vec<_> = answer["data"].as_array().unwrap().iter().map(|one| &one["size"]).collect();
    assert_eq!(sizes, ["1024x768", "4096x3072"]);
    assert_eq!(answer.get("size"), None, "no size is that of both");

    let chat = translator(Endpoint::ChatCompletions);
    let (_, answer) = translated_response(&chat, &gemini(both.clone(), "STOP"));
    let drawn = &answer["choices"][0]["message"]["images"];
    assert_eq!((&drawn[0]["size"], &drawn[1]["size"]), (&json!("1024x768"), &json!("4096x3072")));
    assert_eq!(answer["model"], "m-1");
    let told = stream(&format!("data: {}\n\n", gemini(one, "STOP")));
    assert!(told.contains(r#""size":"1024x768""#) && told.contains(r#""model":"m-1""#), "{told}");

    // A response that names no model is of the one that it was sent to.
    let mut unnamed = gemini(both, "STOP");
    unnamed.as_object_mut().unwrap().remove("modelVersion");
    let flash = ModelId::new("gemini-3.1-flash-image");
    for endpoint in [Endpoint::ImageGenerations, Endpoint::ChatCompletions] {
        let of = |translator: &ResponseTranslator| translated_response(translator, &unnamed).1;
        assert_eq!(of(&translator(endpoint))["model"], "gemini-3-pro-image");
        assert_eq!(of(&translator(endpoint).drawn_by(&flash))["model"], "gemini-3.1-flash-image");
    }
}

#[test]
fn a_client_may_send_back_an_image_with_its_size() {
    let (_, answer) = translated_response(
        &translator(Endpoint::ChatCompletions),
        &gemini(json!([picture(&png(1024, 768), json!({ "thoughtSignature": "i" }))]), "STOP"),
    );
    let message = answer["choices"][0]["message"].clone();
    let more = json!({ "role": "user", "content": "bluer" });
    let request =
        chat(json!({ "messages": [{ "role": "user", "content": "a cat" }, message, more] }));
    let sent = translate(Endpoint::ChatCompletions, &request).unwrap();
    let body: Value = serde_json::from_slice(&sent.body).unwrap();
    let image = &body["contents"][1]["parts"][0];
    assert_eq!(image["inlineData"]["data"], json!(png(1024, 768)));
    assert_eq!(image["thoughtSignature"], "i");
}

#[test]
fn a_draft_after_the_image_is_not_delivered() {
    let parts = json!([picture("QUJD", json!({})), draft("RFJB")]);
    assert_eq!(
        url(&translated_response(&translator(Endpoint::ChatCompletions), &gemini(parts, "STOP")).1),
        URI
    );
    let events =
        [part_event(json!([picture("QUJD", json!({}))])), gemini(json!([draft("RFJB")]), "STOP")];
    let told = stream(&events.map(|event| format!("data: {event}\n\n")).concat());
    assert!(told.contains(URI) && !told.contains("RFJB"), "{told}");
}

fn translator_of(endpoint: Endpoint, model: &str) -> ResponseTranslator {
    let request = if endpoint == Endpoint::ChatCompletions { chat } else { image };
    translate(endpoint, &request(json!({ "model": model }))).unwrap().translator
}

/// A response of three images gave one of them, although all were paid for.
#[test]
fn every_final_image_is_delivered_in_order() {
    let images = |answer: &Value| -> Vec<String> {
        let chat = answer.pointer("/choices/0/message/images");
        let listed = chat.or(answer.get("data")).and_then(Value::as_array).unwrap();
        let urls = listed.iter().map(|entry| {
            let at = entry.pointer("/image_url/url").or(entry.get("b64_json"));
            at.and_then(Value::as_str).unwrap().rsplit(',').next().unwrap().to_owned()
        });
        urls.collect()
    };
    let one = |data: &str| picture(data, json!({}));
    let text = json!({ "text": "and then" });
    let interleaved = json!([one("QUJD"), text, one("REVG"), text, one("R0hJ")]);
    let beside = json!([one("QUJD"), one("REVG")]);
    for endpoint in [Endpoint::ChatCompletions, Endpoint::ImageGenerations] {
        let of = |model: &str, parts: &Value| {
            let translator = translator_of(endpoint, model);
            images(&translated_response(&translator, &gemini(parts.clone(), "STOP")).1)
        };
        assert_eq!(of("gemini-3-pro-image", &interleaved), ["QUJD", "REVG", "R0hJ"]);
        assert_eq!(of("gemini-3-pro-image", &beside), ["REVG"], "drafts that are not marked");
        assert_eq!(of("gemini-2.5-flash-image", &beside), ["QUJD", "REVG"]);
        assert_eq!(of("some-image-model", &beside), ["QUJD", "REVG"]);
        let mut second = gemini(json!([]), "IMAGE_SAFETY");
        let other = gemini(json!([one("QUJD")]), "STOP")["candidates"][0].clone();
        second["candidates"].as_array_mut().unwrap().push(other);
        let translator = translator_of(endpoint, "gemini-3-pro-image");
        assert_eq!(images(&translated_response(&translator, &second).1), ["QUJD"]);
    }
    let in_text = gemini(json!([{ "text": "![](data:image/png;base64,QUJD)" }]), "STOP");
    let translator = translator_of(Endpoint::ImageGenerations, "gemini-3-pro-image");
    assert_eq!(images(&translated_response(&translator, &in_text).1), ["QUJD"]);
}

#[test]
fn a_stream_sends_an_image_as_soon_as_it_is_final() {
    let event = |parts: Value| format!("data: {}\n\n", part_event(parts));
    let one = |data: &str| picture(data, json!({}));
    let end = format!("data: {}\n\n", gemini(json!([]), "STOP"));
    let parts = [one("QUJD"), json!({ "text": "and then" }), one("REVG"), one("R0hJ")];
    let body: String = parts.into_iter().map(|part| event(json!([part]))).collect();
    let sent = |model: &str| {
        let mut stream = translator_of(Endpoint::ChatCompletions, model).stream(NOW);
        let mut events = stream.push(&Bytes::from(format!("{body}{end}")));
        events.extend(stream.finish());
        let text = String::from_utf8(events.concat()).unwrap();
        ["QUJD", "and then", "REVG", "R0hJ"].map(|part| text.find(part))
    };
    let [first, text, second, third] = sent("gemini-3-pro-image");
    assert!(first < text && text < third && second.is_none());
    let [first, text, second, third] = sent("gemini-2.5-flash-image");
    assert!(first < text && text < second && second < third && second.is_some());
}

#[test]
fn finish_reasons_and_refusals_are_translated() {
    for (reason, word) in [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("IMAGE_PROHIBITED_CONTENT", "content_filter"),
        ("IMAGE_RECITATION", "content_filter"),
        ("RECITATION", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("SPII", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("SOME_NEW_SAFETY", "content_filter"),
        ("NO_IMAGE", "stop"),
        ("IMAGE_OTHER", "stop"),
        ("OTHER", "stop"),
        ("MALFORMED_FUNCTION_CALL", "stop"),
        ("SOMETHING_ELSE", "stop"),
    ] {
        let (status, answer) =
            translated_response(&translator(Endpoint::ChatCompletions), &gemini(json!([]), reason));
        let choice = &answer["choices"][0];
        assert_eq!(
            (status, &choice["finish_reason"], &choice["native_finish_reason"]),
            (200, &json!(word), &json!(reason))
        );
        assert_eq!(choice["message"]["refusal"].is_null(), reason == "STOP", "{reason}");
        assert!(choice["message"].get("images").is_none());
        let (status, answer) = translated_response(
            &translator(Endpoint::ImageGenerations),
            &gemini(json!([]), reason),
        );
        let error = &answer["error"];
        assert_eq!(
            (status, &error["type"]),
            (400, &json!("image_generation_user_error")),
            "nobody sends again for it"
        );
        let code = match word {
            "length" => "out_of_tokens",
            "content_filter" => "moderation_blocked",
            _ => "no_image",
        };
        assert_eq!(error["code"], code, "{reason}");
        assert!(error["message"].as_str().unwrap().contains(reason));
    }
    let words = "Unable to show the image. You will not be charged for this request.";
    let mut answer = gemini(json!([]), "IMAGE_OTHER");
    answer["candidates"][0]["finishMessage"] = json!(words);
    assert_eq!(
        translated_response(&translator(Endpoint::ChatCompletions), &answer).1["choices"][0]["message"]
            ["refusal"],
        words
    );
    assert!(
        translated_response(&translator(Endpoint::ImageGenerations), &answer).1["error"]["message"]
            .as_str()
            .unwrap()
            .contains(words)
    );

    let blocked = json!({ "promptFeedback": { "blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "no" } });
    let choice = translated_response(&translator(Endpoint::ChatCompletions), &blocked).1["choices"]
        [0]
    .clone();
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["refusal"]),
        (&json!("content_filter"), &json!("no"))
    );
    assert_eq!(
        translated_response(&translator(Endpoint::ImageGenerations), &blocked).1["error"]["code"],
        "content_policy_violation"
    );
    // Ratings beside a good answer block nothing.
    let good = with(
        gemini(json!([{ "text": "hi" }]), "STOP"),
        &json!({ "promptFeedback": { "safetyRatings": [] } }),
    );
    assert_eq!(
        translated_response(&translator(Endpoint::ChatCompletions), &good).1["choices"][0]["finish_reason"],
        "stop"
    );
    // The model's own words for why there is none.
    let words = translated_response(
        &translator(Endpoint::ImageGenerations),
        &gemini(json!([{ "text": "I cannot draw that." }]), "STOP"),
    );
    assert!(words.1["error"]["message"].as_str().unwrap().contains("I cannot draw that."));
    // A refusal repeats its thoughts as candidates, and counts them once.
    let usage = json!({ "promptTokenCount": 1119, "candidatesTokenCount": 240, "thoughtsTokenCount": 240, "totalTokenCount": 1359 });
    let repeated =
        json!({ "candidates": [{ "finishReason": "IMAGE_SAFETY" }], "usageMetadata": usage });
    assert_eq!(
        translated_response(&translator(Endpoint::ChatCompletions), &repeated).1["usage"]["completion_tokens"],
        240
    );
    assert_eq!(
        translated_response(
            &translator(Endpoint::ChatCompletions),
            &json!({ "candidates": null, "usageMetadata": { "promptTokenCount": "x" } })
        )
        .0,
        200
    );
}

#[test]
fn a_whole_response_becomes_an_images_response() {
    let answer =
        gemini(json!([{ "text": "Here." }, draft("RFJB"), picture("QUJD", json!({}))]), "STOP");
    let usage = json!({
        "input_tokens": 5, "input_tokens_details": { "text_tokens": 5, "image_tokens": 0 },
        "output_tokens": 1220, "output_tokens_details": { "text_tokens": 100, "image_tokens": 1120 },
        "total_tokens": 1225,
    });
    let expected = json!({ "created": NOW, "data": [{ "b64_json": "QUJD" }], "output_format": "png", "model": "m-1", "usage": usage });
    assert_eq!(
        translated_response(&translator(Endpoint::ImageGenerations), &answer),
        (200, expected)
    );
    let by_url = translate(Endpoint::ImageGenerations, &image(json!({ "response_format": "url" })))
        .unwrap()
        .translator;
    assert_eq!(translated_response(&by_url, &answer).1["data"], json!([{ "url": URI }]));
}

#[test]
fn errors_are_objects_and_keep_their_status() {
    let quota = |id: &str| {
        json!([{ "@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{ "quotaId": id }] },
            { "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "20s" }])
    };
    let (minute, day) = (
        quota("GenerateRequestsPerMinutePerProjectPerModel"),
        quota("GenerateRequestsPerDayPerProjectPerModel"),
    );
    let invalid = json!([{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID" }]);
    let none = || json!([]);
    let limited = ("rate_limit_error", Some("rate_limit_exceeded"));
    let spent = ("insufficient_quota", Some("insufficient_quota"));
    let capacity = "Resource exhausted. Please try again later. Please refer to error-code-429";
    let signature =
        "Image part is missing a thought_signature in content position 2, part position 1.";
    for (code, word, message, details, expected) in [
        (429, "RESOURCE_EXHAUSTED", "Quota exceeded", minute, limited),
        (429, "RESOURCE_EXHAUSTED", "Quota exceeded", day, spent),
        (429, "RESOURCE_EXHAUSTED", "Quota exceeded, limit: 0", none(), spent),
        (429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted.", none(), spent),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "Resource has been exhausted (e.g. check quota).",
            none(),
            limited,
        ),
        (429, "RESOURCE_EXHAUSTED", capacity, none(), limited),
        (
            503,
            "UNAVAILABLE",
            "The model is overloaded. Please try again later.",
            none(),
            ("server_error", Some("overloaded")),
        ),
        (
            504,
            "DEADLINE_EXCEEDED",
            "Deadline expired before operation could complete.",
            none(),
            ("server_error", Some("deadline")),
        ),
        (
            500,
            "INTERNAL",
            "An internal error has occurred.",
            none(),
            ("server_error", Some("internal")),
        ),
        (
            400,
            "INVALID_ARGUMENT",
            "Request contains an invalid argument.",
            none(),
            ("invalid_request_error", None),
        ),
        (
            400,
            "INVALID_ARGUMENT",
            "API key not valid.",
            invalid,
            ("authentication_error", Some("invalid_api_key")),
        ),
        (
            400,
            "FAILED_PRECONDITION",
            "User location is not supported for the API use.",
            none(),
            ("request_forbidden", Some("unsupported_country_region_territory")),
        ),
        (
            400,
            "INVALID_ARGUMENT",
            signature,
            none(),
            ("invalid_request_error", Some("missing_thought_signature")),
        ),
        (
            403,
            "PERMISSION_DENIED",
            "The caller does not have permission",
            none(),
            ("permission_error", Some("permission_denied")),
        ),
        (
            404,
            "NOT_FOUND",
            "models/x is not found for API version v1beta",
            none(),
            ("not_found_error", Some("model_not_found")),
        ),
    ] {
        let body = json!({ "error": { "code": code, "message": message, "status": word, "details": details } });
        let status = StatusCode::from_u16(code).unwrap();
        for text in [body.to_string(), json!([body]).to_string()] {
            let (kept, bytes) = translate_error(status, text.as_bytes());
            let told: Value = serde_json::from_slice(&bytes).unwrap();
            let error = &told["error"];
            assert_eq!(
                (kept, error["type"].as_str(), error["code"].as_str()),
                (status, Some(expected.0), expected.1),
                "{text}"
            );
            assert_eq!((&error["message"], &error["details"]), (&json!(message), &details));
            assert!(bytes.starts_with(b"{\"error\":{\"message\":"), "the message stands first");
            assert_eq!(
                translator(Endpoint::ChatCompletions).response(status, text.as_bytes(), NOW),
                (kept, bytes)
            );
        }
    }
    for (body, words) in [
        (
            "<html><title>Error 502 (Server Error)!!1</title><p>Please try again in 30 seconds.</html>",
            "502",
        ),
        ("", "502"),
        ("upstream connect error", "upstream connect error"),
        ("{\"error\":\"so sorry\"}", "so sorry"),
    ] {
        let (status, told) = translate_error(StatusCode::BAD_GATEWAY, body.as_bytes());
        let told: Value = serde_json::from_slice(&told).unwrap();
        let message = told["error"]["message"].as_str().unwrap();
        assert!(status == 502 && message.contains(words), "{body}: {message}");
        assert_eq!(told["error"]["type"], "server_error");
    }
}

#[test]
fn no_error_contains_a_key() {
    let key = "AIzaSyA1234567890abcdefghijklmnopqrstuv";
    let details = json!([
        { "@type": "type.googleapis.com/google.rpc.DebugInfo", "detail": format!("Invalid API key: {key}") },
        { "@type": "type.googleapis.com/google.rpc.ErrorInfo", "metadata": { "consumer": "projects/wise-coyote-123" } },
    ]);
    let message = format!("API key not valid: {key}");
    let body =
        json!({ "error": { "code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": details } }).to_string();
    for text in
        [body.clone(), format!("oops {key}"), json!({ "error": { "message": body } }).to_string()]
    {
        let (_, told) = translate_error(StatusCode::BAD_REQUEST, text.as_bytes());
        let told = String::from_utf8(told.to_vec()).unwrap();
        assert!(!told.contains(key) && !told.contains("wise-coyote"), "{told}");
        assert!(serde_json::from_str::<Value>(&told).unwrap()["error"].is_object());
        let told = translator(Endpoint::ChatCompletions)
            .stream(NOW)
            .fail(StatusCode::BAD_GATEWAY, &text)
            .concat();
        assert!(!String::from_utf8(told).unwrap().contains(key));
    }
}

#[test]
fn an_error_or_an_unreadable_body_with_status_200_is_an_error() {
    for (body, status) in [
        (r#"{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}"#, 503),
        (r#"[{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}]"#, 429),
        (r#"{"error":{"message":"?"}}"#, 502),
        (r#"{"error":{"code":200}}"#, 502),
        // Paid for, and not to be told: nothing that a client sends again for.
        ("", 424),
        ("{\"candidates\":[", 424),
        ("[]", 424),
        ("5", 424),
        ("<html>", 424),
    ] {
        for endpoint in [Endpoint::ChatCompletions, Endpoint::ImageGenerations] {
            let (got, told) = translator(endpoint).response(StatusCode::OK, body.as_bytes(), NOW);
            assert_eq!(got, status, "{body}");
            assert!(
                serde_json::from_slice::<Value>(&told).unwrap()["error"]["message"].is_string()
            );
        }
    }
}

/// Runs a stream through, cut at these places.
fn streamed(stream: &[u8], cuts: &[usize]) -> String {
    let mut translator = translator(Endpoint::ChatCompletions).stream(NOW);
    let (mut out, mut from) = (Vec::new(), 0);
    for &cut in cuts.iter().chain([&stream.len()]) {
        out.extend(translator.push(&Bytes::copy_from_slice(&stream[from..cut])));
        from = cut;
    }
    out.extend(translator.finish());
    assert!(translator.finish().is_empty(), "an end is said once");
    String::from_utf8(out.concat()).unwrap()
}

/// The events of a stream as openai's clients read them: data until `[DONE]`, and an error where
/// one is in an event.
fn read(stream: &str) -> (Vec<Value>, Option<Value>, bool) {
    let mut chunks = Vec::new();
    for event in stream.split("\n\n").filter(|event| !event.is_empty()) {
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event}"));
        if data.starts_with("[DONE]") {
            return (chunks, None, true);
        }
        let data: Value = serde_json::from_str(data).unwrap();
        if data["error"].is_object() {
            return (chunks, Some(data["error"].clone()), false);
        }
        assert_eq!(
            (&data["object"], &data["created"]),
            (&json!("chat.completion.chunk"), &json!(NOW))
        );
        chunks.push(data);
    }
    (chunks, None, false)
}

/// A stream, cut at every place and byte by byte: all must agree.
fn stream(text: &str) -> String {
    let whole = streamed(text.as_bytes(), &[]);
    for cut in 0..=text.len() {
        assert_eq!(streamed(text.as_bytes(), &[cut]), whole, "cut at {cut} of {text}");
    }
    assert_eq!(streamed(text.as_bytes(), &(0..text.len()).collect::<Vec<_>>()), whole);
    whole
}

fn part_event(parts: Value) -> Value {
    json!({ "candidates": [{ "content": { "parts": parts, "role": "model" } }], "responseId": "r-1", "modelVersion": "m-1" })
}

#[test]
fn a_stream_is_translated_in_every_framing() {
    let events = [
        part_event(json!([{ "text": "hm", "thought": true }])),
        part_event(json!([{ "text": "Here", "thoughtSignature": "t" }])),
        part_event(json!([draft("RFJB")])),
        part_event(json!([picture("MUtB", json!({}))])),
        part_event(json!([picture("_-8", json!({ "thoughtSignature": "i" }))])),
        part_event(json!([{ "text": " it is." }])),
        gemini(json!([{ "text": "" }]), "STOP"),
    ];
    let lines = |field: &str, end: &str| {
        events.iter().map(|event| format!("{field}{event}{end}")).collect::<String>()
    };
    let first = lines("data: ", "\n\n");
    let expected = streamed(first.as_bytes(), &[]);
    for text in [
        lines("data:", "\r\n\r\n"),
        lines("data: ", "\r\r"),
        lines("data: ", "\n"),
        lines("", "\n"),
        format!(": ping\n\n{first}data: [DONE]\n\n"),
        first.trim_end().to_owned(),
        first.replace(r#""content":"#, "\"content\":\ndata: "),
        format!("[{}]", events.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n,\r\n")),
        first,
    ] {
        assert_eq!(stream(&text), expected, "{text}");
    }
    let (chunks, error, done) = read(&expected);
    assert!(error.is_none() && done);
    let (usage, said) = chunks.split_last().unwrap();
    let deltas: Vec<&Value> = said.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let image = json!({
        "type": "image_url", "image_url": { "url": "data:image/png;base64,/+8=" }, "index": 0, "thought_signature": "i" });
    assert_eq!(
        json!(deltas),
        json!([
            { "role": "assistant", "content": "" },
            { "content": "Here", "extra_content": { "google": { "thought_signature": "t" } } },
            { "images": [image] },
            { "content": " it is." },
            {},
        ])
    );
    assert!(chunks.iter().all(|chunk| chunk["id"] == "r-1" && chunk["model"] == "m-1"));
    let (last, before) = said.split_last().unwrap();
    let last = &last["choices"][0];
    assert_eq!(
        (&last["finish_reason"], &last["native_finish_reason"]),
        (&json!("stop"), &json!("STOP"))
    );
    assert!(before.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null() && chunk["usage"].is_null()));
    assert_eq!((&usage["usage"]["total_tokens"], &usage["choices"]), (&json!(1225), &json!([])));
}

#[test]
fn streams_without_an_image_say_why() {
    let told = stream(
        "data: {\"candidates\":[{\"finishReason\":\"IMAGE_SAFETY\",\"finishMessage\":\"unsafe\"}]}\n\n",
    );
    let (chunks, _, done) = read(&told);
    let last = &chunks[1]["choices"][0];
    assert_eq!(
        (&last["delta"]["refusal"], &last["finish_reason"], done),
        (&json!("unsafe"), &json!("content_filter"), true)
    );
    let told = stream("data: {\"promptFeedback\":{\"blockReason\":\"OTHER\"}}\n\n");
    assert_eq!(read(&told).0[1]["choices"][0]["finish_reason"], "content_filter");
    let told = stream(&format!("data: {}\n\n", gemini(json!([draft("RFJB")]), "STOP")));
    let url = &read(&told).0[1]["choices"][0]["delta"]["images"][0]["image_url"]["url"];
    assert_eq!(url, "data:image/png;base64,RFJB", "alone, it is the image");
}

/// openai's clients raise what an event with `error` says, and read nothing behind it.
#[test]
fn streams_that_break_end_in_an_error_and_never_in_done() {
    let image = format!(
        "data: {}\n\n",
        part_event(json!([{ "text": "Here" }, picture("QUJD", json!({}))]))
    );
    let marked = format!("data: {}\n\n", part_event(json!([draft("RFJB")])));
    let error = "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"The model is overloaded.\",\n    \"status\": \"UNAVAILABLE\"\n  }\n}\n";
    for (text, has_image, words) in [
        (format!("{image}{error}"), true, "overloaded"),
        (format!("{image}data: {}\n\n", error.replace('\n', "")), true, "overloaded"),
        (format!("{image}[{error}]"), true, "overloaded"),
        (format!("{marked}{error}{image}"), false, "overloaded"),
        (image.clone(), true, "before the response was complete"),
        (marked.clone(), false, "before the response was complete"),
        (String::new(), false, "before the response was complete"),
        (format!("{image}data: {{\"cand"), true, "cannot be read"),
        (format!("{image}data: ping\n\n"), true, "cannot be read"),
        (format!("{image}{{\"error\":"), true, "cannot be read"),
    ] {
        let told = stream(&text);
        let (chunks, error, done) = read(&told);
        let error = error.unwrap_or_else(|| panic!("no error: {text}\n{told}"));
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        assert!(!done && !told.contains("[DONE]"));
        let images = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["delta"].get("images").is_some())
            .count();
        assert_eq!(
            images,
            usize::from(has_image),
            "what was paid for and complete is given: {text}"
        );
    }
    let mut translator = translator(Endpoint::ChatCompletions).stream(NOW);
    let mut out = translator.push(&Bytes::from(image));
    out.extend(translator.fail(StatusCode::BAD_GATEWAY, "the connection broke"));
    out.extend(translator.fail(StatusCode::BAD_GATEWAY, "again"));
    out.extend(translator.push(&Bytes::from(marked)));
    out.extend(translator.finish());
    let (chunks, error, _) = read(&String::from_utf8(out.concat()).unwrap());
    assert_eq!(
        (chunks.len(), error.unwrap()["message"].as_str()),
        (3, Some("the connection broke"))
    );
}

#[test]
fn text_passes_at_once_and_usage_only_if_requested() {
    let mut translator = translate(Endpoint::ChatCompletions, &chat(json!({ "stream": true })))
        .unwrap()
        .translator
        .stream(NOW);
    let out = translator
        .push(&Bytes::from(format!("data: {}\n\n", part_event(json!([{ "text": "hi" }])))));
    assert_eq!(out.len(), 2);
    let _ = translator.push(&Bytes::from(format!("data: {}\n\n", gemini(json!([]), "STOP"))));
    let rest = String::from_utf8(translator.finish().concat()).unwrap();
    assert!(!rest.contains("usage") && rest.ends_with("data: [DONE]\n\n"));
}

/// An event of 24 MB in small chunks: time must grow with its length and not with its square, which
/// would take minutes.
#[test]
fn large_events_are_read_once() {
    let data = "QUJD".repeat(6 << 20);
    let text = format!(
        "data: {}\r\n\r\n",
        gemini(json!([picture(&data, json!({ "thoughtSignature": "c2ln" }))]), "STOP")
    );
    let mut translator = translator(Endpoint::ChatCompletions).stream(NOW);
    let whole = Bytes::from(text);
    for from in (0..whole.len()).step_by(4096) {
        assert!(translator.push(&whole.slice(from..whole.len().min(from + 4096))).len() <= 1);
    }
    let out = translator.finish();
    let chunk = out.iter().find(|chunk| chunk.len() > data.len()).unwrap();
    assert_eq!(chunk.iter().filter(|b| **b == b'Q').count(), data.len() / 4);
}

/// An edit of an edit: what the client was told is sent back as it came, and Gemini finds its own
/// turn in it.
#[test]
fn a_conversation_of_edits_keeps_image_and_signatures() {
    let drawn = json!([
        { "text": "thinking", "thought": true },
        draft("RFJB"),
        { "text": "A cat.", "thoughtSignature": "dGV4dA==" },
        picture("RklOQUw=", json!({ "thoughtSignature": "aW1hZ2U=" })),
    ]);
    let kept = json!([drawn[2], drawn[3]]);
    let (_, answer) =
        translated_response(&translator(Endpoint::ChatCompletions), &gemini(drawn.clone(), "STOP"));
    let message = answer["choices"][0]["message"].clone();
    // The same, out of a stream that the client put together.
    let text = format!("data: {}\n\n", gemini(drawn, "STOP"));
    let mut joined = json!({});
    for chunk in read(&streamed(text.as_bytes(), &[])).0 {
        for (name, value) in chunk["choices"][0]["delta"].as_object().into_iter().flatten() {
            match (joined.get_mut(name), value) {
                (Some(Value::String(known)), Value::String(more)) => known.push_str(more),
                _ => joined[name] = value.clone(),
            }
        }
    }
    for message in [message, joined] {
        let body =
            chat(json!({ "messages": [user(json!("a cat")), message, user(json!("now in red"))] }));
        let contents =
            body_of(&translate(Endpoint::ChatCompletions, &body).unwrap())["contents"].clone();
        assert_eq!(contents[1], json!({ "role": "model", "parts": kept }), "{message}");
    }
}

/// Responses were once stored under a type's `Debug` text, so renaming a field lost all of them.
#[test]
fn a_translator_has_a_stable_name() {
    let url = image(json!({ "response_format": "url" }));
    let names = [
        translator(Endpoint::ChatCompletions),
        translator(Endpoint::ImageGenerations),
        translate(Endpoint::ImageGenerations, &url).unwrap().translator,
    ]
    .map(|translator| translator.to_string());
    assert_eq!(
        names,
        [
            "openai-chat/4 usage=true drafts=true model=gemini-3-pro-image",
            "openai-images/4 url=false drafts=true model=gemini-3-pro-image",
            "openai-images/4 url=true drafts=true model=gemini-3-pro-image",
        ]
    );
}

#[test]
fn retired_models_are_not_listed() {
    let list: Value = serde_json::from_slice(&list_models(Catalog::builtin(), NOW)).unwrap();
    let models = list["data"].as_array().unwrap();
    let ids: Vec<&str> = models.iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert!(
        ids.contains(&"gemini-3-pro-image") && ids.contains(&"gemini-nano-banana-2.1"),
        "{ids:?}"
    );
    assert!(
        !ids.iter().any(|id| id.contains("imagen") || id.contains("preview") || id.contains("2.5")),
        "{ids:?}"
    );
    let pro = models.iter().find(|model| model["id"] == "gemini-3-pro-image").unwrap();
    assert_eq!(
        *pro,
        json!({ "id": "gemini-3-pro-image", "object": "model", "created": 1_779_926_400, "owned_by": "google" })
    );
    let _ = list_models(Catalog::builtin(), u64::MAX);
}

const WORDS: &[&str] = &[
    "user",
    "assistant",
    "system",
    "text",
    "image_url",
    URI,
    "![](data:image/png;base64,QUJD)",
    "1024x1024",
    "4K",
    "auto",
    "nano-banana-pro",
    "gemini-3-pro-image-4k",
    "https://x/y",
    "image",
    "b64_json",
    "url",
    "high",
    "STOP",
    "IMAGE_SAFETY",
    "image/png",
    "",
    "true",
];

const NAMES: &str = "model messages role content type text image_url url images extra_content google thought_signature size quality n stop \
    stream stream_options include_usage extra_body generation_config image_config image_size aspect_ratio modalities response_format prompt \
    image mask seed max_tokens candidates parts inlineData data mimeType thought thoughtSignature finishReason usageMetadata \
    promptTokenCount totalTokenCount promptFeedback blockReason error code message details fileData fileUri candidatesTokensDetails \
    modality tokenCount tools reasoning_effort service_tier";

/// Any JSON at all, with the names that mean something more often than not.
fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(NAMES.split_whitespace().collect::<Vec<_>>());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(WORDS).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        let members = prop::collection::vec((names.clone(), inner.clone()), 0..8);
        prop_oneof![
            prop::collection::vec(inner, 0..5).prop_map(Value::from),
            members.prop_map(|members| Value::Object(
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    prop::sample::select(
        &[
            Endpoint::ChatCompletions,
            Endpoint::ImageGenerations,
            Endpoint::ImageEdits,
            Endpoint::Models,
        ][..],
    )
}

/// A value put at a place where it is looked at.
fn placed(endpoint: Endpoint, value: Value, place: u8) -> Value {
    let members = if value.is_object() { value.clone() } else { json!({}) };
    match (endpoint, place % 5) {
        (_, 0) => value,
        (Endpoint::ChatCompletions, 1) => chat(only(user(value))),
        (Endpoint::ChatCompletions, 2) => chat(
            json!({ "messages": [user(json!("x")), { "role": "assistant", "content": "y", "images": value }] }),
        ),
        (Endpoint::ChatCompletions, 3) => chat(json!({ "extra_body": { "google": value } })),
        (Endpoint::ChatCompletions, _) => chat(members),
        (_, 1) => image(json!({ "image": value })),
        (_, 2) => image(json!({ "image_config": value })),
        _ => image(members),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_json_is_translated_or_rejected(value in any_json(), endpoint in endpoints(), place in any::<u8>()) {
        let body = placed(endpoint, value, place);
        match translate(endpoint, &body) {
            Ok(translated) => {
                let uri: Uri = translated.path_and_query.parse().unwrap();
                prop_assert!(uri.path().starts_with("/v1beta/"));
                prop_assert!(body_of(&translated)["contents"].as_array().is_some_and(|contents| !contents.is_empty()));
                prop_assert_eq!(translate(endpoint, &body).unwrap().body, translated.body, "a resend is byte-identical");
            }
            Err(error) => {
                let (status, body) = error.into_parts();
                prop_assert_eq!(status, 400);
                prop_assert!(serde_json::from_slice::<Value>(&body).unwrap()["error"]["message"].is_string());
            }
        }
    }

    #[test]
    fn any_bytes_are_translated_or_rejected(
        body in prop::collection::vec(any::<u8>(), 0..200),
        endpoint in endpoints(),
        content_type in prop::sample::select(&[
            "", "application/json", "multipart/form-data; boundary=XX", "multipart/form-data; boundary=\"", "multipart/form-data"][..]),
    ) {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let _ = translate_raw(endpoint, &headers, &body);
        let head = b"--XX\r\nContent-Disposition: form-data; name=\"image\"; filename=\"f\"\r\n\r\n";
        let _ = translate_raw(endpoint, &headers, &[&head[..], &body, b"\r\n--XX--"].concat());
        let _ = Endpoint::from_path(&String::from_utf8_lossy(&body));
    }

    #[test]
    fn any_response_is_translated(
        value in any_json(),
        wrapped in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        code in 200..600_u16,
    ) {
        let parts = json!({ "candidates": [{ "content": { "parts": value.clone() }, "finishReason": "STOP" }] });
        let answer = if wrapped { parts } else { value };
        for endpoint in [Endpoint::ChatCompletions, Endpoint::ImageGenerations] {
            for body in [answer.to_string().as_bytes(), &bytes] {
                let (status, told) = translator(endpoint).response(StatusCode::from_u16(code).unwrap(), body, NOW);
                let told: Value = serde_json::from_slice(&told).unwrap();
                prop_assert_eq!(told.get("error").is_some_and(Value::is_object), !status.is_success(), "{}", told);
            }
        }
        let text = format!("data: {answer}\n\n");
        let (_, error, done) = read(&streamed(text.as_bytes(), &[text.len() / 2]));
        prop_assert!(error.is_some() != done);
        streamed(&bytes, &[bytes.len() / 2]);
    }

    #[test]
    fn images_survive_byte_for_byte(bytes in prop::collection::vec(any::<u8>(), 1..200), spelled in 0..5_u8, escaped in any::<bool>()) {
        let data = match spelled {
            0 => STANDARD.encode(&bytes),
            1 => URL_SAFE.encode(&bytes),
            2 => STANDARD_NO_PAD.encode(&bytes),
            3 => URL_SAFE_NO_PAD.encode(&bytes),
            _ => STANDARD.encode(&bytes).as_bytes().chunks(60).map(|line| format!("{}\r\n", String::from_utf8_lossy(line))).collect(),
        };
        let decoded = |data: &Value| STANDARD.decode(data.as_str().unwrap()).unwrap();
        let uri = format!("data:image/png;base64,{data}");
        let drawn = with(shown(&uri), &json!({ "thought_signature": data }));
        let body = chat(json!({ "messages": [user(json!([shown(&uri)])), { "role": "assistant", "images": [drawn] }] })).to_string();
        // PHP escapes every slash.
        let body = if escaped { body.replace('/', "\\/") } else { body };
        let body = body_of(&translate_raw(Endpoint::ChatCompletions, &HeaderMap::new(), body.as_bytes()).unwrap());
        for turn in [0, 1] {
            prop_assert_eq!(&decoded(&body["contents"][turn]["parts"][0]["inlineData"]["data"]), &bytes);
        }
        prop_assert_eq!(&body["contents"][1]["parts"][0]["thoughtSignature"], &json!(data), "a signature goes back as it came");
        let fields: [Field<'_>; 3] = [("model", None, b"nano-banana"), ("prompt", None, b"x"), ("image", Some("image/png"), &bytes)];
        let (headers, form) = multipart(&fields);
        let body = body_of(&translate_raw(Endpoint::ImageEdits, &headers, &form).unwrap());
        prop_assert_eq!(&decoded(&body["contents"][0]["parts"][1]["inlineData"]["data"]), &bytes);

        let answer = gemini(json!([picture(&data, json!({}))]), "STOP");
        prop_assert_eq!(&decoded(&translated_response(&translator(Endpoint::ImageGenerations), &answer).1["data"][0]["b64_json"]), &bytes);
        let chunks = read(&streamed(format!("data: {answer}\n\n").as_bytes(), &[])).0;
        let url = chunks[1]["choices"][0]["delta"]["images"][0]["image_url"]["url"].as_str().unwrap();
        prop_assert_eq!(&STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap(), &bytes);
    }

    #[test]
    fn core_and_the_translation_find_the_same_final_images(
        kinds in prop::collection::vec(0..9_u8, 0..8),
        second in prop::collection::vec(0..9_u8, 0..4),
        thinks in any::<bool>(),
    ) {
        let shown = |n: usize| {
            format!("![](data:image/png;base64,{})", STANDARD.encode(format!("shown {n}")))
        };
        let part = |(n, kind): (usize, &u8)| match kind {
            0 | 1 => picture(&STANDARD.encode(format!("image {n}")), json!({})),
            2 => draft(&STANDARD.encode(format!("draft {n}"))),
            3 => json!({ "text": "and then" }),
            4 => json!({ "text": "hm", "thought": true }),
            5 => json!({ "text": shown(n) }),
            6 => json!({ "text": format!("See {}", shown(n)) }),
            7 => json!({ "text": "![](data:image/png;base64,QUJDc" }),
            _ => json!({ "text": "\n" }),
        };
        let parts = |kinds: &[u8]| kinds.iter().enumerate().map(part).collect::<Value>();
        let mut answer = gemini(parts(&kinds), "STOP");
        // Of another candidate, texts are not translated.
        let second: Vec<_> = second.into_iter().filter(|kind| !(5..8).contains(kind)).collect();
        let other = json!({ "content": { "parts": parts(&second) } });
        answer["candidates"].as_array_mut().unwrap().push(other);
        let mut scanner = Scanner::decoding(Framing::Whole).unmarked_drafts(thinks);
        scanner.feed(answer.to_string().as_bytes()).unwrap();
        let found = scanner.finish().unwrap();
        let found = found.earlier_images.into_iter().chain(found.image);
        let found: Vec<_> = found.map(|image| STANDARD.encode(&image.bytes)).collect();

        let model = if thinks { "gemini-3-pro-image" } else { "gemini-2.5-flash-image" };
        let (_, listed) =
            translated_response(&translator_of(Endpoint::ImageGenerations, model), &answer);
        let listed = listed["data"].as_array().cloned().unwrap_or_default();
        let listed: Vec<_> = listed.iter().map(|it| it["b64_json"].as_str().unwrap()).collect();
        prop_assert_eq!(&listed, &found);

        let mut stream = translator_of(Endpoint::ChatCompletions, model).stream(NOW);
        let mut events = stream.push(&Bytes::from(format!("data: {answer}\n\n")));
        events.extend(stream.finish());
        let (chunks, ..) = read(std::str::from_utf8(&events.concat()).unwrap());
        let images = chunks.iter().filter_map(|chunk| {
            let url = chunk.pointer("/choices/0/delta/images/0/image_url/url")?.as_str()?;
            url.rsplit(',').next().map(str::to_owned)
        });
        // Those that a text shows stay in it.
        let shown = STANDARD.encode("shown");
        let listed: Vec<_> = found.into_iter().filter(|it| !it.starts_with(&shown[..6])).collect();
        prop_assert_eq!(images.collect::<Vec<_>>(), listed);
    }

    #[test]
    fn streams_are_translated_the_same_wherever_they_are_cut(
        events in prop::collection::vec((prop::collection::vec((0..5_u8, any::<bool>()), 0..4), any::<bool>()), 0..5),
        faults in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"{}[]\",:\\\n\r dx\x00\xff"[..])), 0..3),
        end in prop::sample::select(&["\n\n", "\r\n\r\n", "\n"][..]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let part = |&(kind, marked): &(u8, bool)| match kind {
            0 | 1 => json!({ "text": "a } \\ \" \u{e4}", "thought": marked }),
            2 | 3 => picture("QUJD", json!({ "thought": marked })),
            _ => json!({}),
        };
        let event = |(parts, ends): &(Vec<(u8, bool)>, bool)| {
            let parts = json!(parts.iter().map(part).collect::<Vec<_>>());
            format!("data: {}{end}", if *ends { gemini(parts, "STOP") } else { part_event(parts) })
        };
        let mut bytes = events.iter().map(event).collect::<String>().into_bytes();
        for (at, b) in faults {
            if !bytes.is_empty() {
                *at.get_mut(&mut bytes) = b;
            }
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = streamed(&bytes, &[]);
        prop_assert_eq!(&streamed(&bytes, &cuts), &whole);
        prop_assert_eq!(&streamed(&bytes, &(0..bytes.len()).collect::<Vec<_>>()), &whole);
        let (_, error, done) = read(&whole);
        prop_assert!(error.is_some() != done);
    }
}

#[test]
fn whether_images_may_be_drafts_depends_on_the_model_that_drew_them() {
    let image = |data: &str| json!({ "inlineData": { "mimeType": "image/png", "data": data } });
    let content = json!({ "parts": [image("ZHJhZnQ="), image("ZmluYWw=")] });
    let response = json!({ "candidates": [{ "content": content, "finishReason": "STOP" }] });
    let response = response.to_string();
    for (asked, drawn_by, images) in [
        ("gemini-3-pro-image", "gemini-2.5-flash-image", 2),
        ("gemini-2.5-flash-image", "gemini-3-pro-image", 1),
    ] {
        let body = json!({ "model": asked, "messages": [{ "role": "user", "content": "a cat" }] });
        let request =
            to_gemini(Endpoint::ChatCompletions, &HeaderMap::new(), &body.to_string().into());
        let translator = request.unwrap().translator.drawn_by(&ModelId::new(drawn_by));
        let (_, whole) = translator.response(StatusCode::OK, response.as_bytes(), 0);
        let mut stream = translator.stream(0);
        let mut events = stream.push(&format!("data: {response}\n\n").into());
        events.extend(stream.finish());
        for text in [whole, events.concat().into()] {
            let text = std::str::from_utf8(&text).unwrap();
            assert_eq!(
                text.matches("data:image/png;base64,").count(),
                images,
                "{drawn_by}: {text}"
            );
        }
    }
}
