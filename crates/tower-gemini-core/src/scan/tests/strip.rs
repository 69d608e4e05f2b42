//! Drafts cut out: what is left is JSON, holds the final images, and is otherwise as it was.

use super::*;

fn finals(answer: &Answer) -> usize {
    answer.earlier_images.len() + usize::from(answer.image.is_some())
}

fn stripped(framing: Framing, body: &str) -> String {
    let answer = scan(framing, body).unwrap();
    let mut all = Vec::new();
    for size in [1, 7, body.len()] {
        let chunks = body.as_bytes().chunks(size).map(Bytes::copy_from_slice);
        all.push(String::from_utf8(strip_drafts(chunks, &answer).concat()).unwrap());
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    let again = scan(framing, &all[0]).unwrap();
    assert_eq!(again.images as usize, finals(&answer));
    assert_eq!(again.image.map(|image| image.bytes), answer.image.map(|image| image.bytes));
    assert_eq!(
        (again.text, again.finish_reason, again.usage),
        (answer.text, answer.finish_reason, answer.usage)
    );
    all.swap_remove(0)
}

/// Every list of up to five drafts, finals and texts.
#[test]
fn commas_are_right_wherever_drafts_stand() {
    let kinds = [
        part(DRAFT, r#", "thought": true"#),
        r#"{"text": "t"}"#.to_owned(),
        part(FINAL, r#", "thoughtSignature": "c2ln""#),
    ];
    for len in 0..=5_u32 {
        for mut code in 0..3_usize.pow(len) {
            let list: Vec<&str> = (0..len)
                .map(|_| {
                    let kind = &kinds[code % 3];
                    code /= 3;
                    &**kind
                })
                .collect();
            for comma in [",", " ,\n  "] {
                let body = parts(&list.join(comma));
                let answer =
                    scan_cut(Scanner::decoding(Framing::Whole), body.as_bytes(), &[]).unwrap();
                let left = strip_drafts([Bytes::from(body.clone())], &answer).concat();
                let value: serde_json::Value =
                    serde_json::from_slice(&left).unwrap_or_else(|error| panic!("{error}: {body}"));
                let texts = list.iter().filter(|part| part.contains("text")).count();
                let left_parts = value["candidates"][0]["content"]["parts"].as_array().unwrap();
                assert_eq!(left_parts.len(), texts + finals(&answer), "{body}");
                let again = scan_cut(Scanner::decoding(Framing::Whole), &left, &[]).unwrap();
                assert_eq!(
                    again.image.map(|image| image.bytes),
                    answer.image.map(|image| image.bytes)
                );
            }
        }
    }
}

#[test]
fn what_is_kept_is_kept_as_spelled() {
    let draft = part(DRAFT, r#","thought":true"#);
    let last = r#"{"inlineData": {"data": "ZmluYWw\u003d", "mimeType": "image/png"}, "thoughtSignature": "c2\/n"}"#;
    let body = parts(&format!(r#"{{"text":"\u00e4"}},{draft},{last}"#));
    assert_eq!(stripped(Framing::Whole, &body), body.replace(&format!("{draft},"), ""));
    let other = parts(&part(FINAL, ""));
    assert_eq!(stripped(Framing::Whole, &other), other);
}

#[test]
fn events_and_chunks_keep_their_frame() {
    let draft = parts(&part(DRAFT, r#","thought":true"#));
    let last = parts(&part(FINAL, ""));
    for body in [
        format!("data: {draft}\r\n\r\ndata: {last}\r\n\r\n"),
        format!("[{draft},\n{last}]"),
        format!("{draft}\n{last}\n"),
    ] {
        assert_eq!(
            stripped(Framing::Sse, &body),
            body.replacen(&part(DRAFT, r#","thought":true"#), "", 1)
        );
    }
    let pretty = last.replace(",", ",\ndata: ");
    let both = format!("data: {}\n\ndata: {pretty}\n\n", draft.replace(",", ",\ndata: "));
    stripped(Framing::Sse, &both);
}

#[test]
fn other_lists_lose_their_drafts_too() {
    let entry = |data: &str| format!(r#"{{"image_url":{{"url":"data:image/png;base64,{data}"}}}}"#);
    for (body, expected) in [
        (
            format!(r#"{{"data":[{{"b64_json":"{DRAFT}"}}, {{"b64_json":"{FINAL}"}}]}}"#),
            // The Images API has no drafts.
            format!(r#"{{"data":[{{"b64_json":"{DRAFT}"}}, {{"b64_json":"{FINAL}"}}]}}"#),
        ),
        (
            format!(
                r#"{{"choices":[{{"message":{{"images":[{},{}]}}}}]}}"#,
                entry(DRAFT),
                entry(FINAL)
            ),
            format!(r#"{{"choices":[{{"message":{{"images":[{}]}}}}]}}"#, entry(FINAL)),
        ),
    ] {
        assert_eq!(stripped(Framing::Whole, &body), expected);
    }
    let events = format!(
        "data: {{\"type\":\"image_generation.partial_image\",\"b64_json\":\"{DRAFT}\"}}\n\ndata: {{\"type\":\"image_generation.completed\",\"b64_json\":\"{FINAL}\"}}\n\n"
    );
    assert!(stripped(Framing::Sse, &events).starts_with("data: {}\n\n"));
}
