//! Every shape in which a response can hold images, through everything that looks for images.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::{ServiceExt, service_fn};
use tower_gemini::scan::{Answer, Framing, Scanner, StreamStripper};
use tower_gemini::{FinalImage, GeminiStack};
use tower_gemini_gateway::explain;
use tower_gemini_openai::{Endpoint, ResponseTranslator, to_gemini};

use crate::harness::in_paused_time;

/// Base64 of `one`, `two` and `three`.
const ONE: &str = "b25l";
const TWO: &str = "dHdv";
const THREE: &str = "dGhyZWU=";
const MODEL: &str = "gemini-3-pro-image";

/// A response, and what is in it: the bytes of images, or addresses.
struct Shape {
    body: Value,
    images: &'static [&'static str],
    addresses: &'static [&'static str],
}

fn parts(parts: Value) -> Value {
    let content = json!({ "role": "model", "parts": parts });
    json!({ "candidates": [{ "content": content, "finishReason": "STOP" }], "modelVersion": MODEL })
}

fn image(data: &str) -> Value {
    json!({ "inlineData": { "mimeType": "image/png", "data": data } })
}

fn message(message: Value) -> Value {
    let choice = json!({ "message": message, "finish_reason": "stop" });
    json!({ "object": "chat.completion", "choices": [choice] })
}

fn shapes() -> Vec<Shape> {
    let uri = format!("data:image/png;base64,{ONE}");
    let shown = format!("Here: ![it]({uri}) and more");
    let link = json!([{ "type": "image_url", "image_url": { "url": uri } }]);
    let snake = json!({ "inline_data": { "mime_type": "image/png", "data": ONE } });
    let one = [
        parts(json!([image(ONE)])),
        parts(json!([snake])),
        parts(json!([image(&uri)])),
        parts(json!([{ "text": shown }])),
        parts(json!([{ "text": format!("![]({uri}") }])),
        parts(json!([{ "text": uri }])),
        parts(json!([image(TWO), { "text": format!("![]({uri})") }])),
        json!({ "response": parts(json!([image(ONE)])) }),
        json!({ "response": parts(json!([{ "text": shown }])) }),
        json!({ "result": message(json!({ "content": uri })) }),
        message(json!({ "content": uri })),
        message(json!({ "content": shown })),
        message(json!({ "content": link })),
        message(json!({ "content": [{ "type": "text", "text": shown }] })),
        message(json!({ "content": "Here", "images": link })),
        message(json!({ "content": null, "images": [{ "image_url": uri }] })),
        message(json!({ "content": "Here", "multi_mod_content": [{ "text": "Here" }, snake] })),
        json!({ "created": 1, "data": [{ "b64_json": ONE }] }),
        json!({ "created": 1, "data": [{ "b64_json": uri }] }),
        json!({ "created": 1, "data": [{ "url": uri }] }),
        json!({ "status": "completed", "output": [{ "type": "message",
            "content": [{ "type": "output_text", "text": shown }] }] }),
        json!({ "status": "completed",
            "output": [{ "type": "image_generation_call", "result": ONE }] }),
        json!({ "object": "interaction", "status": "completed",
            "outputs": [{ "type": "image", "mime_type": "image/png", "data": ONE }] }),
        json!({ "predictions": [{ "mimeType": "image/png", "bytesBase64Encoded": ONE }] }),
        json!({ "generatedImages": [{ "image": { "imageBytes": ONE } }] }),
    ];
    let two = [
        json!({ "created": 1, "data": [{ "b64_json": ONE }, { "b64_json": TWO }] }),
        json!({ "predictions": [{ "bytesBase64Encoded": ONE }, { "bytesBase64Encoded": TWO }] }),
    ];
    let file = json!({ "fileData": { "mimeType": "image/png", "fileUri": "https://h/1.png" } });
    let address = "https://h/1.png";
    let addressed = [
        parts(json!([file])),
        parts(json!([{ "text": "![it](https://h/1.png)" }])),
        json!({ "created": 1, "data": [{ "url": address }] }),
        message(json!({ "content": "![it](https://h/1.png)" })),
        message(json!({ "images": [{ "image_url": { "url": address } }] })),
        json!({ "object": "interaction", "status": "completed",
            "outputs": [{ "type": "image", "uri": address }] }),
        json!({ "predictions": [{ "gcsUri": address }] }),
    ];
    let with = |images, addresses| move |body| Shape { body, images, addresses };
    let one = one.into_iter().map(with(&["one"], &[]));
    let two = two.into_iter().map(with(&["one", "two"], &[]));
    let both = Shape {
        body: parts(json!([image(ONE), file])),
        images: &["one"],
        addresses: &["https://h/1.png"],
    };
    let interleaved =
        Shape { body: parts(interleaved()), images: &["one", "two", "three"], addresses: &[] };
    let addressed = addressed.into_iter().map(with(&[], &["https://h/1.png"]));
    one.chain(two).chain(addressed).chain([both, interleaved]).collect()
}

fn interleaved() -> Value {
    let text = json!({ "text": "and then" });
    json!([text, image(ONE), text, image(TWO), text, image(THREE)])
}

/// The images and addresses that core finds.
fn found(framing: Framing, body: &[u8]) -> (Vec<String>, Vec<String>) {
    found_by(Scanner::decoding(framing), body)
}

/// The images and addresses that a translation holds, of which none are drafts.
fn delivered(framing: Framing, body: &[u8]) -> (Vec<String>, Vec<String>) {
    found_by(Scanner::decoding(framing).unmarked_drafts(false), body)
}

fn found_by(mut scanner: Scanner, body: &[u8]) -> (Vec<String>, Vec<String>) {
    scanner.feed(body).unwrap();
    let Answer { image, earlier_images, image_urls, .. } = scanner.finish().unwrap();
    let images = earlier_images.into_iter().chain(image);
    (images.map(|image| String::from_utf8(image.bytes.to_vec()).unwrap()).collect(), image_urls)
}

fn in_image(image: &FinalImage) -> (Vec<String>, Vec<String>) {
    let bytes = std::iter::once(&image.bytes).chain(image.others.iter().map(|it| &it.bytes));
    let bytes = bytes.filter(|bytes| !bytes.is_empty());
    let images = bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    (images.collect(), image.url.iter().chain(&image.other_urls).cloned().collect())
}

fn translator(endpoint: Endpoint) -> ResponseTranslator {
    let request = match endpoint {
        Endpoint::ChatCompletions => {
            json!({ "model": MODEL, "messages": [{ "role": "user", "content": "x" }] })
        }
        _ => json!({ "model": MODEL, "prompt": "x" }),
    };
    to_gemini(endpoint, &HeaderMap::new(), &Bytes::from(request.to_string())).unwrap().translator
}

fn streamed(body: &[u8]) -> Vec<u8> {
    let mut stream = translator(Endpoint::ChatCompletions).stream(1);
    let mut events = Vec::new();
    for chunk in body.chunks(7) {
        events.extend(stream.push(&Bytes::copy_from_slice(chunk)));
    }
    events.extend(stream.finish());
    events.concat()
}

/// Through a stack, as `FinalImage` and as JSON.
fn through_stacks(verb: &str, kind: &'static str, body: &Bytes) -> (FinalImage, Bytes) {
    let body = body.clone();
    let server = service_fn(move |_: Request<_>| {
        let response = Response::builder().header("content-type", kind);
        let response = response.body(Full::<Bytes>::from(body.clone())).unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let request = || {
        Request::post(format!("https://gemini.example/v1beta/models/{MODEL}:{verb}"))
            .body(Full::<Bytes>::from(r#"{"contents":[{"parts":[{"text":"x"}]}]}"#))
            .unwrap()
    };
    in_paused_time(async {
        let image = GeminiStack::new().images(server.clone()).oneshot(request()).await;
        let json = GeminiStack::new().json(server).oneshot(request()).await.unwrap();
        let json = json.into_body().collect().await.unwrap().to_bytes();
        (image.unwrap_or_else(|error| panic!("{error}")).into_body(), json)
    })
}

#[test]
fn every_finder_finds_the_same_images_in_every_shape() {
    let mut wrong = Vec::new();
    for Shape { body, images, addresses } in shapes() {
        let strings = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let expected = (strings(images), strings(addresses));
        let text = Bytes::from(body.to_string());
        let mut check = |finder: &str, found: (Vec<String>, Vec<String>)| {
            if found != expected {
                wrong.push(format!("{finder}: {found:?} in {body}"));
            }
        };
        check("core", found(Framing::Whole, &text));
        match FinalImage::from_json(&text) {
            Ok(image) => check("from_json", in_image(&image)),
            Err(error) => check(&error.to_string(), Default::default()),
        }
        for endpoint in [Endpoint::ChatCompletions, Endpoint::ImageGenerations] {
            let (_, translated) = translator(endpoint).response(StatusCode::OK, &text, 1);
            check(&format!("{endpoint:?}"), delivered(Framing::Whole, &translated));
        }
        let event = format!("data: {body}\n\n");
        check("chat stream", delivered(Framing::Sse, &streamed(event.as_bytes())));

        let (image, json) = through_stacks("generateContent", "application/json", &text);
        check("images", in_image(&image));
        // Nothing but drafts is left out.
        if image.drafts == 0 && json != text {
            check(&format!("json changed: {json:?}"), Default::default());
        }
        check("json", found(Framing::Whole, &json));

        let kind = explained(&body.to_string());
        if kind != "success" {
            check(&format!("explain says {kind}"), Default::default());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn explained(body: &str) -> Value {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let line = json!({ "http_status": 200, "body": body }).to_string();
    explain::app(&["--jsonl".to_owned()], &mut line.as_bytes(), &mut out, &mut errors);
    serde_json::from_slice::<Value>(&out).unwrap()["kind"].clone()
}

#[test]
fn interleaved_images_arrive_byte_for_byte_in_every_dialect() {
    let expected = (["one", "two", "three"].map(str::to_owned).to_vec(), Vec::new());
    let whole = parts(interleaved()).to_string();
    let events = interleaved().as_array().unwrap().to_vec();
    let last = events.len() - 1;
    let event = |(n, part): (usize, &Value)| {
        let mut event = parts(json!([part]));
        if n < last {
            event["candidates"][0].as_object_mut().unwrap().remove("finishReason");
        }
        event.to_string()
    };
    let events: Vec<_> = events.iter().enumerate().map(event).collect();
    let sse: String = events.iter().map(|event| format!("data: {event}\r\n\r\n")).collect();
    let array = format!("[{}]", events.join("\n,\r\n"));
    for (verb, framing, kind, body) in [
        ("generateContent", Framing::Whole, "application/json", whole),
        ("streamGenerateContent?alt=sse", Framing::Sse, "text/event-stream", sse),
        ("streamGenerateContent", Framing::JsonArray, "application/json", array),
    ] {
        let text = Bytes::from(body.clone());
        assert_eq!(found(framing, &text), expected, "{verb}");
        assert_eq!(explained(&body), "success", "{verb}");
        let (image, json) = through_stacks(verb, kind, &text);
        assert_eq!((in_image(&image), json), (expected.clone(), text.clone()), "{verb}");
        let mut stripper = StreamStripper::new(framing);
        let passed: Vec<_> =
            stripper.push(text.clone()).into_iter().chain(stripper.finish()).collect();
        assert_eq!(passed.concat(), text, "{verb}");
        if framing != Framing::Sse {
            assert_eq!(in_image(&FinalImage::from_json(&text).unwrap()), expected, "{verb}");
            for endpoint in [Endpoint::ChatCompletions, Endpoint::ImageGenerations] {
                let (_, translated) = translator(endpoint).response(StatusCode::OK, &text, 1);
                assert_eq!(delivered(Framing::Whole, &translated), expected, "{verb}");
            }
        }
        if framing != Framing::Whole {
            assert_eq!(delivered(Framing::Sse, &streamed(&text)), expected, "{verb}");
        }
    }
}

#[test]
fn an_image_in_a_text_is_found_however_deltas_cut_it() {
    let text = format!("Here: ![it](data:image/png;base64,{THREE}) and more");
    let expected = (vec!["three".to_owned()], Vec::new());
    for cut in 0..text.len() {
        let event = |delta: &str, end: Value| {
            let delta = json!({ "index": 0, "delta": { "content": delta }, "finish_reason": end });
            format!("data: {}\n\n", json!({ "choices": [delta] }))
        };
        let body = event(&text[..cut], Value::Null) + &event(&text[cut..], json!("stop"));
        let body = Bytes::from(body + "data: [DONE]\n\n");
        assert_eq!(found(Framing::Sse, &body), expected, "{body:?}");
        assert_eq!(delivered(Framing::Sse, &streamed(&body)), expected, "{body:?}");
        if cut % 8 == 0 {
            let verb = "streamGenerateContent?alt=sse";
            let (image, json) = through_stacks(verb, "text/event-stream", &body);
            assert_eq!((in_image(&image), json), (expected.clone(), body.clone()));
            assert_eq!(explained(std::str::from_utf8(&body).unwrap()), "success");
        }
    }
}

// It was paid for, although the stream broke behind it.
#[test]
fn an_image_in_another_shape_is_sent_before_the_error_of_a_broken_stream() {
    let delta = json!({ "delta": { "content": format!("![](data:image/png;base64,{ONE}) and") } });
    let event = format!("data: {}\n\n", json!({ "choices": [delta] }));
    let mut stream = translator(Endpoint::ChatCompletions).stream(1);
    let mut events = stream.push(&Bytes::from(event));
    events.extend(stream.fail(StatusCode::BAD_GATEWAY, "cut"));
    let sent = String::from_utf8(events.concat()).unwrap();
    assert!(sent.find(ONE) < sent.find("\"error\"") && sent.contains(ONE), "{sent}");
}
