//! Everything that a simpler reader gets wrong.

use super::*;

#[test]
fn the_final_image_is_found_in_every_order() {
    let table: &[(&str, String, bool)] = &[
        (
            "thought behind the data",
            format!("{},{}", part(DRAFT, r#","thought":true"#), part(FINAL, "")),
            false,
        ),
        (
            "thought before the data",
            format!(
                r#"{{"thought":true,"inlineData":{{"mimeType":"image/png","data":"{DRAFT}"}}}},{}"#,
                part(FINAL, "")
            ),
            false,
        ),
        (
            "a draft behind the final",
            format!("{},{}", part(FINAL, ""), part(DRAFT, r#","thought":true"#)),
            false,
        ),
        (
            "a draft behind the final, said before",
            format!(
                r#"{},{{"thought":true,"inlineData":{{"mimeType":"image/png","data":"{DRAFT}"}}}}"#,
                part(FINAL, "")
            ),
            false,
        ),
        (
            "drafts on both sides",
            format!(
                "{0},{1},{0},{0}",
                part(DRAFT, r#","thought":true"#),
                part(FINAL, r#","thought":false"#)
            ),
            false,
        ),
        ("two unmarked", format!("{},{}", part(DRAFT, ""), part(FINAL, "")), false),
        ("three unmarked", format!("{0},{0},{1}", part(DRAFT, ""), part(FINAL, "")), false),
        ("only a thought", part(FINAL, r#","thought":true"#), true),
        (
            "only thoughts",
            format!("{},{}", part(DRAFT, r#","thought":true"#), part(FINAL, r#","thought":true"#)),
            true,
        ),
        ("an escaped slash and equals sign", part(r"ZmluYWw\u003d", ""), false),
        ("every symbol escaped", part(r"\u005A\u006d\u006c\u0075YWw=", ""), false),
        ("unpadded", part("ZmluYWw", ""), false),
        ("broken into lines", part(r"Zmlu\r\nYWw=\n", ""), false),
        ("blanks within", part("Zm lu YW w =", ""), false),
        (
            "snake case",
            format!(r#"{{"inline_data":{{"mime_type":"image/png","data":"{FINAL}"}}}}"#),
            false,
        ),
        (
            "escaped keys",
            format!(
                r#"{{"inline\u0044ata":{{"mime\u0054ype":"image/png","d\u0061ta":"{FINAL}"}}}}"#
            ),
            false,
        ),
        (
            "data before the type",
            format!(r#"{{"inlineData":{{"data":"{FINAL}","mimeType":"image/png"}}}}"#),
            false,
        ),
        ("no type at all", format!(r#"{{"inlineData":{{"data":"{FINAL}"}}}}"#), false),
        (
            "a type in capitals",
            format!(r#"{{"inlineData":{{"data":"{FINAL}","mimeType":"Image/PNG"}}}}"#),
            false,
        ),
        ("null parts around", format!("null,{},null", part(FINAL, "")), false),
        ("empty parts around", format!("{{}},{},{{}}", part(FINAL, "")), false),
        ("text after", format!(r#"{},{{"text":"done"}}"#, part(FINAL, "")), false),
        (
            "audio behind the image",
            format!(
                r#"{},{{"inlineData":{{"mimeType":"audio/wav","data":"{DRAFT}"}}}}"#,
                part(FINAL, "")
            ),
            false,
        ),
        (
            "audio behind the image, the type last",
            format!(
                r#"{},{{"inlineData":{{"data":"{DRAFT}","mimeType":"audio/wav"}}}}"#,
                part(FINAL, "")
            ),
            false,
        ),
        (
            "audio behind a lone thought, the type last",
            format!(
                r#"{},{{"inlineData":{{"data":"{DRAFT}","mimeType":"audio/wav"}}}}"#,
                part(FINAL, r#","thought":true"#)
            ),
            true,
        ),
        (
            "data that is no base64 and no image",
            format!(
                r#"{},{{"inlineData":{{"data":"%%","mimeType":"text/plain"}}}}"#,
                part(FINAL, "")
            ),
            false,
        ),
        (
            "a JSON text that speaks of an image",
            format!(
                r#"{},{{"text":"{{\"inlineData\":{{\"mimeType\":\"image/png\",\"data\":\"ZHJhZnQ=\"}}}}"}}"#,
                part(FINAL, "")
            ),
            false,
        ),
        (
            "a function call that holds one",
            format!(
                r#"{},{{"functionCall":{{"name":"f","args":{}}}}}"#,
                part(FINAL, ""),
                part(DRAFT, "")
            ),
            false,
        ),
        (
            "repeated data",
            format!(
                r#"{{"inlineData":{{"mimeType":"image/png","data":"{DRAFT}","data":"{FINAL}"}}}}"#
            ),
            false,
        ),
        (
            "repeated inlineData",
            format!(
                r#"{{"inlineData":{{"mimeType":"image/png","data":"{DRAFT}"}},"inline_data":{{"data":"{FINAL}"}}}}"#
            ),
            false,
        ),
        (
            "inlineData taken back",
            format!(
                r#"{},{{"inlineData":{{"mimeType":"image/png","data":"{DRAFT}"}},"inlineData":null}}"#,
                part(FINAL, "")
            ),
            false,
        ),
        ("thought taken back", part(FINAL, r#","thought":true,"thought":false"#), false),
        ("empty data behind", format!("{},{}", part(FINAL, ""), part("", "")), false),
    ];
    for (name, body, is_thought) in table {
        let answer = whole(parts(body));
        assert_eq!(image(&answer), b"final", "{name}");
        assert_eq!(answer.image.unwrap().is_thought, *is_thought, "{name}");
    }
}

#[test]
fn both_alphabets_are_read_even_mixed() {
    for data in ["+/+/AAAA", "-_-_AAAA", "+_-/AAAA", r"+\/+\/AAAA"] {
        assert_eq!(image(&whole(parts(&part(data, "")))), [0xFB, 0xFF, 0xBF, 0, 0, 0], "{data}");
    }
}

#[test]
fn repeated_lists_count_once() {
    let list = |data: &str| part(data, "");
    for body in [
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{}],"parts":[{}]}}}}]}}"#,
            list(DRAFT),
            list(FINAL)
        ),
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{}]}},"content":{{"parts":[{}]}}}}]}}"#,
            list(DRAFT),
            list(FINAL)
        ),
        format!(
            r#"{{"candidates":[{{"finishReason":"SAFETY","content":{{"parts":[{}]}}}}],"candidates":[{{"content":{{"parts":[{}]}}}}]}}"#,
            list(DRAFT),
            list(FINAL)
        ),
    ] {
        let answer = whole(body);
        assert_eq!((image(&answer), answer.images, answer.parts.len()), (&b"final"[..], 1, 1));
        assert_eq!(answer.finish_reason, None);
    }
    let taken_back = whole(format!(
        r#"{{"candidates":[{{"content":{{"parts":[{}],"parts":null}}}}]}}"#,
        list(DRAFT)
    ));
    assert_eq!((taken_back.image, taken_back.images), (None, 0));
}

#[test]
fn the_images_of_every_candidate_count_and_the_words_of_the_first() {
    let body = format!(
        r#"{{"candidates":[{{"content":{{"parts":[{}]}},"finishReason":"STOP"}},{{"content":{{"parts":[{}]}},"finishReason":"OTHER"}}]}}"#,
        part(FINAL, ""),
        part(DRAFT, "")
    );
    let answer = whole(body);
    assert_eq!(
        (image(&answer), answer.images, answer.finish_reason.as_deref()),
        (&b"draft"[..], 2, Some("STOP"))
    );
    assert_eq!(&answer.earlier_images[0].bytes[..], b"final");
}

#[test]
fn a_signature_of_megabytes_is_passed_over_or_kept() {
    let signature = "A".repeat(1 << 20);
    for body in [
        parts(&format!(
            r#"{{"thoughtSignature":"{signature}","inlineData":{{"mimeType":"image/png","data":"{FINAL}"}}}}"#
        )),
        parts(&part(FINAL, &format!(r#","thought_signature":"{signature}""#))),
    ] {
        for (scanner, kept) in [
            (Scanner::decoding(Framing::Whole), None),
            (Scanner::decoding(Framing::Whole).keep_signature(true), Some(signature.as_bytes())),
        ] {
            let answer = scan_cut(scanner, body.as_bytes(), &[40, 1000, 70_000, 1 << 20]).unwrap();
            assert_eq!(image(&answer), b"final");
            assert!(answer.image.unwrap().signature.as_deref() == kept);
        }
    }
}

#[test]
fn a_byte_order_mark_and_blanks_before_the_answer_are_passed_over() {
    assert_eq!(image(&whole(format!("\u{feff}{}", parts(&part(FINAL, ""))))), b"final");
    assert_eq!(image(&whole(format!("  \n\r\n\t{}\n ", parts(&part(FINAL, ""))))), b"final");
    assert!(scan(Framing::Whole, [0xEF, 0xBB]).unwrap_err().error.is_truncated());
    assert!(scan(Framing::Whole, [0xEF, 0xBB, b'{', b'}']).unwrap_err().error.is_malformed());
}

#[test]
fn the_model_and_the_tier_that_served_are_read_wherever_they_are() {
    for (text, model, tier) in [
        (
            r#"{"candidates":[],"usageMetadata":{"serviceTier":"flex"},"modelVersion":"m"}"#,
            "m",
            "flex",
        ),
        (
            r#"{"candidates":[],"usageMetadata":{"trafficType":"ON_DEMAND"},"modelVersion":"m"}"#,
            "m",
            "ON_DEMAND",
        ),
        (r#"{"choices":[],"model":"m","service_tier":"default"}"#, "m", "default"),
        (
            r#"{"object":"interaction","model":"m","service_tier":"priority","steps":[]}"#,
            "m",
            "priority",
        ),
    ] {
        let answer = whole(text);
        assert_eq!(answer.model_version.as_deref(), Some(model), "{text}");
        assert_eq!(answer.service_tier.as_deref(), Some(tier), "{text}");
    }
    let mut scanner = Scanner::judging(Framing::Sse);
    scanner.feed(b"data: {\"modelVersion\":\"m\",\"candid").unwrap();
    assert_eq!(scanner.model_version(), Some("m"));
}

#[test]
fn refusals_have_a_reason_and_no_image() {
    let refused = whole(
        r#"{"candidates":[{"finishReason":"IMAGE_SAFETY","finishMessage":"Unable to show \u00e4 cat.","index":0}],
            "usageMetadata":{"promptTokenCount":12,"totalTokenCount":251,"thoughtsTokenCount":239},
            "modelVersion":"gemini-3-pro-image","responseId":"abc"}"#,
    );
    assert_eq!(refused.finish_reason.as_deref(), Some("IMAGE_SAFETY"));
    assert_eq!(refused.finish_message.as_deref(), Some("Unable to show ä cat."));
    assert_eq!(refused.model_version.as_deref(), Some("gemini-3-pro-image"));
    assert_eq!(refused.response_id.as_deref(), Some("abc"));
    let usage = refused.usage.unwrap();
    assert_eq!((usage.prompt, usage.candidates, usage.thoughts, usage.total), (12, 0, 239, 251));
    assert!(refused.has_candidates && refused.said_end && refused.image.is_none());

    let blocked = whole(
        r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT","blockReasonMessage":"no","safetyRatings":[]}}"#,
    );
    assert_eq!(blocked.block_reason.as_deref(), Some("PROHIBITED_CONTENT"));
    assert_eq!(blocked.block_reason_message.as_deref(), Some("no"));
    assert!(!blocked.has_candidates);

    let numbered =
        whole(r#"{"candidates":[{"finishReason":11}],"promptFeedback":{"blockReason":4}}"#);
    assert_eq!(
        (numbered.finish_reason.as_deref(), numbered.block_reason.as_deref()),
        (Some("11"), Some("4"))
    );

    let rated =
        whole(r#"{"candidates":[],"promptFeedback":{"safetyRatings":[{"blockReason":"SAFETY"}]}}"#);
    assert_eq!((rated.block_reason, rated.has_candidates), (None, true));
}

#[test]
fn shapes_without_content_are_answers() {
    for candidate in [
        "{}",
        r#"{"content":{}}"#,
        r#"{"content":{"role":"model"}}"#,
        r#"{"content":{"parts":null}}"#,
        "null",
    ] {
        let answer = whole(format!(r#"{{"candidates":[{candidate}]}}"#));
        assert!(answer.has_candidates && answer.image.is_none() && answer.said_end, "{candidate}");
    }
    assert!(!whole("{}").has_candidates);
    whole("null");
    whole(" 12.5e3 ");
}

#[test]
fn an_error_body_is_captured_as_spelled() {
    let body = r#"{"error": {"code": 503, "message": "The model is \"overloaded\".", "status": "UNAVAILABLE"}}"#;
    let answer = whole(body);
    assert_eq!(
        answer.error.unwrap(),
        r#"{"error":{"code": 503, "message": "The model is \"overloaded\".", "status": "UNAVAILABLE"}}"#
    );
    let wrapped = whole(format!("[{body}]"));
    assert!(wrapped.error.is_some() && wrapped.said_end);
    assert_eq!(whole(r#"{"error":"boom","candidates":[]}"#).error.unwrap(), r#"{"error":"boom"}"#);
    assert_eq!(whole(r#"{"error":null,"data":[]}"#).error, None);
    assert_eq!(whole(r#"{"error":"","data":[]}"#).error, None);
    assert_eq!(whole(r#"{"error":{"code":1},"error":null}"#).error, None);
}

#[test]
fn a_long_error_is_cut() {
    let body = format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(100_000));
    let answer =
        scan_cut(Scanner::judging(Framing::Whole), body.as_bytes(), &[10, 5000, 80_000]).unwrap();
    assert_eq!(answer.error.unwrap().len(), (64 << 10) + r#"{"error":}"#.len());
}

#[test]
fn text_is_collected_without_thoughts_and_cut_between_characters() {
    let answer =
        whole(parts(r#"{"text":"a\ud83d\ude00"},{"text":"secret","thought":true},{"text":"ö"}"#));
    assert_eq!(answer.text, "a😀ö");
    let long = parts(&format!(r#"{{"text":"x{}"}}"#, "ö".repeat(8000)));
    let answer =
        scan_cut(Scanner::judging(Framing::Whole), long.as_bytes(), &[1001, 1002]).unwrap();
    assert_eq!(answer.text.len(), 8191);
}

#[test]
fn addresses_of_images_are_listed() {
    let answer = whole(parts(
        r#"{"fileData":{"mimeType":"image/png","fileUri":"gs://b/a.png"}},{"fileData":{"mimeType":"video/mp4","fileUri":"gs://b/a.mp4"}}"#,
    ));
    assert_eq!(answer.image_urls, ["gs://b/a.png"]);
    assert_eq!(answer.images, 0);
}

#[test]
fn broken_answers_are_errors() {
    let good = parts(&part(FINAL, ""));
    type Row = (&'static str, Vec<u8>, fn(&ScanError) -> bool);
    let table: &[Row] = &[
        ("empty", Vec::new(), ScanError::is_truncated),
        ("blank", b" \n".to_vec(), ScanError::is_truncated),
        ("cut inside the data", good[..good.find("luYW").unwrap()].into(), ScanError::is_truncated),
        ("cut after the data", good[..good.find("}}").unwrap()].into(), ScanError::is_truncated),
        ("cut before the last brace", good[..good.len() - 1].into(), ScanError::is_truncated),
        ("corrupt base64", parts(&part("Zmlu*WFs", "")).into(), ScanError::is_corrupt_image),
        (
            "base64 with padding inside",
            parts(&part("ZmluYWw=AAAA", "")).into(),
            ScanError::is_corrupt_image,
        ),
        ("base64 of five symbols", parts(&part("ZmluY", "")).into(), ScanError::is_corrupt_image),
        (
            "base64 padded too much",
            parts(&part("ZmluYWw==", "")).into(),
            ScanError::is_corrupt_image,
        ),
        ("base64 that is not ASCII", parts(&part("Zmluö", "")).into(), ScanError::is_corrupt_image),
        ("trailing garbage", format!("{good}x").into(), ScanError::is_malformed),
        ("a second value", format!("{good}{good}").into(), ScanError::is_malformed),
        ("a trailing comma", good.replace("\"STOP\"", "\"STOP\",").into(), ScanError::is_malformed),
        (
            "bad UTF-8 in a text",
            parts(r#"{"text":"@"}"#).bytes().map(|b| if b == b'@' { 0xFF } else { b }).collect(),
            ScanError::is_malformed,
        ),
        (
            "a character cut in half",
            parts(r#"{"text":"@"}"#).bytes().map(|b| if b == b'@' { 0xC3 } else { b }).collect(),
            ScanError::is_malformed,
        ),
        ("a line break in a text", parts("{\"text\":\"a\nb\"}").into(), ScanError::is_malformed),
        ("a line break in base64", parts(&part("Zmlu\nYWw=", "")).into(), ScanError::is_malformed),
        ("a lone surrogate", parts(r#"{"text":"\ud83d"}"#).into(), ScanError::is_malformed),
        (
            "a low surrogate first",
            parts(r#"{"text":"\ude00\ud83d"}"#).into(),
            ScanError::is_malformed,
        ),
        ("an unknown escape", parts(r#"{"text":"\x"}"#).into(), ScanError::is_malformed),
        ("a bare word", b"nulL".to_vec(), ScanError::is_malformed),
        ("a page", b"<html>Error 502</html>".to_vec(), ScanError::is_malformed),
        ("a sentence", b"deadline exceeded".to_vec(), ScanError::is_malformed),
        ("a leading zero", b"[01]".to_vec(), ScanError::is_malformed),
        ("128 levels", [b"[".repeat(128), b"]".repeat(128)].concat(), ScanError::is_malformed),
    ];
    for (name, body, is) in table {
        let failure = scan(Framing::Whole, body).expect_err(name);
        assert!(is(&failure.error), "{name}: {failure}");
    }
    whole([b"[".repeat(127), b"]".repeat(127)].concat());
}

#[test]
fn an_image_that_was_complete_survives_the_fault_behind_it() {
    let good = parts(&part(FINAL, ""));
    for cut in good.find("\"}}").unwrap() + 1..good.len() {
        let found = scan(Framing::Whole, &good[..cut]).unwrap_err().found;
        assert_eq!(image(&found), b"final", "cut at {cut}");
        assert!(!found.said_end || found.finish_reason.is_some());
    }
    let during = scan(Framing::Whole, &good[..good.find("YWw").unwrap()]).unwrap_err().found;
    assert_eq!(during.image, None);
}

#[test]
fn an_image_over_the_bound_is_refused() {
    let body = parts(&part(FINAL, ""));
    for (max, fits) in [(4, false), (5, true)] {
        let outcome = scan_cut(
            Scanner::decoding(Framing::Whole).max_image_bytes(max),
            body.as_bytes(),
            &[70],
        );
        assert_eq!(outcome.is_ok(), fits);
        if let Err(failure) = outcome {
            assert!(failure.error.is_too_large());
        }
    }
}

#[test]
fn an_expected_length_changes_nothing_but_the_allocation() {
    let body = parts(&part(FINAL, ""));
    for expected in [0, body.len() as u64, u64::MAX] {
        let answer =
            scan_cut(Scanner::decoding(Framing::Whole).expect_len(expected), body.as_bytes(), &[])
                .unwrap();
        assert_eq!(image(&answer), b"final");
    }
}

#[test]
fn a_drained_draft_that_overwrote_the_final_image_is_an_error() {
    let long = "AAAA".repeat(300_000);
    let body = parts(&format!("{},{}", part(FINAL, ""), part(&long, r#","thought":true"#)));
    let failure = scan_cut(Scanner::draining(Framing::Whole), body.as_bytes(), &[]).unwrap_err();
    assert!(failure.error.is_overwritten());
    let marked =
        format!(r#"{{"thought":true,"inlineData":{{"mimeType":"image/png","data":"{long}"}}}}"#);
    scan_cut(
        Scanner::draining(Framing::Whole),
        parts(&format!("{},{marked}", part(FINAL, ""))).as_bytes(),
        &[],
    )
    .unwrap();
}

#[test]
fn large_images_are_the_same_however_they_are_cut() {
    use ::base64::Engine as _;
    use ::base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let mut random = 7_u64;
    let mut next = move || {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    let draft: Vec<u8> = (0..150_001).map(|_| next() as u8).collect();
    let last: Vec<u8> = (0..200_002).map(|_| next() as u8).collect();
    let lines = STANDARD
        .encode(&last)
        .as_bytes()
        .chunks(76)
        .map(|l| String::from_utf8_lossy(l).into_owned())
        .collect::<Vec<_>>();
    for data in
        [STANDARD.encode(&last), URL_SAFE_NO_PAD.encode(&last), lines.join(r"\n"), lines.join(" ")]
    {
        for order in [false, true] {
            let (draft, last_part) =
                (part(&STANDARD.encode(&draft), r#","thought":true"#), part(&data, ""));
            let body = parts(&if order {
                format!("{draft},{last_part}")
            } else {
                format!("{last_part},{draft}")
            });
            for _ in 0..20 {
                let mut cuts: Vec<usize> = (0..next() % 40).map(|_| next() % body.len()).collect();
                cuts.sort_unstable();
                let answer =
                    scan_cut(Scanner::decoding(Framing::Whole), body.as_bytes(), &cuts).unwrap();
                assert!(image(&answer) == last, "{cuts:?}");
            }
        }
    }
}

#[test]
fn dimensions_are_read_on_the_way() {
    use ::base64::Engine as _;
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x10\0\0\0\x08\0".to_vec();
    png.extend([8; 100]);
    let answer = whole(parts(&part(&::base64::engine::general_purpose::STANDARD.encode(png), "")));
    let image = answer.image.unwrap();
    assert_eq!((image.width, image.height, &*image.mime), (Some(4096), Some(2048), "image/png"));
}
