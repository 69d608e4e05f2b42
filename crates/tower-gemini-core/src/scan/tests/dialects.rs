//! The shapes that are not Gemini's.

use super::*;

#[test]
fn imagen_predictions() {
    let answer = whole(format!(
        r#"{{"predictions":[{{"mimeType":"image/png","bytesBase64Encoded":"{DRAFT}"}},{{"bytesBase64Encoded":"{FINAL}","mimeType":"image/png"}}]}}"#
    ));
    assert_eq!((image(&answer), answer.images, answer.has_candidates), (&b"final"[..], 2, true));
    let filtered = whole(
        r#"{"predictions":[{"raiFilteredReason":"You will not be charged for blocked images."}]}"#,
    );
    assert_eq!(
        filtered.rai_filtered_reason.as_deref(),
        Some("You will not be charged for blocked images.")
    );
    assert_eq!(filtered.images, 0);
}

#[test]
fn images_beside_a_chat_message() {
    let entry = |data: &str| {
        format!(
            r#"{{"type":"image_url","index":0,"image_url":{{"url":"data:image/jpeg;base64,{data}"}}}}"#
        )
    };
    for place in ["message", "delta"] {
        let answer = whole(format!(
            r#"{{"id":"x","model":"m","choices":[{{"{place}":{{"role":"assistant","content":"Here.","images":[{},{}]}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":3,"completion_tokens":"4","total_tokens":7.0,"completion_tokens_details":{{"reasoning_tokens":2,"image_tokens":1290}}}}}}"#,
            entry(DRAFT),
            entry(FINAL)
        ));
        assert_eq!((image(&answer), answer.images, &*answer.text), (&b"final"[..], 2, "Here."));
        assert_eq!(answer.image.as_ref().unwrap().mime, "image/jpeg");
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        let usage = answer.usage.unwrap();
        assert_eq!(
            (usage.prompt, usage.candidates, usage.total, usage.thoughts, usage.image_tokens()),
            (3, 4, 7, 2, 1290)
        );
    }
    let hosted = whole(
        r#"{"choices":[{"message":{"images":[{"image_url":{"url":"https://x.test/a.png"}}],"content":null}}]}"#,
    );
    assert_eq!((hosted.image_urls, hosted.images), (vec!["https://x.test/a.png".to_owned()], 0));
}

#[test]
fn images_within_a_chat_message() {
    let parts = whole(format!(
        r#"{{"choices":[{{"message":{{"content":[{{"type":"text","text":"A"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{FINAL}"}}}}]}}}}]}}"#
    ));
    assert_eq!((image(&parts), parts.text.as_str()), (&b"final"[..], "A"));
    let table: &[(&str, &[u8], &str, &[&str])] = &[
        ("Look: ![cat](data:image/png;base64,ZmluYWw=) so!", b"final", "Look: cat so!", &[]),
        ("![](data:image/png;base64,ZmluYWw= \\\"title\\\")", b"final", "", &[]),
        (
            "![a](data:image/png;base64,ZHJhZnQ=)![b](data:image/png;base64,ZmluYWw=)",
            b"final",
            "ab",
            &[],
        ),
        ("data:image/png;base64,ZmluYWw=", b"final", "", &[]),
        ("![cat](https://x.test/cat.png)", b"no image", "cat", &["https://x.test/cat.png"]),
        (
            "![cat](https://x.test/cat.png \\\"a cat\\\") ö",
            b"no image",
            "cat ö",
            &["https://x.test/cat.png"],
        ),
        (
            "Write ![](data:image/png;base64,...) in Markdown!",
            b"no image",
            "Write  in Markdown!",
            &[],
        ),
        ("data: none", b"no image", "data: none", &[]),
        ("dat", b"no image", "dat", &[]),
        ("Hi![1] there! [x](y)!", b"no image", "Hi1 there! [x](y)!", &[]),
    ];
    for (content, bytes, text, urls) in table {
        let answer = whole(format!(r#"{{"choices":[{{"message":{{"content":"{content}"}}}}]}}"#));
        assert_eq!((image(&answer), &*answer.text), (*bytes, *text), "{content}");
        assert_eq!(answer.image_urls, *urls, "{content}");
    }
}

#[test]
fn the_images_api() {
    let answer = whole(format!(
        r#"{{"created":1,"data":[{{"b64_json":"{DRAFT}","revised_prompt":"x"}},{{"b64_json":"{FINAL}"}}],"usage":{{"input_tokens":1,"output_tokens":2,"total_tokens":3}}}}"#
    ));
    assert_eq!(
        (image(&answer), answer.images, answer.usage.as_ref().unwrap().candidates),
        (&b"final"[..], 2, 2)
    );
    let hosted = whole(r#"{"data":[{"url":"https://x.test/a.png"}]}"#);
    assert_eq!((hosted.image_urls.len(), hosted.has_candidates), (1, true));
    let empty = whole(r#"{"data":[]}"#);
    assert!(empty.has_candidates && empty.images == 0);
    let embedded = whole(format!(
        r#"{{"data":[{{"url":"data:image/webp;base64,{FINAL}","b64_json":null}}]}}"#
    ));
    assert_eq!(
        (image(&embedded), &*embedded.image.as_ref().unwrap().mime),
        (&b"final"[..], "image/webp")
    );
}

#[test]
fn image_events_with_drafts() {
    for completed in [
        format!(r#"{{"type":"image_generation.completed","b64_json":"{FINAL}"}}"#),
        format!(r#"{{"b64_json":"{FINAL}","type":"image_generation.completed"}}"#),
    ] {
        for partial in [
            format!(
                r#"{{"type":"image_generation.partial_image","partial_image_index":0,"b64_json":"{DRAFT}"}}"#
            ),
            format!(r#"{{"b64_json":"{DRAFT}","type":"image_generation.partial_image"}}"#),
        ] {
            let answer =
                sse(format!("data: {partial}\n\ndata: {completed}\n\ndata: {partial}\n\n"));
            assert_eq!(
                (image(&answer), answer.thought_images, answer.said_end),
                (&b"final"[..], 2, true)
            );
        }
    }
}

#[test]
fn interactions() {
    let draft = format!(r#"{{"type":"image","data":"{DRAFT}","mime_type":"image/png"}}"#);
    let last = format!(r#"{{"data":"{FINAL}","type":"image","mime_type":"image/png"}}"#);
    for body in [
        format!(
            r#"{{"outputs":[{{"type":"thought","summary":[{draft}]}},{{"type":"text","text":"A"}},{last}],"status":"completed"}}"#
        ),
        format!(
            r#"{{"steps":[{{"summary":[{draft},{draft}],"type":"thought"}},{{"type":"model_output","content":[{{"type":"text","text":"A"}},{last}]}}],"status":"completed"}}"#
        ),
        format!(
            r#"{{"steps":[{{"content":[{{"text":"A","type":"text"}},{last}],"type":"model_output"}},{{"content":[{draft}],"type":"thought"}}],"status":"completed"}}"#
        ),
    ] {
        let answer = whole(&body);
        assert_eq!((image(&answer), &*answer.text), (&b"final"[..], "A"), "{body}");
        assert_eq!(answer.finish_reason.as_deref(), Some("completed"));
        assert_eq!(answer.images - answer.thought_images, 1);
    }
    let failed = whole(
        r#"{"object":"interaction","status":"failed","errors":[{"code":"image_safety","message":"no"}]}"#,
    );
    assert_eq!(failed.finish_reason.as_deref(), Some("image_safety"));

    let stream = sse(format!(
        "event: interaction.created\ndata: {{\"interaction\":{{\"id\":\"v1\",\"status\":\"in_progress\",\"object\":\"interaction\"}},\"event_type\":\"interaction.created\"}}\n\n\
         event: step.delta\ndata: {{\"index\":0,\"delta\":{{\"type\":\"thought_summary\",\"content\":{draft}}},\"event_type\":\"step.delta\"}}\n\n\
         event: step.delta\ndata: {{\"index\":1,\"delta\":{last},\"event_type\":\"step.delta\"}}\n\n\
         event: interaction.completed\ndata: {{\"interaction\":{{\"id\":\"v1\",\"status\":\"completed\",\"usage\":{{\"total_input_tokens\":5,\"total_tokens\":9}}}},\"event_type\":\"interaction.completed\"}}\n\n"
    ));
    assert_eq!((image(&stream), stream.images, stream.thought_images), (&b"final"[..], 2, 1));
    assert_eq!((stream.finish_reason.as_deref(), stream.said_end), (Some("completed"), true));
    assert_eq!(stream.usage.unwrap().total, 9);

    let error = sse(
        "event: error\ndata: {\"event_type\":\"error\",\"error\":{\"code\":\"rate_limit_exceeded\"}}\n\n",
    );
    assert_eq!(error.error.unwrap(), r#"{"error":{"code":"rate_limit_exceeded"}}"#);
}

/// What a stream can be resumed by is known as soon as it was read, however it is cut.
#[test]
fn the_id_and_the_last_event_of_an_interaction_are_known_at_every_byte() {
    let events = [
        r#"{"event_type":"interaction.created","interaction":{"id":"v1_a","status":"in_progress"},"event_id":"e1"}"#,
        r#"{"event_id":"e2","event_type":"interaction.status_update","interaction_id":"v1_a","status":"completed"}"#,
        r#"{"event_id":"e3","event_type":"interaction.completed","interaction":{"id":"v1_a","status":"completed"}}"#,
    ];
    let (mut stream, mut ends) = (String::new(), Vec::new());
    for event in events {
        stream.push_str(&format!("data: {event}"));
        ends.push(stream.len());
        stream.push_str("\n\n");
    }
    let read = stream.find("v1_a\"").unwrap() + "v1_a\"".len();
    for cut in 0..=stream.len() {
        let mut scanner = Scanner::judging(Framing::Sse);
        scanner.feed(&stream.as_bytes()[..cut]).unwrap();
        assert_eq!(scanner.response_id(), (cut >= read).then_some("v1_a"), "{cut}");
        let complete = ends.iter().filter(|&&end| end <= cut).count();
        let last = (complete > 0).then(|| format!("e{complete}"));
        assert_eq!(scanner.event_id(), last.as_deref(), "{cut}");
        assert_eq!(scanner.has_closed(), complete == 3, "a status alone ends nothing: {cut}");
        let answer = scanner.finish().unwrap_or_else(|failure| *failure.found);
        assert_eq!(answer.response_id.as_deref(), (cut >= read).then_some("v1_a"), "{cut}");
        assert_eq!(answer.event_id, last, "{cut}");
    }
}

#[test]
fn a_wrapped_answer_is_an_answer() {
    let answer = whole(format!(r#"{{"response":{},"traceId":"x"}}"#, parts(&part(FINAL, ""))));
    assert_eq!((image(&answer), answer.finish_reason.as_deref()), (&b"final"[..], Some("STOP")));
}

/// Found by fuzzing: an image in a text was kept or lost depending on the chunk that a fault behind
/// it came in.
#[test]
fn an_image_before_a_fault_in_the_same_text_is_found_however_the_bytes_are_cut() {
    let head = r#"{"choices":[{"message":{"content":"![x](data:image/png;base64,ZmluYWw=) "#;
    for fault in ["\n", "\\x", "\u{1}\"}"] {
        let failure = scan(Framing::Whole, format!("{head}{fault}")).unwrap_err();
        assert_eq!(image(&failure.found), b"final", "{fault:?}");
    }
}
