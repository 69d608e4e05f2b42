//! Events, arrays of chunks, JSON lines, and what goes wrong in the middle of them.

use super::*;

fn event(data: &str, rest: &str) -> String {
    format!(r#"{{"candidates":[{{"content":{{"parts":[{}]}}{rest}}}]}}"#, part(data, ""))
}

#[test]
fn every_line_end_and_spelling_of_a_field_is_read() {
    let (first, last) = (event(DRAFT, ""), event(FINAL, r#","finishReason":"STOP""#));
    for end in ["\n", "\r\n", "\r"] {
        for field in ["data: ", "data:"] {
            let body = format!(
                ": hello{end}{end}event: x{end}id: 1{end}{field}{first}{end}{end}retry: 5{end}{field}{last}{end}{end}"
            );
            let answer = sse(&body);
            assert_eq!((image(&answer), answer.images, answer.said_end), (&b"final"[..], 2, true));
        }
    }
}

#[test]
fn an_event_may_have_many_lines_or_lack_the_blank_one() {
    let pretty = event(FINAL, "").replace(",", ",\ndata: ").replace(":[", ":\ndata:[");
    assert_eq!(image(&sse(format!("data: {pretty}\n\n"))), b"final");
    let answer = sse(format!("data: {}\ndata: {}", event(DRAFT, ""), event(FINAL, "")));
    assert_eq!((image(&answer), answer.images), (&b"final"[..], 2));
    assert!(scan(Framing::Sse, "data: {\"a\ndata: b\":1}\n\n").unwrap_err().error.is_malformed());
}

#[test]
fn the_end_of_a_stream_is_known_only_when_said() {
    let chunk = event(FINAL, "");
    let table = [
        (format!("data: {chunk}\n\n"), false),
        (format!("data: {chunk}\n\ndata: [DONE]\n\n"), true),
        (format!("data: {chunk}\n\ndata: [DONE]"), true),
        (format!("data: {chunk}\n\ndata: [DON"), false),
        (format!("data: {}\n\n", event(FINAL, r#","finishReason":"STOP""#)), true),
        ("data: {\"promptFeedback\":{\"blockReason\":\"SAFETY\"}}\n\n".to_owned(), true),
        ("data: {\"error\":{\"code\":503}}\n\n".to_owned(), true),
        (String::new(), false),
        (": ping\n\n".to_owned(), false),
    ];
    for (body, said_end) in table {
        match scan(Framing::Sse, &body) {
            Ok(answer) => assert_eq!(answer.said_end, said_end, "{body}"),
            Err(failure) => {
                assert!(body.ends_with("[DON") && !failure.found.said_end, "{body}: {failure}")
            }
        }
    }
    let array = scan(Framing::JsonArray, format!("[{chunk},\n{chunk}]")).unwrap();
    assert!(!array.said_end && array.images == 2);
    assert!(
        scan(
            Framing::JsonArray,
            format!("[{chunk},\n{}]", event(FINAL, r#","finishReason":"STOP""#))
        )
        .unwrap()
        .said_end
    );
    assert!(whole(format!("[{chunk}]")).said_end);
}

#[test]
fn the_body_decides_its_framing() {
    let chunk = event(FINAL, r#","finishReason":"STOP""#);
    for framing in [Framing::Whole, Framing::Sse, Framing::JsonArray] {
        for body in [
            chunk.clone(),
            format!("[{chunk}]"),
            format!("\n\n data: {chunk}\n\n"),
            format!("event: a\r\ndata: {chunk}"),
        ] {
            let answer = scan(framing, &body).unwrap();
            assert_eq!(
                (image(&answer), answer.said_end),
                (&b"final"[..], true),
                "{framing:?}: {body}"
            );
        }
    }
    let lines = scan(Framing::Sse, format!("{}\n{}\n", event(DRAFT, ""), chunk)).unwrap();
    assert_eq!((image(&lines), lines.images), (&b"final"[..], 2));
    for garbage in ["{} x", "[]]", "[] {}", "{}\nnonsense\n"] {
        assert!(scan(Framing::Sse, garbage).unwrap_err().error.is_malformed(), "{garbage}");
    }
}

#[test]
fn errors_in_the_middle_of_a_stream_are_found() {
    let good = format!("data: {}\n\n", event(FINAL, r#","finishReason":"STOP""#));
    let error = "{\n  \"error\": {\n    \"code\": 503,\n    \"status\": \"UNAVAILABLE\"\n  }\n}";
    let inner = error.trim_start_matches("{\n  \"error\": ").trim_end_matches("\n}");
    let expected = format!(r#"{{"error":{inner}}}"#);
    for tail in [
        error.to_owned(),
        format!("{error}\n"),
        format!("\n{error}\r\n\r\n"),
        format!("[{error}]\n"),
    ] {
        let answer = sse(format!("{good}{tail}"));
        assert_eq!(
            (answer.error.unwrap(), answer.finish_reason.as_deref()),
            (Bytes::from(expected.clone()), Some("STOP"))
        );
        assert!(answer.images == 1 && answer.said_end);
    }
    let lines = error.replace('\n', "\ndata: ");
    assert_eq!(sse(format!("{good}data: {lines}\n\n")).error.unwrap(), expected);
    assert_eq!(
        scan(Framing::JsonArray, format!("[{},{error}]", event(FINAL, ""))).unwrap().error.unwrap(),
        expected
    );
    assert!(sse(format!("{error}\n{good}")).error.is_some());
}

#[test]
fn broken_streams_are_errors_with_what_was_found() {
    let good = format!("data: {}\n\n", event(FINAL, ""));
    for (tail, truncated) in [
        ("{\"error\": bad_json}", false),
        ("{\"error\": {\"code\": 503", true),
        ("data: {\"candidates\": [", true),
        ("data: {\"candidates\": [\n\n", true),
        ("data: {\"candidates\": [\n{\"error\":{}}", false),
        ("data: {} {}\n\n", false),
        ("data: [DONE] x\n\n", false),
        ("data: ping\n\n", false),
    ] {
        let failure = scan(Framing::Sse, format!("{good}{tail}")).unwrap_err();
        assert_eq!(failure.error.is_truncated(), truncated, "{tail}: {failure}");
        assert_eq!(image(&failure.found), b"final");
        assert!(!failure.found.said_end);
    }
}

#[test]
fn fields_of_the_future_are_passed_over() {
    let answer = sse(format!("data: {}\nnote: x\nnonsense\ndatum: y\n\n", event(FINAL, "")));
    assert_eq!(image(&answer), b"final");
}

#[test]
fn the_last_counts_and_texts_add_up() {
    let answer = sse(
        "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}]}}],\"usageMetadata\":{\"promptTokenCount\":5}}\n\n\
         data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"b\"}]},\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"totalTokenCount\":9,\"candidatesTokensDetails\":[{\"modality\":\"IMAGE\",\"tokenCount\":1120}]}}\n\n\
         data: {\"candidates\":[{\"content\":{}}]}\n\n",
    );
    let usage = answer.usage.unwrap();
    assert_eq!(
        (answer.text.as_str(), usage.prompt, usage.total, usage.image_tokens()),
        ("ab", 0, 9, 1120)
    );
    assert_eq!(answer.finish_reason.as_deref(), Some("STOP"));
}

#[test]
fn the_first_event_with_content_is_recognised() {
    let empty = [
        "data: {}\n\n",
        ": ping\n\n",
        "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\"},{}]}}],\"usageMetadata\":{\"promptTokenCount\":5}}\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"interaction\":{\"status\":\"in_progress\"},\"event_type\":\"interaction.created\"}\n\n",
        "data: {\"error\":null}\n\n",
    ];
    let mut scanner = Scanner::judging(Framing::Sse);
    for (i, event) in empty.iter().enumerate() {
        scanner.feed(event.as_bytes()).unwrap();
        assert!(!scanner.has_content(), "{event}");
        assert!(scanner.events_seen() <= i as u64 + 1);
    }
    assert_eq!(scanner.events_seen(), 5);
    for event in [
        "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}",
        "data: {\"candidates\":[{\"content\":{\"parts\":[{\"inlineData\":{\"data\":\"AAAA",
        "data: {\"candidates\":[{\"finishReason\":\"STOP\"}]}",
        "data: {\"promptFeedback\":{\"blockReason\":\"OTHER\"}}",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"",
        "data: {\"error\":{\"code\":1}",
    ] {
        let mut scanner = Scanner::judging(Framing::Sse);
        scanner.feed(empty.concat().as_bytes()).unwrap();
        scanner.feed(event.as_bytes()).unwrap();
        assert!(scanner.has_content(), "{event}");
    }
}

#[test]
fn a_fault_is_repeated() {
    let mut scanner = Scanner::judging(Framing::Whole);
    let first = scanner.feed(b"{]").unwrap_err();
    assert_eq!(scanner.feed(b"}").unwrap_err(), first);
    assert_eq!((scanner.finish().unwrap_err().error, first.offset()), (first.clone(), 1));
}

/// Found by fuzzing: an error that was complete before a fault in the same chunk was lost.
#[test]
fn an_error_before_a_fault_is_found_however_the_bytes_are_cut() {
    let failure = scan(Framing::Sse, r#"{"error":"x","errorm:{"a":1}}"#).unwrap_err();
    assert_eq!(failure.found.error.unwrap(), r#"{"error":"x"}"#);
}
