use http::{HeaderMap, HeaderValue, Method, Uri};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";

fn post(path: &str, body: &str) -> Call {
    Call::parse(&Method::POST, &path.parse().unwrap(), &HeaderMap::new(), Some(body.as_bytes()))
}

fn post_json(path: &str, body: &Value) -> Call {
    post(path, &body.to_string())
}

fn form(parts: &[(&str, &str)]) -> Call {
    let mut body = String::new();
    for (disposition, value) in parts {
        body.push_str(&format!(
            "--XyZ\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n"
        ));
    }
    body.push_str("--XyZ--\r\n");
    let mut headers = HeaderMap::new();
    headers
        .insert("content-type", HeaderValue::from_static("multipart/form-data; boundary=\"XyZ\""));
    Call::parse(
        &Method::POST,
        &Uri::from_static("/v1/images/edits"),
        &headers,
        Some(body.as_bytes()),
    )
}

#[test]
fn a_plain_request_asks_for_one_image_at_the_models_own_size() {
    let call =
        post_json(PRO, &json!({"contents": [{"parts": [{"text": "a red apple on white"}]}]}));
    assert_eq!(
        (call.dialect, call.verb, call.framing),
        (Dialect::GeminiApi, Verb::Generate, Framing::Whole)
    );
    assert_eq!(call.model, Some(ModelId::new("gemini-3-pro-image")));
    assert_eq!(call.version.as_deref(), Some("v1beta"));
    assert!(call.wants_image);
    assert_eq!((call.images, call.size, call.aspect), (1, None, None));
    assert!(!call.multi_turn && !call.has_input_images && !call.is_continuation);
    assert_eq!(call.input_tokens_estimate, 5);
}

#[test]
fn both_spellings_of_image_options_in_both_cases() {
    let wanted = (Some(ImageSize::K2), Some("16:9"));
    for config in [
        json!({"imageConfig": {"imageSize": "2K", "aspectRatio": "16:9"}}),
        json!({"image_config": {"image_size": "2K", "aspect_ratio": "16:9"}}),
        json!({"imageConfig": {"image_size": "2k", "aspectRatio": "16:9"}}),
        json!({"responseFormat": {"image": {"imageSize": "2K", "aspectRatio": "16:9"}}}),
        json!({"response_format": {"image": {"image_size": "2K", "aspect_ratio": "16:9"}}}),
        json!({"responseFormat": [{"image": {"imageSize": "IMAGE_SIZE_TWO_K", "aspectRatio": "ASPECT_RATIO_SIXTEEN_BY_NINE"}}]}),
        json!({"responseFormat": [{"text": {}}, {"image": {"imageSize": "IMAGE_SIZE_TWO_K", "aspectRatio": "16:9"}}]}),
        json!({"imageConfig": {"imageSize": "1K", "aspectRatio": "1:1"}, "responseFormat": {"image": {"imageSize": "2K", "aspectRatio": "16:9"}}}),
        json!({"responseFormat": {"image": {"imageSize": "1K", "aspectRatio": "16:9"}}, "imageConfig": {"imageSize": "2K", "aspectRatio": "1:1"}}),
    ] {
        for name in ["generationConfig", "generation_config"] {
            let call = post_json(PRO, &json!({"contents": [], name: config}));
            assert_eq!((call.size, call.aspect.as_deref()), wanted, "{name} {config}");
        }
    }
}

#[test]
fn a_lower_case_size_is_read_although_the_server_will_refuse_it() {
    let call = post_json(PRO, &json!({"generationConfig": {"imageConfig": {"imageSize": "4k"}}}));
    assert_eq!(call.size, Some(ImageSize::K4));
}

#[test]
fn what_asks_for_an_image_and_what_does_not() {
    let text = "/v1beta/models/gemini-2.5-pro:generateContent";
    let modalities = |list: Value| json!({"generationConfig": {"responseModalities": list}});
    let cases = [
        (PRO, json!({}), true),
        (PRO, modalities(json!(["TEXT", "IMAGE"])), true),
        (PRO, modalities(json!(["Image"])), true),
        (PRO, modalities(json!([1, 2])), true),
        (PRO, modalities(json!("IMAGE")), true),
        (PRO, modalities(json!(["TEXT"])), false),
        (PRO, modalities(json!([])), true),
        (PRO, modalities(Value::Null), true),
        (text, json!({}), false),
        (text, modalities(json!(["TEXT", "IMAGE"])), true),
        ("/v1beta/models/gemini-3-pro-image:countTokens", json!({}), false),
        ("/v1beta/models/gemini-3-pro-image:embedContent", json!({}), false),
        ("/v1beta/models/gemini-3-pro-image:batchGenerateContent", json!({}), false),
        ("/v1beta/models/gemini-nano-banana-2.1:generateContent", json!({}), true),
        ("/v1beta/models/Gemini-9-Flash-IMAGE:generateContent", json!({}), true),
        ("/v1/nothing", json!({}), false),
        ("/v1/images/generations", json!({"model": "whatever"}), true),
        ("/v1/chat/completions", json!({"model": "gpt-9"}), false),
        ("/v1/chat/completions", json!({"model": "gpt-9", "modalities": ["text", "image"]}), true),
        ("/v1/chat/completions", json!({"model": "google/gemini-3.1-flash-image"}), true),
        ("/v1beta/interactions", json!({"model": "gemini-3.5-flash", "input": "hi"}), false),
        (
            "/v1beta/interactions",
            json!({"model": "gemini-3.5-flash", "response_modalities": ["image"]}),
            true,
        ),
        (
            "/v1beta/interactions",
            json!({"model": "gemini-3.5-flash", "response_format": {"type": "image", "image_size": "2K"}}),
            true,
        ),
    ];
    for (path, body, wanted) in cases {
        let call = post_json(path, &body);
        assert_eq!(call.wants_image, wanted, "{path} {body}");
        assert_eq!(call.images > 0, wanted, "{path} {body}");
    }
}

#[test]
fn an_interaction_is_fetched_by_its_id() {
    let of = |method: &Method, path: &str| {
        Call::parse(method, &path.parse().unwrap(), &HeaderMap::new(), None)
    };
    for (path, framing) in [
        ("/v1beta/interactions/v1_abc", Framing::Whole),
        ("/any/v1//interactions/v1_abc/?key=k", Framing::Whole),
        ("/v1beta/interactions/v1_abc?stream=true&last_event_id=7", Framing::Sse),
    ] {
        let call = of(&Method::GET, path);
        assert!(call.fetches_interaction() && !call.generates(), "{path}");
        assert_eq!((call.framing, call.can_be_charged()), (framing, Some(false)), "{path}");
    }
    for (method, path) in [
        (Method::GET, "/v1beta/interactions"),
        (Method::GET, "/v1beta/interactions/"),
        (Method::GET, "/v1beta/files/x"),
        (Method::POST, "/v1beta/interactions/v1_abc:cancel"),
        (Method::DELETE, "/v1beta/interactions/v1_abc"),
    ] {
        assert_eq!(of(&method, path).dialect, Dialect::Unrecognised, "{method} {path}");
    }
}

#[test]
fn only_posts_are_calls() {
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE] {
        assert_eq!(
            Call::parse(&method, &PRO.parse().unwrap(), &HeaderMap::new(), None),
            Call { method, ..Call::unrecognised() }
        );
    }
}

/// A 200 of countTokens, of a file listing and of a URL that is not Gemini's was called "charged",
/// and a `POST` to an unknown path was resent after a 500 (issue 11, faults 6 and 7).
#[test]
fn only_calls_that_generate_can_be_charged_and_only_idempotent_ones_are_repeated() {
    const UNKNOWN: Option<bool> = None;
    let model = |verb| format!("/v1beta/models/gemini-3-pro-image:{verb}");
    let table = [
        (Method::POST, model("generateContent"), Some(true), false),
        (Method::POST, model("streamGenerateContent?alt=sse"), Some(true), false),
        (Method::POST, model("predict"), Some(true), false),
        (Method::POST, model("predictLongRunning"), Some(true), false),
        (Method::POST, model("batchGenerateContent"), Some(true), false),
        (Method::POST, model("embedContent"), Some(true), false),
        (Method::POST, model("countTokens"), Some(false), false),
        (Method::POST, model("somethingNew"), UNKNOWN, false),
        (Method::POST, "/v1beta/interactions".into(), Some(true), false),
        (Method::POST, "/v1/chat/completions".into(), Some(true), false),
        (Method::POST, "/v1/images/generations".into(), Some(true), false),
        (Method::POST, "/v1/images/edits".into(), Some(true), false),
        (Method::POST, "/upload/v1beta/files".into(), UNKNOWN, false),
        (Method::POST, "/v1/orders".into(), UNKNOWN, false),
        (Method::PATCH, "/v1beta/cachedContents/x".into(), UNKNOWN, false),
        (Method::PUT, "/v1/orders/1".into(), UNKNOWN, true),
        (Method::DELETE, "/v1beta/files/x".into(), Some(false), true),
        (Method::GET, "/v1beta/files".into(), Some(false), true),
        (Method::GET, "/v1beta/models".into(), Some(false), true),
        (Method::GET, "/v1beta/interactions/abc".into(), Some(false), true),
        (Method::GET, model("generateContent"), Some(false), true),
        (Method::HEAD, "/v1/orders".into(), Some(false), true),
        (Method::OPTIONS, "*".into(), Some(false), true),
        (Method::TRACE, "/v1/orders".into(), Some(false), true),
        (Method::CONNECT, "/".into(), UNKNOWN, false),
    ];
    for (method, path, charged, idempotent) in table {
        let call = Call::parse(&method, &path.parse().unwrap(), &HeaderMap::new(), None);
        assert_eq!(
            (call.can_be_charged(), call.is_idempotent()),
            (charged, idempotent),
            "{method} {path}"
        );
    }
    assert_eq!(
        (Call::unrecognised().can_be_charged(), Call::unrecognised().is_idempotent()),
        (UNKNOWN, false)
    );
}

#[test]
fn openai_dialects_name_model_size_and_count_in_the_body() {
    let call = post_json(
        "/v1/images/generations",
        &json!({"model": "nano-banana-pro", "prompt": "x".repeat(40), "size": "4096x4096", "n": 2, "response_format": "b64_json"}),
    );
    assert_eq!((call.dialect, call.verb), (Dialect::OpenAiImages, Verb::Generate));
    assert_eq!(call.model, Some(ModelId::new("nano-banana-pro")));
    assert_eq!(
        (call.size, call.aspect.as_deref(), call.images),
        (Some(ImageSize::K4), Some("1:1"), 2)
    );
    assert_eq!(call.input_tokens_estimate, 10);

    let call = post_json(
        "/v1/projects/p/locations/global/endpoints/openapi/chat/completions",
        &json!({"model": "google/gemini-3.1-flash-image", "stream": true, "messages": [
            {"role": "user", "content": [{"type": "text", "text": "draw"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
            {"role": "assistant", "content": null, "images": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            {"role": "user", "content": "again"}]}),
    );
    assert_eq!((call.verb, call.framing), (Verb::StreamGenerate, Framing::Sse));
    assert_eq!(call.model, Some(ModelId::new("gemini-3.1-flash-image")));
    assert!(call.multi_turn && call.has_input_images);
    assert_eq!(call.input_tokens_estimate, 3 + 2 * 258);

    let openrouter = post_json(
        "/api/v1/chat/completions",
        &json!({"model": "google/gemini-3-pro-image", "image_config": {"image_size": "2K", "aspect_ratio": "3:2"}}),
    );
    assert_eq!((openrouter.size, openrouter.aspect.as_deref()), (Some(ImageSize::K2), Some("3:2")));
    let extra = post_json(
        "/v1beta/openai/chat/completions",
        &json!({"model": "m", "extra_body": {"google": {"image_config": {"image_size": "4K"}}}}),
    );
    assert_eq!(extra.size, Some(ImageSize::K4));
}

#[test]
fn a_form_is_read_without_its_pictures() {
    let picture = "\u{1}\r\n\r\n--not a boundary".repeat(1000);
    let call = form(&[
        ("name=\"prompt\"", "make it blue"),
        ("name=\"image[]\"; filename=\"name=model.png\"", &picture),
        ("name=\"image[]\"; filename=\"b.png\"", &picture),
        ("name=\"model\"", "gemini-3-pro-image-4k"),
        ("name=\"size\"", "auto"),
        ("name=\"n\"", "3"),
    ]);
    assert_eq!(call.dialect, Dialect::OpenAiImages);
    assert_eq!(call.model.as_ref().map(ModelId::as_str), Some("gemini-3-pro-image-4k"));
    assert_eq!((call.size, call.images, call.has_input_images), (Some(ImageSize::K4), 3, true));
    assert_eq!(call.input_tokens_estimate, 3 + 2 * 258);
}

#[test]
fn imagen_counts_samples_and_makes_four_unless_told() {
    let path = "/v1beta/models/imagen-4.0-generate-001:predict";
    let call = post_json(
        path,
        &json!({"instances": [{"prompt": "a cat"}], "parameters": {"sampleCount": 2, "sampleImageSize": "2k", "aspectRatio": "16:9"}}),
    );
    assert_eq!(
        (call.verb, call.images, call.size, call.aspect.as_deref()),
        (Verb::Predict, 2, Some(ImageSize::K2), Some("16:9"))
    );
    assert_eq!(post_json(path, &json!({"instances": [{"prompt": "a cat"}]})).images, 4);
}

#[test]
fn sizes_and_ratios_in_a_models_name_stand_in_for_missing_fields() {
    let call = post("/v1beta/models/gemini-3-pro-image-2k-9x16:generateContent", "{}");
    assert_eq!((call.size, call.aspect.as_deref()), (Some(ImageSize::K2), Some("9:16")));
    let call = post(
        "/v1beta/models/gemini-3-pro-image-2k:generateContent",
        r#"{"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#,
    );
    assert_eq!(call.size, Some(ImageSize::K4));
}

#[test]
fn turns_images_files_and_continuations_are_seen() {
    let user = json!({"role": "user", "parts": [{"text": "hi"}, {"inline_data": {"data": "AAAA", "mime_type": "image/png"}}]});
    let model = json!({"role": "model", "parts": [{"inlineData": {"data": "AAAA", "mime_type": "image/jpeg"}, "thoughtSignature": "AAAA"}]});
    let call = post_json(PRO, &json!({"contents": [user, model]}));
    assert!(call.multi_turn && call.has_input_images && !call.has_other_files);
    assert_eq!(call.input_tokens_estimate, 1 + 2 * 258);
    let pdf = post_json(
        PRO,
        &json!({"contents": {"parts": [{"fileData": {"fileUri": "gs://x", "mimeType": "application/pdf"}}]}}),
    );
    assert!(!pdf.has_input_images && pdf.has_other_files);
    for body in [
        json!({"continuationToken": "x"}),
        json!({"continuation_token": "x"}),
        json!({"previous_interaction_id": "x"}),
        json!({"previousInteractionId": "x"}),
    ] {
        assert!(post_json("/v1beta/interactions", &body).is_continuation, "{body}");
    }
    assert!(
        !post_json(
            "/v1beta/interactions",
            &json!({"previous_interaction_id": null, "continuation_token": ""})
        )
        .is_continuation
    );
    let steps = post_json(
        "/v1/interactions",
        &json!({"model": "m", "input": [{"type": "image", "uri": "x"}, {"role": "model", "content": [{"type": "text", "text": "abcd"}]}]}),
    );
    assert!(steps.multi_turn && steps.has_input_images);
    assert_eq!(steps.input_tokens_estimate, 1 + 258);
}

#[test]
fn the_service_tier_is_in_the_body_or_in_vertex_ais_header() {
    assert_eq!(post_json(PRO, &json!({"serviceTier": "flex"})).tier, ServiceTier::Flex);
    assert_eq!(post_json(PRO, &json!({"service_tier": "PRIORITY"})).tier, ServiceTier::Priority);
    let mut headers = HeaderMap::new();
    headers.insert("X-Vertex-AI-LLM-Shared-Request-Type", HeaderValue::from_static("priority"));
    assert_eq!(
        Call::parse(&Method::POST, &PRO.parse().unwrap(), &headers, None).tier,
        ServiceTier::Priority
    );
}

#[test]
fn names_inside_texts_and_arguments_are_not_options() {
    let call = post_json(
        PRO,
        &json!({
            "contents": [{"parts": [
                {"text": r#"{"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#},
                {"functionCall": {"args": {"role": "model", "inlineData": {"data": "A"}, "imageSize": "4K"}}}]}],
            "tools": [{"generationConfig": {"imageConfig": {"imageSize": "4K"}}}]
        }),
    );
    assert_eq!((call.size, call.multi_turn, call.has_input_images), (None, false, false));
}

#[test]
fn escaped_names_and_values_are_read() {
    let call =
        post(PRO, r#"{"generation\u0043onfig":{"image_config":{"\u0069mageSize":"\u0032K"}}}"#);
    assert_eq!(call.size, Some(ImageSize::K2));
}

#[test]
fn a_broken_body_keeps_what_came_before_the_break_and_what_the_path_says() {
    let whole = r#"{"generationConfig":{"imageConfig":{"imageSize":"2K"}},"contents":[{"parts":[{"text":"x"#;
    let call = post(PRO, whole);
    assert_eq!(
        (call.size, call.model.is_some(), call.wants_image),
        (Some(ImageSize::K2), true, true)
    );
    for body in [
        "",
        "{",
        "[",
        "\"",
        "nonsense",
        "{\"a\"}",
        "{]",
        "[}",
        "{\"model\":",
        "{,}",
        "[,]",
        "\u{feff}{}",
        "{\"a\":\"\\",
    ] {
        assert!(post(PRO, body).wants_image, "{body}");
    }
}

#[test]
fn a_compressed_body_is_not_guessed_at() {
    let mut headers = HeaderMap::new();
    headers.insert("content-encoding", HeaderValue::from_static("gzip"));
    let call = Call::parse(
        &Method::POST,
        &PRO.parse().unwrap(),
        &headers,
        Some(b"{\"serviceTier\":\"flex\"}"),
    );
    assert_eq!(call.tier, ServiceTier::Standard);
    assert!(call.wants_image);
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Every name of the object in snake case where its bit is set: so that spellings are mixed at
/// every level.
fn respelled(value: &Value, bits: &mut u64) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members
                .iter()
                .map(|(name, value)| {
                    *bits = bits.rotate_right(1);
                    let name = if *bits & 1 == 1 { snake(name) } else { name.clone() };
                    (name, respelled(value, bits))
                })
                .collect(),
        ),
        Value::Array(values) => {
            Value::Array(values.iter().map(|value| respelled(value, bits)).collect())
        }
        other => other.clone(),
    }
}

fn any_request() -> impl Strategy<Value = Value> {
    let size =
        prop::sample::select(vec!["512", "1K", "2K", "4K", "2k", "IMAGE_SIZE_FOUR_K", "1024x1024"]);
    let ratio =
        prop::sample::select(vec!["1:1", "16:9", "21:9", "7:3", "ASPECT_RATIO_NINE_BY_SIXTEEN"]);
    let part = prop_oneof![
        "\\PC{0,20}".prop_map(|text| json!({"text": text})),
        "[A-Za-z0-9+/]{0,40}"
            .prop_map(|data| json!({"inlineData": {"mimeType": "image/png", "data": data}})),
        Just(json!({"fileData": {"fileUri": "gs://a/b", "mimeType": "video/mp4"}})),
        Just(json!({"thought": true, "text": "hm", "thoughtSignature": "AAAA"})),
    ];
    let turn = (prop::sample::select(vec!["user", "model"]), prop::collection::vec(part, 0..4))
        .prop_map(|(role, parts)| json!({"role": role, "parts": parts}));
    (prop::collection::vec(turn, 0..3), size, ratio, any::<bool>(), 0_u32..5, any::<bool>()).prop_map(
        |(turns, size, ratio, in_format, count, text_only)| {
            let image = json!({"imageSize": size, "aspectRatio": ratio});
            let modalities = if text_only { json!(["TEXT"]) } else { json!(["TEXT", "IMAGE"]) };
            let mut config = json!({"responseModalities": modalities, "candidateCount": count});
            if in_format {
                config["responseFormat"] = json!({"image": image});
            } else {
                config["imageConfig"] = image;
            }
            json!({"contents": turns, "generationConfig": config, "systemInstruction": {"parts": [{"text": "be brief"}]},
                   "continuationToken": if text_only { "t" } else { "" }})
        },
    )
}

proptest! {
    #[test]
    fn nothing_panics(path in "\\PC{0,60}", body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(uri) = format!("/{path}").parse::<Uri>() {
            let _ = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(&body));
        }
        let _ = Call::parse(&Method::POST, &Uri::from_static(PRO), &HeaderMap::new(), Some(&body));
    }

    #[test]
    fn nothing_panics_on_what_almost_is_a_request(path in "[/:a-z0-9%.?=$]{0,60}", body in "[\\[\\]{}\":,\\\\a-zA-Z0-9_ ]{0,200}") {
        if let Ok(uri) = format!("/v1/models/{path}").parse::<Uri>() {
            let _ = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body.as_bytes()));
        }
        let wrapped = format!("{{\"contents\":{body},\"generationConfig\":{body}");
        let _ = Call::parse(&Method::POST, &Uri::from_static(PRO), &HeaderMap::new(), Some(wrapped.as_bytes()));
    }

    #[test]
    fn no_cut_of_a_request_panics_or_changes_the_path(request in any_request(), at in any::<prop::sample::Index>()) {
        let text = request.to_string();
        let cut = at.index(text.len());
        let call = Call::parse(&Method::POST, &Uri::from_static(PRO), &HeaderMap::new(), Some(&text.as_bytes()[..cut]));
        prop_assert_eq!(call.model, Some(ModelId::new("gemini-3-pro-image")));
        prop_assert_eq!(call.dialect, Dialect::GeminiApi);
    }

    #[test]
    fn camel_and_snake_case_spell_the_same_call(request in any_request(), bits in any::<u64>()) {
        let camel = post_json(PRO, &request);
        prop_assert_eq!(&post_json(PRO, &respelled(&request, &mut bits.clone())), &camel);
        prop_assert_eq!(&post_json(PRO, &respelled(&request, &mut u64::MAX.clone())), &camel);
        // White space means nothing either.
        prop_assert_eq!(&post(PRO, &serde_json::to_string_pretty(&request).unwrap()), &camel);
    }

    #[test]
    fn what_is_read_is_what_a_real_parser_reads(request in any_request()) {
        let call = post_json(PRO, &request);
        let parts = || request["contents"].as_array().unwrap().iter().flat_map(|turn| turn["parts"].as_array().unwrap());
        prop_assert_eq!(call.multi_turn, request["contents"].as_array().unwrap().iter().any(|turn| turn["role"] == "model"));
        prop_assert_eq!(call.has_input_images, parts().any(|part| part.get("inlineData").is_some()));
        prop_assert_eq!(call.has_other_files, parts().any(|part| part.get("fileData").is_some()));
        prop_assert_eq!(call.is_continuation, request["continuationToken"] != "");
        prop_assert_eq!(call.wants_image, request["generationConfig"]["responseModalities"].as_array().unwrap().len() == 2);
        let count = u32::try_from(request["generationConfig"]["candidateCount"].as_u64().unwrap()).unwrap();
        prop_assert_eq!(call.images, if call.wants_image { count.max(1) } else { 0 });
        prop_assert!(call.size.is_some() && call.aspect.is_some());
    }

    #[test]
    fn a_prefix_changes_nothing(
        prefix in prop::collection::vec("(v[0-9](beta)?|[a-z][a-z0-9-]{0,8}|)", 0..4),
        path in prop::sample::select(vec![
            PRO,
            "/v1beta/models/gemini-3.1-flash-image:streamGenerateContent?alt=sse",
            "/v1beta1/projects/p/locations/global/publishers/google/models/gemini-3-pro-image:generateContent",
            "/v1/publishers/google/models/gemini-3-pro-image:generateContent",
            "/v1/chat/completions",
            "/v1beta/openai/images/generations",
            "/v1beta/interactions",
        ]),
    ) {
        prop_assume!(!prefix.iter().any(|word| ["models", "publishers", "projects", "endpoints", "locations"].contains(&word.as_str())));
        let prefixed = format!("/{}{path}", prefix.join("/"));
        let body = r#"{"model":"gemini-3-pro-image","stream":true}"#;
        prop_assert_eq!(post(&prefixed, body), post(path, body));
    }
}
