//! Second turns over the simulator, which checks signatures as the API does.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::{Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::stage::WireClient;
use tower_gemini::thought_signatures::{Missing, PLACEHOLDER};
use tower_gemini::trail::{Step, Trail};
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini::{
    ClassifyGeminiError, ClassifyGeminiErrorLayer, CollectRequest, CollectRequestLayer,
    FinalImageExtractLayer, SingleAttempt, SingleAttemptLayer, ThoughtSignatures,
    ThoughtSignaturesLayer, compose,
};
use tower_gemini_sim::{Fault, ImageOptions, Latency, Shape, Sim};

use crate::harness::{cases, in_paused_time};

const DEVELOPER: &str = "/v1beta/models/gemini-3-pro-image";
const VERTEX: &str =
    "/v1/projects/p/locations/global/publishers/google/models/gemini-3.1-flash-image";

fn post(path: &str, verb: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(format!("https://gemini.example{path}:{verb}"))
        .header("x-goog-api-key", "a-key")
        .header("x-sim-call", "turn")
        .header("content-length", body.to_string().len())
        .body(Full::from(body.to_string()))
        .unwrap()
}

fn first_turn() -> Value {
    json!({ "contents": [{ "role": "user", "parts": [{ "text": "a cat" }] }] })
}

/// The model's parts in an answer, however it was framed.
fn parts_of(answer: &[u8]) -> Vec<Value> {
    let chunks: Vec<Value> = match answer.first() {
        Some(b'{') => vec![serde_json::from_slice(answer).unwrap()],
        Some(b'[') => serde_json::from_slice(answer).unwrap(),
        _ => String::from_utf8_lossy(answer)
            .lines()
            .filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data: ")?).unwrap()))
            .collect(),
    };
    let mut parts = Vec::new();
    for chunk in &chunks {
        let found = chunk["candidates"][0]["content"]["parts"].as_array();
        parts.extend(
            found
                .into_iter()
                .flatten()
                .filter(|part| part.as_object().is_some_and(|part| !part.is_empty()))
                .cloned(),
        );
    }
    parts
}

fn second_turn(parts: &[Value]) -> Value {
    json!({ "contents": [
        { "role": "user", "parts": [{ "text": "a cat" }] },
        { "role": "model", "parts": parts },
        { "role": "user", "parts": [{ "text": "with a hat" }] },
    ] })
}

/// The model's turn as a client keeps it that has no place for signatures, images perhaps in the
/// other alphabet.
fn forgetful(parts: &[Value], url_safe: bool) -> Vec<Value> {
    parts
        .iter()
        .cloned()
        .map(|mut part| {
            let fields = part.as_object_mut().unwrap();
            fields.remove("thoughtSignature");
            fields.remove("thought_signature");
            for name in ["inlineData", "inline_data"] {
                if let Some(data) = fields
                    .get_mut(name)
                    .and_then(|inline| inline.get_mut("data"))
                    .filter(|_| url_safe)
                {
                    *data = URL_SAFE_NO_PAD
                        .encode(STANDARD.decode(data.as_str().unwrap()).unwrap())
                        .into();
                }
            }
            part
        })
        .collect()
}

fn image_signatures(parts: &[Value]) -> Vec<Value> {
    let is_image = |part: &&Value| part.get("inlineData").or(part.get("inline_data")).is_some();
    parts
        .iter()
        .filter(is_image)
        .map(|part| {
            part.get("thoughtSignature")
                .or(part.get("thought_signature"))
                .cloned()
                .unwrap_or_default()
        })
        .collect()
}

/// The simulator, with every body that reached it.
#[derive(Clone)]
struct Sent {
    inner: tower_gemini_sim::SimService,
    bodies: std::sync::Arc<std::sync::Mutex<Vec<Bytes>>>,
}

impl Service<Request<tower_gemini::body::WireBody>> for Sent {
    type Response = http::Response<tower_gemini_sim::SimBody>;
    type Error = tower_gemini_sim::SimError;
    type Future = tower_gemini_sim::SimFuture;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tower_gemini::body::WireBody>) -> Self::Future {
        let body = Bytes::from(request.body().chunks().unwrap().concat());
        if let Some(length) = request.headers().get("content-length") {
            assert_eq!(
                length.to_str().unwrap(),
                body.len().to_string(),
                "a stale length truncates"
            );
        }
        self.bodies.lock().unwrap().push(body);
        self.inner.call(request)
    }
}

/// The layer over a client, each call sent once.
fn signing<S: WireClient>(
    layer: ThoughtSignaturesLayer,
    client: S,
) -> CollectRequest<ThoughtSignatures<SingleAttempt<ClassifyGeminiError<S>>>> {
    let single = SingleAttemptLayer::new();
    compose((CollectRequestLayer::new(), layer, single, ClassifyGeminiErrorLayer::new()), client)
}

fn sent(sim: &Sim) -> Sent {
    Sent { inner: sim.service(), bodies: std::sync::Arc::default() }
}

fn sim(seed: u64, shape: Shape, signature_bytes: Option<usize>) -> Sim {
    let images = ImageOptions { signature_bytes, shape, ..ImageOptions::tiny() };
    Sim::builder().seed(seed).latency(Latency::none()).images(images).build()
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_signature_that_was_seen_comes_back_byte_for_byte_and_is_accepted(
        seed in any::<u64>(),
        verb in prop::sample::select(vec!["generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"]),
        path in prop::sample::select(vec![DEVELOPER, VERTEX]),
        unmarked_drafts in 0_u8..4,
        (snake_case, text, text_last, url_safe) in any::<(bool, bool, bool, bool)>(),
        signature_bytes in 8_usize..3_000,
    ) {
        // Drafts as ordinary parts, each with a signature of its own, as resellers send them.
        let shape = Shape { drafts_marked: false, snake_case, text, text_last, ..Shape::with_drafts(unmarked_drafts) };
        in_paused_time(async {
            let sim = sim(seed, shape, Some(signature_bytes));
            let sent = sent(&sim);
            let layer = ThoughtSignaturesLayer::new();
            let gemini = signing(layer.clone(), sent.clone());
            let answer = gemini.clone().oneshot(post(path, verb, &first_turn())).await.unwrap();
            let answer = answer.into_body().collect().await.unwrap().to_bytes();
            let parts = parts_of(&answer);

            let trail = Trail::new();
            let mut request = post(path, "generateContent", &second_turn(&forgetful(&parts, url_safe)));
            request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
            let status = gemini.oneshot(request).await.unwrap().status();
            prop_assert_eq!(status, 200);
            let body: Value = serde_json::from_slice(sent.bodies.lock().unwrap().last().unwrap()).unwrap();
            let restored = image_signatures(body["contents"][1]["parts"].as_array().unwrap());
            prop_assert_eq!(restored, image_signatures(&parts));
            let is_signed = matches!(trail.steps()[0], Step::Signed { restored, placeholders: 0 } if restored > 0);
            prop_assert!(is_signed);
            Ok(())
        })?;
    }
}

#[test]
fn the_image_taken_out_is_known_again_too() {
    in_paused_time(async {
        let sim = sim(4, Shape::DOCUMENTED, None);
        let layer = ThoughtSignaturesLayer::new();
        let images = compose(
            (
                CollectRequestLayer::new(),
                FinalImageExtractLayer::new(),
                layer.clone(),
                SingleAttemptLayer::new(),
                ClassifyGeminiErrorLayer::new(),
            ),
            sim.service(),
        );
        let image = images
            .clone()
            .oneshot(post(DEVELOPER, "generateContent", &first_turn()))
            .await
            .unwrap()
            .into_body();
        assert!(layer.remembered().0 > 0);
        // The caller has kept the picture's file and nothing else.
        let part = json!({ "inlineData": { "mimeType": image.mime, "data": STANDARD.encode(&image.bytes) } });
        let edited = images
            .oneshot(post(DEVELOPER, "generateContent", &second_turn(&[part])))
            .await
            .unwrap();
        assert_eq!(edited.status(), 200);
    });
}

#[test]
fn what_is_refused_here_is_refused_there_in_the_same_words() {
    in_paused_time(async {
        let body = second_turn(&[
            json!({ "inlineData": { "mimeType": "image/png", "data": "AAAA" }, "thoughtSignature": PLACEHOLDER }),
            json!({ "inlineData": { "mimeType": "image/png", "data": "BBBB" } }),
        ]);
        let sim = sim(1, Shape::DOCUMENTED, None);
        let gemini = |layer: ThoughtSignaturesLayer| signing(layer.clone(), sim.service());
        let here = gemini(ThoughtSignaturesLayer::new())
            .oneshot(post(DEVELOPER, "generateContent", &body))
            .await
            .unwrap();
        assert_eq!(sim.requests(), 0, "nothing was sent");
        let verdict = here.body().verdict().clone();
        assert_eq!(
            (here.status().as_u16(), verdict.outcome(), verdict.charge()),
            (400, Outcome::MissingThoughtSignature, Charge::None)
        );
        assert!(!verdict.is_retryable() && !verdict.another_model_helps());

        let there = gemini(ThoughtSignaturesLayer::new().missing(Missing::Send));
        let there = there.oneshot(post(DEVELOPER, "generateContent", &body)).await.unwrap();
        assert_eq!(there.status(), 400);
        assert_eq!(there.body().verdict().outcome(), Outcome::MissingThoughtSignature);
        assert!(verdict.message().unwrap().starts_with(there.body().verdict().message().unwrap()));
        assert!(verdict.message().unwrap().contains("content position 2, part position 2"));

        let placed = gemini(ThoughtSignaturesLayer::new().missing(Missing::Placeholder));
        let placed = placed.oneshot(post(DEVELOPER, "generateContent", &body)).await.unwrap();
        assert_eq!(placed.status(), 200);
    });
}

#[test]
fn a_signature_of_one_backend_is_never_given_to_the_other() {
    in_paused_time(async {
        let sim = sim(2, Shape::DOCUMENTED, None);
        let sent = sent(&sim);
        let layer = ThoughtSignaturesLayer::new().missing(Missing::Send);
        let gemini = signing(layer.clone(), sent.clone());
        let answer = gemini
            .clone()
            .oneshot(post(DEVELOPER, "generateContent", &first_turn()))
            .await
            .unwrap();
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        let finals: Vec<_> =
            parts_of(&answer).into_iter().filter(|part| part["thought"] != true).collect();
        let turn = second_turn(&forgetful(&finals, false));
        gemini.oneshot(post(VERTEX, "generateContent", &turn)).await.unwrap();
        let last = sent.bodies.lock().unwrap().last().unwrap().clone();
        assert_eq!(last, turn.to_string(), "sent as it was, byte for byte");
    });
}

#[test]
fn of_an_answer_that_broke_off_nothing_is_remembered() {
    in_paused_time(async {
        let sim = sim(3, Shape::DOCUMENTED, None);
        sim.push_script([Fault::TruncatedBody { at: 700 }]);
        let layer = ThoughtSignaturesLayer::new();
        let gemini = signing(layer.clone(), sim.service());
        if let Ok(answer) = gemini.oneshot(post(DEVELOPER, "generateContent", &first_turn())).await
        {
            let _ = answer.into_body().collect().await;
        }
        assert_eq!(layer.remembered(), (0, 0));
    });
}

// A restart forgot every signature, and the next turn of each conversation was refused.
#[test]
fn signatures_that_were_saved_are_restored_in_another_process() {
    in_paused_time(async {
        let path = std::env::temp_dir().join(format!("signatures-{}", std::process::id()));
        let sim = sim(9, Shape::DOCUMENTED, None);
        let before = ThoughtSignaturesLayer::new();
        let answer = signing(before.clone(), sim.service())
            .oneshot(post(DEVELOPER, "generateContent", &first_turn()))
            .await
            .unwrap();
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        before.save_to(&path).unwrap();

        let after = ThoughtSignaturesLayer::new().load_from(&path).unwrap();
        assert_eq!(after.remembered(), before.remembered());
        let turn = second_turn(&forgetful(&parts_of(&answer), false));
        let gemini = signing(after, sim.service());
        let status = gemini.oneshot(post(DEVELOPER, "generateContent", &turn)).await.unwrap();
        assert_eq!(status.status(), 200);

        std::fs::write(&path, "something else\n").unwrap();
        let error = ThoughtSignaturesLayer::new().load_from(&path).unwrap_err().to_string();
        assert!(error.starts_with("line 1 of the signatures file cannot be read"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(ThoughtSignaturesLayer::new().load_from(&path).unwrap().remembered(), (0, 0));
    });
}

#[test]
fn a_refusal_for_a_missing_signature_is_in_the_trail() {
    in_paused_time(async {
        let body =
            second_turn(&[json!({ "inlineData": { "mimeType": "image/png", "data": "AAAA" } })]);
        let trail = Trail::new();
        let mut request = post(DEVELOPER, "generateContent", &body);
        request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
        let sim = sim(1, Shape::DOCUMENTED, None);
        signing(ThoughtSignaturesLayer::new(), sim.service()).oneshot(request).await.unwrap();
        assert_eq!(trail.to_string(), "stopped: a thought signature is missing");
    });
}
