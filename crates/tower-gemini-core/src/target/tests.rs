use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::call::{Call, Dialect, ImageSize};
use crate::catalog::{Catalog, Thinking};

const PRO: &str = "gemini-3-pro-image";
const FLASH25: &str = "gemini-2.5-flash-image";
const FLASH31: &str = "gemini-3.1-flash-image";

/// A body that is held, as the layers hold one.
#[derive(Debug, Clone)]
struct Held {
    chunks: Vec<Bytes>,
    call: Arc<Call>,
}

/// A request that can be rewritten any number of times.
struct Template(Parts, Held);

impl Template {
    fn new(request: &Request<Held>) -> Self {
        let (parts, body) = request.clone().into_parts();
        Self(parts, body)
    }

    fn rewritten(&self, target: &Target, rules: &Rules<'_>) -> Result<Rewrite, Unfit> {
        rewrite(&self.0, &self.1.call, target, rules, || match self.1.chunks.as_slice() {
            [only] => only.clone(),
            chunks => chunks.concat().into(),
        })
    }

    fn apply(&self, rewrite: Rewrite) -> Request<Held> {
        let mut parts = self.0.clone();
        rewrite.apply_to_head(&mut parts);
        let (chunks, call) = rewrite.into_body();
        Request::from_parts(
            parts,
            Held { chunks: chunks.unwrap_or_else(|| self.1.chunks.clone()), call },
        )
    }
}

fn request(path: &str, chunks: Vec<Bytes>) -> Request<Held> {
    let uri: Uri = path.parse().unwrap();
    let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(&chunks.concat()));
    Request::post(uri).body(Held { chunks, call: Arc::new(call) }).unwrap()
}

fn path_of(model: &str) -> String {
    format!("/v1beta/models/{model}:generateContent")
}

fn rewritten(
    path: &str,
    body: &str,
    target: &Target,
) -> Result<(Request<Held>, Vec<Degradation>), Unfit> {
    let request = request(path, vec![Bytes::copy_from_slice(body.as_bytes())]);
    let template = Template::new(&request);
    let rewrite = template.rewritten(target, &Rules::new(Catalog::builtin()))?;
    let given_up = rewrite.given_up().to_vec();
    Ok((template.apply(rewrite), given_up))
}

fn body_of(request: &Request<Held>) -> Bytes {
    request.body().chunks.concat().into()
}

fn texts(given_up: &[Degradation]) -> Vec<String> {
    given_up.iter().map(ToString::to_string).collect()
}

/// The derived call must be what a reader of the rewritten request would read.
fn assert_call_is_true(request: &Request<Held>) {
    let read =
        Call::parse(request.method(), request.uri(), request.headers(), Some(&body_of(request)));
    let call = &request.body().call;
    assert_eq!(
        (
            &call.model,
            call.size,
            &call.aspect,
            call.dialect,
            call.verb,
            &call.version,
            call.wants_image,
            call.multi_turn
        ),
        (
            &read.model,
            read.size,
            &read.aspect,
            read.dialect,
            read.verb,
            &read.version,
            read.wants_image,
            read.multi_turn
        ),
        "{} {}",
        request.uri(),
        String::from_utf8_lossy(&body_of(request))
    );
}

fn models() -> impl Strategy<Value = String> {
    let ids: Vec<_> = Catalog::builtin()
        .models()
        .filter(|model| model.family != crate::catalog::Family::Imagen)
        .map(|model| model.id.clone())
        .collect();
    prop::sample::select(ids)
}

#[derive(Debug, Clone)]
struct Spelling {
    snake: bool,
    /// 0: imageConfig, 1: responseFormat as an object, 2: as a list of enums, 3: none.
    form: u8,
}

fn options_body(
    size: Option<ImageSize>,
    ratio: Option<&str>,
    thinking: Option<Value>,
    spelling: &Spelling,
) -> Value {
    let name =
        |camel: &str, snake: &str| if spelling.snake { snake.to_owned() } else { camel.to_owned() };
    let mut image = serde_json::Map::new();
    if let Some(size) = size {
        let spelled = if spelling.form == 2 {
            crate::size::size_as(size, "IMAGE_SIZE_ONE_K", size)
        } else {
            size.as_str().to_owned()
        };
        image.insert(name("imageSize", "image_size"), spelled.into());
    }
    if let Some(ratio) = ratio {
        let like = if spelling.form == 2 { "ASPECT_RATIO_ONE_BY_ONE" } else { "1:1" };
        image
            .insert(name("aspectRatio", "aspect_ratio"), crate::size::ratio_as(ratio, like).into());
    }
    let mut config = json!({ "temperature": 1.0 });
    match spelling.form {
        0 => config[name("imageConfig", "image_config")] = image.into(),
        1 => config[name("responseFormat", "response_format")] = json!({ "image": image }),
        2 => config[name("responseFormat", "response_format")] = json!([{ "image": image }]),
        _ => {}
    }
    if let Some(thinking) = thinking {
        config[name("thinkingConfig", "thinking_config")] = thinking;
    }
    json!({ "contents": [{ "role": "user", "parts": [{ "text": "a \"cat\" \\ with } and ," }] }],
        name("generationConfig", "generation_config"): config })
}

/// Every path at which two values differ.
fn differences(a: &Value, b: &Value, at: &str, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                differences(
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                    &format!("{at}/{key}"),
                    out,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{at}/{i}"), out);
            }
        }
        _ if a == b => {}
        _ => out.push(at.to_owned()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rewrite_differs_only_where_it_says(
        from in models(), to in models(), size in prop::option::of(prop::sample::select(ImageSize::ALL.to_vec())),
        ratio in prop::option::of(prop::sample::select(vec!["1:1", "16:9", "21:9", "1:8", "8:1", "1:4", "4:5"])),
        thinking in prop::option::of(prop::sample::select(vec![json!({"thinkingLevel":"high"}), json!({"thinking_budget":0}), json!({"includeThoughts":true})])),
        snake in any::<bool>(), form in 0u8..4, cap in prop::option::of(prop::sample::select(ImageSize::ALL.to_vec())),
        split in 0usize..200,
    ) {
        let spelling = Spelling { snake, form };
        let before = options_body(size, ratio, thinking, &spelling);
        let text = Bytes::from(serde_json::to_vec_pretty(&before).unwrap());
        let split = split.min(text.len());
        let request = request(&path_of(&from), vec![text.slice(..split), text.slice(split..)]);
        let template = Template::new(&request);
        let mut target = Target::new(&to);
        if let Some(cap) = cap {
            target = target.size_cap(cap);
        }
        let Ok(rewrite) = template.rewritten(&target, &Rules::new(Catalog::builtin())) else {
            // Only a size that would have to be put in beside other changes.
            prop_assert!(cap == Some(ImageSize::Px512));
            return Ok(());
        };
        let given_up = rewrite.given_up().to_vec();
        let unchanged = rewrite.is_unchanged();
        let request = Template::new(&request).apply(rewrite);
        assert_call_is_true(&request);
        let after_text = body_of(&request);
        let after: Value = serde_json::from_slice(&after_text).unwrap();
        let mut differing = Vec::new();
        differences(&before, &after, "", &mut differing);
        if unchanged {
            prop_assert_eq!(&after_text, &text);
        }
        for path in differing {
            let lower = path.to_ascii_lowercase().replace('_', "");
            let explained = given_up.iter().any(|given| match given.what {
                GivenUp::Size => lower.contains("imagesize") || lower.contains("imageconfig"),
                GivenUp::Aspect => lower.contains("aspectratio") || lower.contains("responseformat"),
                GivenUp::Thinking => lower.contains("thinking"),
                GivenUp::Spelling => lower.contains("responseformat") || lower.contains("imageconfig"),
                _ => false,
            });
            prop_assert!(explained, "{path} changed and {given_up:?} does not say so");
        }
        // What is sent is what the catalogue says the model takes.
        let model = Catalog::builtin().lookup(&to).unwrap();
        if from != to {
            let call = &request.body().call;
            prop_assert!(call.size.is_none_or(|size| model.accepts_image_size && model.makes(size)));
            prop_assert!(call.aspect.as_deref().is_none_or(|ratio| model.takes_ratio(ratio)));
            let text = String::from_utf8_lossy(&after_text).to_ascii_lowercase();
            prop_assert!(model.thinking != Thinking::None || !text.contains("thinking"));
            prop_assert!(model.accepts_response_format || !(text.contains("responseformat") || text.contains("response_format")));
        }
        let capped = cap.zip(request.body().call.size).is_none_or(|(cap, size)| size <= cap || size == model.sizes[0]);
        prop_assert!(capped);
    }

    #[test]
    fn a_rewrite_for_the_same_target_is_byte_equal(
        model in models(), size in prop::option::of(prop::sample::select(ImageSize::ALL.to_vec())), snake in any::<bool>(), form in 0u8..4,
    ) {
        let text = options_body(size, Some("1:8"), None, &Spelling { snake, form }).to_string();
        let (request, given_up) = rewritten(&path_of(&model), &text, &Target::new(&model)).unwrap();
        prop_assert!(given_up.is_empty());
        prop_assert_eq!(body_of(&request), text.as_bytes());
        prop_assert_eq!(request.uri().path(), path_of(&model));
    }

    #[test]
    fn what_must_be_kept_is_kept_or_the_target_is_unfit(
        from in models(), to in models(), size in prop::option::of(prop::sample::select(ImageSize::ALL.to_vec())),
        ratio in prop::option::of(prop::sample::select(vec!["1:1", "16:9", "1:8", "4:1"])), form in 0u8..3,
        cap in prop::option::of(prop::sample::select(ImageSize::ALL.to_vec())),
    ) {
        let text = options_body(size, ratio, None, &Spelling { snake: false, form }).to_string();
        let request = request(&path_of(&from), vec![text.into()]);
        let template = Template::new(&request);
        let mut target = Target::new(&to);
        if let Some(cap) = cap {
            target = target.size_cap(cap);
        }
        let rules = Rules::new(Catalog::builtin()).must_keep(MustKeep::nothing().size().aspect().vendor());
        if let Ok(rewrite) = template.rewritten(&target, &rules) {
            let asked = &request.body().call;
            let makes = rewrite.call().size.unwrap_or(ImageSize::K1);
            prop_assert_eq!(makes, asked.size.unwrap_or(ImageSize::K1));
            prop_assert_eq!(&rewrite.call().aspect, &asked.aspect);
        }
    }

    #[test]
    fn no_body_makes_a_rewrite_panic(bytes in prop::collection::vec(prop::sample::select(b"{}[]\",:a1\\ ".to_vec()), 0..80), to in models()) {
        let request = request(&path_of(PRO), vec![bytes.into()]);
        let _ = Template::new(&request).rewritten(&Target::new(&to).size_cap(ImageSize::Px512), &Rules::new(Catalog::builtin()));
    }
}

#[test]
fn large_parts_are_shared_and_not_copied() {
    let image = "A".repeat(20 << 20);
    let text = format!(
        r#"{{"contents":[{{"role":"user","parts":[{{"inlineData":{{"mimeType":"image/png","data":"{image}"}}}},{{"text":"x"}}]}}],"generationConfig":{{"imageConfig":{{"imageSize":"4K"}}}}}}"#
    );
    let whole = Bytes::from(text);
    let held = whole.as_ptr_range();
    let request = request(&path_of(PRO), vec![whole.clone()]);
    let rewrite = Template::new(&request)
        .rewritten(&Target::new(FLASH31).size_cap(ImageSize::K2), &Rules::new(Catalog::builtin()));
    let request = Template::new(&request).apply(rewrite.unwrap());
    let new: usize = request
        .body()
        .chunks
        .iter()
        .filter(|chunk| !held.contains(&chunk.as_ptr()))
        .map(Bytes::len)
        .sum();
    assert!(new < 16, "{new} bytes are new");
    assert!(body_of(&request).ends_with(br#""imageSize":"2K"}}}"#));
}

#[test]
fn the_model_is_put_into_every_form_of_path() {
    for (path, expected) in [
        (
            "/v1beta/models/gemini-3-pro-image:generateContent?key=k&alt=sse",
            "/v1beta/models/M:generateContent?key=k&alt=sse",
        ),
        (
            "/gw//v1beta/models/gemini-3-pro-image:streamGenerateContent",
            "/gw//v1beta/models/M:streamGenerateContent",
        ),
        (
            "/v1beta/models%2Fgemini-3-pro-image%3AgenerateContent",
            "/v1beta/models%2FM%3AgenerateContent",
        ),
        (
            "/v1beta/models/google/gemini-3-pro-image:generateContent",
            "/v1beta/models/google/M:generateContent",
        ),
        ("/v1beta/tunedModels/mine:generateContent", "/v1beta/models/M:generateContent"),
        (
            "/v1/projects/p/locations/global/publishers/google/models/gemini-3-pro-image:generateContent",
            "/v1/projects/p/locations/global/publishers/google/models/M:generateContent",
        ),
        (
            "/v1/projects/p/locations/us/endpoints/123:generateContent",
            "/v1/projects/p/locations/us/publishers/google/models/M:generateContent",
        ),
    ] {
        let body = r#"{"contents":[{"parts":[{"text":"x"}]}],"generationConfig":{"responseModalities":["IMAGE"]}}"#;
        let (request, _) = rewritten(path, body, &Target::new(FLASH31)).unwrap();
        assert_eq!(
            request.uri().to_string(),
            expected
                .replace('M', FLASH31)
                .replace(&format!("publishers/google/{FLASH31}odels"), "publishers/google/models"),
            "{path}"
        );
        assert_eq!(body_of(&request), body.as_bytes());
        assert_call_is_true(&request);
    }
}

#[test]
fn the_model_is_put_into_bodies_that_name_it() {
    for (path, body, expected) in [
        (
            "/v1beta/openai/chat/completions",
            r#"{"model":"models/gemini-3-pro-image","messages":[{"role":"user","content":"x"}],"extra_body":{"google":{"image_config":{"image_size":"4K","aspect_ratio":"16:9"}}}}"#,
            r#"{"model":"models/gemini-2.5-flash-image","messages":[{"role":"user","content":"x"}],"extra_body":{"google":{"image_config":{"aspect_ratio":"16:9"}}}}"#,
        ),
        (
            "/v1/images/generations",
            r#"{"model": "gemini-3-pro-image", "prompt": "x", "size": "4096x4096"}"#,
            r#"{"model": "gemini-2.5-flash-image", "prompt": "x", "size": "1024x1024"}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"google/gemini-3-pro-image-4k-16x9","messages":[{"role":"user","content":"x"}]}"#,
            r#"{"model":"google/gemini-2.5-flash-image-16x9","messages":[{"role":"user","content":"x"}]}"#,
        ),
        (
            "/v1beta/interactions",
            r#"{"model":"gemini-3-pro-image","input":"x","response_format":{"type":"image","image_size":"2K"}}"#,
            r#"{"model":"gemini-2.5-flash-image","input":"x","response_format":{"type":"image"}}"#,
        ),
    ] {
        let (request, _) = rewritten(path, body, &Target::new(FLASH25)).unwrap();
        assert_eq!(String::from_utf8_lossy(&body_of(&request)), expected);
        assert_eq!(request.uri().path(), path);
        assert_eq!(
            request.body().call.model.as_ref().map(|m| m.as_str().starts_with(FLASH25)),
            Some(true)
        );
    }
}

// A list of one, as some relays take it, and the other enums passed on as they were: the fallback's
// model refused them.
#[test]
fn a_ratio_is_adapted_however_it_is_spelled() {
    for (asked, adapted, respelled) in [
        (json!("1:8"), json!("9:16"), "9:16"),
        (json!(["1:8"]), json!(["9:16"]), "9:16"),
        (json!("1x8"), json!("9x16"), "9:16"),
        (json!("ASPECT_RATIO_1_8"), json!("ASPECT_RATIO_9_16"), "9:16"),
        (json!(["ASPECT_RATIO_ONE_BY_EIGHT"]), json!(["ASPECT_RATIO_NINE_BY_SIXTEEN"]), "9:16"),
        (json!("ASPECT_RATIO_LANDSCAPE"), json!("ASPECT_RATIO_LANDSCAPE"), "16:9"),
        (json!(["16:9"]), json!(["16:9"]), "16:9"),
    ] {
        for name in ["aspectRatio", "aspect_ratio"] {
            let body =
                json!({ "contents": [], "generationConfig": { "imageConfig": { name: asked } } });
            let target = Target::new(FLASH25);
            let (request, given_up) =
                rewritten(&path_of(FLASH31), &body.to_string(), &target).unwrap();
            let now: Value = serde_json::from_slice(&body_of(&request)).unwrap();
            assert_eq!(now["generationConfig"]["imageConfig"][name], adapted, "{asked}");
            let said = texts(&given_up).contains(&"aspect 1:8 → 9:16".to_owned());
            assert_eq!(said, asked != adapted, "{asked}: {given_up:?}");
            assert_call_is_true(&request);
            let format = json!([{ "image": { name: asked } }]);
            let body = json!({ "contents": [], "generationConfig": { "responseFormat": format } });
            let (request, _) = rewritten(&path_of(FLASH31), &body.to_string(), &target).unwrap();
            let now: Value = serde_json::from_slice(&body_of(&request)).unwrap();
            let config = json!({ "aspectRatio": respelled });
            assert_eq!(now["generationConfig"]["imageConfig"], config, "{asked}");
        }
    }
}

#[test]
fn everything_given_up_is_said() {
    let body = r#"{"contents":[{"parts":[{"text":"x"}]}],"generation_config":{"response_format":[{"image":{"image_size":"IMAGE_SIZE_FOUR_K","aspect_ratio":"ASPECT_RATIO_ONE_BY_EIGHT","mime_type":"image/png"}}],"thinking_config":{"thinking_level":"high"}}}"#;
    let (request, given_up) = rewritten(&path_of(FLASH31), body, &Target::new(FLASH25)).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&body_of(&request)),
        r#"{"contents":[{"parts":[{"text":"x"}]}],"generation_config":{"image_config":{"aspect_ratio":"9:16"}}}"#
    );
    assert_eq!(
        texts(&given_up),
        [
            "model gemini-3.1-flash-image → gemini-2.5-flash-image",
            "size 4K dropped",
            "aspect 1:8 → 9:16",
            "image option mimeType dropped",
            "spelling responseFormat → imageConfig",
            "thinking {\"thinking_level\":\"high\"} dropped",
        ]
    );
}

#[test]
fn a_target_that_names_the_same_model_in_other_words_changes_nothing() {
    let body = r#"{"contents":[{"parts":[{"text":"x"}]}]}"#;
    let unchanged = |path: &str, target: Target| {
        let request = request(path, vec![Bytes::copy_from_slice(body.as_bytes())]);
        let template = Template::new(&request);
        let rewrite = template.rewritten(&target, &Rules::new(Catalog::builtin())).unwrap();
        let is_unchanged = rewrite.is_unchanged();
        assert_eq!(is_unchanged, template.apply(rewrite).uri() == request.uri());
        is_unchanged
    };
    assert!(unchanged(&path_of("nano-banana-pro"), Target::new(PRO)));
    assert!(unchanged(&path_of("models/gemini-3-pro-image"), Target::new(PRO)));
    assert!(unchanged(&path_of("unknown-1"), Target::new("unknown-1")));
    assert!(unchanged(&path_of(PRO), Target::new(PRO).size_cap(ImageSize::K1)));
    assert!(unchanged("/v1/orders", Target::new(PRO)), "it names no model");
    assert!(!unchanged(&path_of("unknown-1"), Target::new("unknown-2")));
    assert!(!unchanged(&path_of("nano-banana-pro"), Target::new(FLASH31)));
}

#[test]
fn each_thing_that_must_be_kept_refuses_its_own_targets_and_no_others() {
    let nothing = MustKeep::nothing;
    let up_to_1k = |model| Target::new(model).size_cap(ImageSize::K1);
    let table = [
        (nothing().size(), FLASH31, Some("4K"), "1:8", Target::new(PRO), None),
        (nothing().size(), PRO, Some("4K"), "1:1", Target::new(FLASH25), Some(Unfit::KeepsSize)),
        (nothing().size(), PRO, Some("4K"), "1:1", up_to_1k(PRO), Some(Unfit::KeepsSize)),
        (nothing().size(), PRO, Some("1K"), "1:1", Target::new(FLASH25), None),
        (nothing().size(), PRO, None, "1:1", Target::new(FLASH25), None),
        (nothing().aspect(), PRO, Some("4K"), "16:9", Target::new(FLASH25), None),
        (nothing().aspect(), FLASH31, None, "1:8", Target::new(PRO), Some(Unfit::KeepsAspect)),
        (nothing().aspect(), FLASH31, None, "1:8", up_to_1k(FLASH31), None),
        (nothing().vendor(), PRO, Some("4K"), "1:1", Target::new(FLASH25), None),
        (nothing().vendor(), PRO, None, "1:1", Target::new("x"), Some(Unfit::KeepsVendor)),
        (nothing().vendor(), "x-image", None, "1:1", Target::new(PRO), Some(Unfit::KeepsVendor)),
    ];
    for (must_keep, from, size, ratio, target, expected) in table {
        let mut image = json!({ "aspectRatio": ratio });
        if let Some(size) = size {
            image["imageSize"] = size.into();
        }
        let body = json!({ "contents": [], "generationConfig": { "imageConfig": image } });
        let request = request(&path_of(from), vec![body.to_string().into()]);
        let rules = Rules::new(Catalog::builtin()).must_keep(must_keep);
        let refused = Template::new(&request).rewritten(&target, &rules).err();
        assert_eq!(refused, expected, "{must_keep:?} {from} {size:?} {ratio} {target}");
    }
}

/// A size of 512 has no suffix: it was reported as asked for, and 1K was drawn.
#[test]
fn a_size_and_a_ratio_in_the_models_name_are_changed_there() {
    let body = r#"{"contents":[]}"#;
    let up_to = |model, size| Target::new(model).size_cap(size);
    for (from, target, to, expected) in [
        (
            "gemini-3-pro-image-4k",
            up_to(PRO, ImageSize::K2),
            "gemini-3-pro-image-2k",
            "size 4K → 2K",
        ),
        (
            "gemini-3-pro-image-4K-16x9",
            up_to(PRO, ImageSize::K1),
            "gemini-3-pro-image-1K-16x9",
            "size 4K → 1K",
        ),
        ("gemini-3-pro-image-4k", up_to(PRO, ImageSize::K4), "gemini-3-pro-image-4k", ""),
        (
            "gemini-3.1-flash-image-2k-1x8",
            up_to(FLASH31, ImageSize::Px512),
            "gemini-3.1-flash-image-1x8",
            "size 2K → 512",
        ),
        (
            "gemini-3.1-flash-image-1x8",
            Target::new(FLASH25),
            "gemini-2.5-flash-image-9x16",
            "aspect 1:8 → 9:16",
        ),
        ("gemini-3-pro-image-4k", Target::new(FLASH25), FLASH25, "size 4K dropped"),
        ("gemini-3-pro-image-4k", Target::new(FLASH31), "gemini-3.1-flash-image-4k", ""),
    ] {
        let (request, given_up) = rewritten(&path_of(from), body, &target).unwrap();
        assert_eq!(request.uri().path(), path_of(to), "{from} {target}");
        let read = Call::parse(
            request.method(),
            request.uri(),
            request.headers(),
            Some(&body_of(&request)),
        );
        let call = &request.body().call;
        assert_eq!((call.size, &call.aspect), (read.size, &read.aspect), "{from} {target}");
        let given_up = texts(&given_up).into_iter().find(|text| !text.starts_with("model"));
        assert_eq!(given_up.unwrap_or_default(), expected, "{from} {target}");
    }
}

#[test]
fn a_thinking_level_becomes_the_nearest_that_the_model_knows() {
    for (to, asked, expected) in [
        (FLASH31, "high", None),
        (FLASH31, "MINIMAL", None),
        (FLASH31, "low", Some("minimal")),
        (FLASH31, "medium", Some("high")),
        (FLASH31, "utmost", Some("high")),
        ("gemini-nano-banana-2.1", "medium", None),
        ("gemini-nano-banana-2.1", "low", Some("minimal")),
    ] {
        let body = format!(
            r#"{{"contents":[],"generationConfig":{{"thinkingConfig":{{"thinkingLevel":"{asked}"}}}}}}"#
        );
        let (request, given_up) = rewritten(&path_of(PRO), &body, &Target::new(to)).unwrap();
        let text = String::from_utf8(body_of(&request).to_vec()).unwrap();
        assert_eq!(text, body.replace(asked, expected.unwrap_or(asked)), "{to} {asked}");
        let said = expected.map(|level| format!("thinking thinkingLevel {asked} → {level}"));
        assert_eq!(texts(&given_up).get(1), said.as_ref());
    }
}

#[test]
fn signatures_do_not_cross_models() {
    let history = r#"{"contents":[{"role":"user","parts":[{"text":"a cat"}]},{"role":"model","parts":[{"text":"here","thoughtSignature":"c2ln"},{"inlineData":{"mimeType":"image/png","data":"AA=="},"thought_signature":"c2ln"},{"inlineData":{"mimeType":"image/png","data":"AA=="}}]},{"role":"user","parts":[{"text":"now red"}]}]}"#;
    let placeholder = format!("\"{}\"", Signatures::PLACEHOLDER);
    let (request, given_up) = rewritten(&path_of(PRO), history, &Target::new(FLASH31)).unwrap();
    let text = String::from_utf8(body_of(&request).to_vec()).unwrap();
    assert_eq!(text.matches(&placeholder).count(), 3, "{text}");
    assert!(!text.contains("c2ln"));
    assert_eq!(texts(&given_up)[1], "signatures 2 (1 missing) → skip_thought_signature_validator");
    let (request, _) = rewritten(&path_of(PRO), history, &Target::new(FLASH25)).unwrap();
    let text = String::from_utf8(body_of(&request).to_vec()).unwrap();
    assert!(!text.to_ascii_lowercase().contains("signature"), "{text}");
    serde_json::from_str::<Value>(&text).unwrap();
    let request = self::request(&path_of(PRO), vec![Bytes::from_static(history.as_bytes())]);
    let template = Template::new(&request);
    let rules = Rules::new(Catalog::builtin()).signatures(Signatures::Refuse);
    assert_eq!(template.rewritten(&Target::new(FLASH31), &rules).unwrap_err(), Unfit::Signatures);
    // The same model elsewhere, in another dialect: another backend.
    let vertex = Target::new(PRO).on(Upstream::vertex(
        Uri::from_static("https://aiplatform.googleapis.com"),
        "p",
        "global",
    ));
    assert_eq!(template.rewritten(&vertex, &rules).unwrap_err(), Unfit::Signatures);
    assert!(template.rewritten(&Target::new(PRO).size_cap(ImageSize::K1), &rules).is_ok());
}

#[test]
fn another_place_gets_its_own_address_and_credentials_and_never_the_callers() {
    let body = r#"{"contents":[{"parts":[{"text":"x"}]}],"generationConfig":{"responseFormat":{"image":{"imageSize":"2K"}}}}"#;
    let uri = "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-pro-image:streamGenerateContent?key=AIzaSecret&alt=sse";
    let mut request = request(uri, vec![Bytes::from_static(body.as_bytes())]);
    for (name, value) in [
        ("x-goog-api-key", "AIzaOther"),
        ("host", "generativelanguage.googleapis.com"),
        ("content-length", "1"),
        ("transfer-encoding", "chunked"),
        ("x-mine", "stays"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let template = Template::new(&request);
    let upstream = Upstream::vertex(Uri::from_static("https://proxy.example/base/"), "p", "global")
        .bearer("ya29.secret")
        .unwrap();
    let target = Target::new(PRO).on(upstream);
    assert!(!format!("{target:?}").contains("ya29"));
    let rewrite = template.rewritten(&target, &Rules::new(Catalog::builtin())).unwrap();
    assert_eq!(
        texts(rewrite.given_up()),
        [
            "upstream generativelanguage.googleapis.com → proxy.example",
            "spelling responseFormat → imageConfig"
        ]
    );
    let request = Template::new(&request).apply(rewrite);
    assert_eq!(
        request.uri().to_string(),
        "https://proxy.example/base/v1beta1/projects/p/locations/global/publishers/google/models/gemini-3-pro-image:streamGenerateContent?alt=sse"
    );
    let headers = request.headers();
    assert_eq!(headers["authorization"], "Bearer ya29.secret");
    assert_eq!(headers["x-mine"], "stays");
    for gone in ["x-goog-api-key", "host", "content-length", "transfer-encoding"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    assert_eq!(request.body().call.dialect, Dialect::VertexAi);
    assert_call_is_true(&request);
    let express = Target::new(PRO).on(Upstream::express(Uri::from_static(
        "https://aiplatform.googleapis.com",
    ))
    .api_key("k")
    .unwrap());
    let request = template.rewritten(&express, &Rules::new(Catalog::builtin())).unwrap();
    assert_eq!(
        template.apply(request).uri().path(),
        "/v1beta1/publishers/google/models/gemini-3-pro-image:streamGenerateContent"
    );
}

/// Stores were keyed by the host alone: two projects, or two relays behind one host, shared quota
/// and health.
#[test]
fn upstreams_that_differ_in_name_kind_address_or_project_have_different_keys() {
    let base = |text| Uri::from_static(text);
    let vertex = |project| Upstream::vertex(base("https://a.example"), project, "global");
    let mut keys: Vec<String> = [
        Upstream::gemini_api(base("https://a.example")),
        Upstream::gemini_api(base("https://a.example")).name("second"),
        Upstream::gemini_api(base("https://a.example:8443")),
        Upstream::gemini_api(base("http://a.example")),
        Upstream::gemini_api(base("https://a.example/relay")),
        Upstream::express(base("https://a.example")),
        Upstream::same_api(base("https://a.example")),
        vertex("p"),
        vertex("q"),
    ]
    .iter()
    .map(|upstream| upstream.id().to_string())
    .collect();
    keys.sort();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all, "{keys:?}");
    // Credentials, account and a slash at the end are no part of it.
    let same = Upstream::gemini_api(base("https://key:secret@a.example/")).api_key("k").unwrap();
    assert_eq!(same.id(), Upstream::gemini_api(base("https://a.example")).account("x").id());
    assert!(!format!("{same:?}").contains("secret"));
    let json = serde_json::to_string(&vertex("p").id()).unwrap();
    assert_eq!(serde_json::from_str::<UpstreamId>(&json).unwrap(), vertex("p").id());
}

#[test]
fn the_identity_of_the_callers_own_upstream_is_read_from_its_request() {
    let id = |uri: &'static str| {
        let uri = Uri::from_static(uri);
        let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), None);
        UpstreamId::from_request(&uri, &call).to_string()
    };
    let google = "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent?key=k";
    assert_eq!(
        id(google),
        "gemini-api https://generativelanguage.googleapis.com - generativelanguage.googleapis.com"
    );
    assert_eq!(
        id("http://k:s@relay.example:81/v1/publishers/google/models/m:generateContent"),
        "vertex-express http://relay.example:81 - relay.example"
    );
    assert_eq!(
        id("https://relay.example/v1/chat/completions"),
        "same-api https://relay.example - relay.example"
    );
    assert_eq!(id("/v1beta/models/m:generateContent"), "gemini-api https:// - ");
}

#[test]
fn what_cannot_be_rewritten_is_said() {
    let unfit =
        |path: &str, body: &str, target: Target| rewritten(path, body, &target).unwrap_err();
    let plain = r#"{"contents":[{"parts":[{"text":"x"}]}]}"#;
    assert_eq!(
        unfit(&path_of(PRO), plain, Target::new("imagen-4.0-fast-generate-001")),
        Unfit::OtherApi
    );
    assert_eq!(
        unfit(
            "/v1beta/models/imagen-4.0-generate-001:predict",
            r#"{"instances":[{"prompt":"x"}]}"#,
            Target::new(PRO)
        ),
        Unfit::OtherApi
    );
    // A call for text must not come back as a picture, at many times the price.
    assert_eq!(unfit(&path_of("gemini-2.5-flash"), plain, Target::new(PRO)), Unfit::MakesImages);
    let text_only = r#"{"contents":[],"generationConfig":{"responseModalities":["TEXT"]}}"#;
    assert!(
        rewritten(&path_of(PRO), text_only, &Target::new(FLASH31)).is_ok(),
        "from one such model to another it is one"
    );
    assert_eq!(unfit(&path_of(PRO), "no json", Target::new(FLASH31)), Unfit::Unreadable);
    assert_eq!(
        unfit(
            &path_of(PRO),
            r#"{"cachedContent":"cachedContents/1","contents":[]}"#,
            Target::new(FLASH31)
        ),
        Unfit::CachedContent
    );
    let files = r#"{"contents":[{"parts":[{"fileData":{"fileUri":"https://x/files/1"}}]}]}"#;
    let elsewhere =
        Target::new(PRO).on(Upstream::gemini_api(Uri::from_static("https://other.example")));
    assert_eq!(unfit(&path_of(PRO), files, elsewhere), Unfit::UploadedFiles);
    assert!(rewritten(&path_of(PRO), files, &Target::new(FLASH31)).is_ok());
    let chat = Target::new(PRO).on(Upstream::gemini_api(Uri::from_static("https://other.example")));
    assert_eq!(
        unfit("/v1/chat/completions", r#"{"model":"gemini-3-pro-image","messages":[]}"#, chat),
        Unfit::OtherApi
    );
    assert_eq!(
        unfit(
            "/v1beta/interactions",
            r#"{"model":"gemini-3-pro-image","input":"x","previous_interaction_id":"i"}"#,
            Target::new(FLASH31)
        ),
        Unfit::Continuation
    );
}

#[test]
fn a_size_is_put_in_where_none_stood() {
    for (body, expected) in [
        (
            r#"{"contents":[]}"#,
            r#"{"generationConfig":{"imageConfig":{"imageSize":"512"}},"contents":[]}"#,
        ),
        (
            r#"{"contents":[],"generationConfig":{"temperature":1}}"#,
            r#"{"contents":[],"generationConfig":{"imageConfig":{"imageSize":"512"},"temperature":1}}"#,
        ),
        (
            r#"{"contents":[],"generationConfig":{"imageConfig":{"aspectRatio":"1:8"}}}"#,
            r#"{"contents":[],"generationConfig":{"imageConfig":{"imageSize":"512","aspectRatio":"1:8"}}}"#,
        ),
        (
            r#"{"model":"models/gemini-3.1-flash-image","contents":[]}"#,
            r#"{"generationConfig":{"imageConfig":{"imageSize":"512"}},"model":"models/gemini-3.1-flash-image","contents":[]}"#,
        ),
    ] {
        let (request, given_up) =
            rewritten(&path_of(FLASH31), body, &Target::new(FLASH31).size_cap(ImageSize::Px512))
                .unwrap();
        assert_eq!(String::from_utf8_lossy(&body_of(&request)), expected);
        assert_eq!(texts(&given_up), ["size default → 512"]);
    }
}
