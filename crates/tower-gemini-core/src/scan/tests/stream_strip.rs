//! Drafts are cut out of streams on their way, however the stream is cut.

use proptest::prelude::*;

use super::*;

/// An event with these parts: `d` a draft, `i` an image, `t` a text, `b` a blank one, and `.` the end.
fn event(parts: &str, snake: bool) -> String {
    let mut end = "";
    let mut list = Vec::new();
    for (n, part) in parts.char_indices() {
        let image = |mark: &str| {
            let data =
                format!("{{\"mimeType\":\"image/png\",\"data\":\"{}{n}AA\"}}", mark.to_uppercase());
            let data = if snake { data.replace("mimeType", "mime_type") } else { data };
            format!("\"{}\":{data}", if snake { "inline_data" } else { "inlineData" })
        };
        match part {
            'd' if n % 2 == 0 => list.push(format!("{{{},\"thought\":true}}", image("d"))),
            'd' => list.push(format!("{{\"thought\":true,{}}}", image("d"))),
            'i' => list.push(format!("{{{},\"thoughtSignature\":\"c2ln\"}}", image("i"))),
            'b' => list.push("{\"text\":\" \\n\"}".to_owned()),
            't' => list.push("{\"text\":\"a } { \\\" \\\\ b\"}".to_owned()),
            _ => end = ",\"finishReason\":\"STOP\"",
        }
    }
    format!(
        "{{\"candidates\": [{{\"content\": {{\"parts\": [{}],\"role\":\"model\"}}{end}}}]}}",
        list.join(" , ")
    )
}

fn stream(framing: Framing, events: &[String]) -> String {
    match framing {
        Framing::Sse => {
            events.iter().map(|event| format!("data: {event}\r\n\r\n")).collect::<String>()
                + ": bye\n"
        }
        _ => format!("[{}\n]\n", events.join("\n,\r\n")),
    }
}

fn through(framing: Framing, text: &str, cuts: &[usize]) -> String {
    stripped_by(StreamStripper::new(framing), text, cuts)
}

fn stripped_by(mut stripper: StreamStripper, text: &str, cuts: &[usize]) -> String {
    let (mut out, mut at) = (Vec::new(), 0);
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| cut % (text.len() + 1)).chain([text.len()]).collect();
    cuts.sort_unstable();
    for cut in cuts {
        out.extend(stripper.push(Bytes::copy_from_slice(&text.as_bytes()[at..cut])));
        at = cut;
    }
    out.extend(stripper.finish());
    String::from_utf8(out.concat()).unwrap()
}

fn events(framing: Framing, text: &str) -> Vec<serde_json::Value> {
    match framing {
        Framing::Sse => text
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok())
            .collect(),
        _ => serde_json::from_str(text).unwrap(),
    }
}

/// What every reader of the stream reads: its parts in order.
fn parts(framing: Framing, text: &str) -> Vec<serde_json::Value> {
    events(framing, text)
        .iter()
        .flat_map(|event| {
            event["candidates"][0]["content"]["parts"].as_array().cloned().unwrap_or_default()
        })
        .collect()
}

/// Whether an event has a list of parts without a part.
fn empties(framing: Framing, text: &str) -> bool {
    events(framing, text).iter().any(|event| {
        event["candidates"][0]["content"]["parts"].as_array().is_some_and(Vec::is_empty)
    })
}

fn is_draft(part: &serde_json::Value) -> bool {
    part["thought"] == true
}

fn is_image(part: &serde_json::Value) -> bool {
    part.get("inlineData").or(part.get("inline_data")).is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn drafts_go_and_everything_else_stays_in_order_however_it_is_cut(
        events in proptest::collection::vec("[ditb]{0,4}", 1..5),
        sse in any::<bool>(),
        snake in any::<bool>(),
        unmarked in any::<bool>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let framing = if sse { Framing::Sse } else { Framing::JsonArray };
        let stripper = || StreamStripper::new(framing).unmarked_drafts(unmarked);
        let mut events: Vec<String> = events.iter().map(|parts| event(parts, snake)).collect();
        events.push(event("t.", snake));
        let text = stream(framing, &events);
        let stripped = stripped_by(stripper(), &text, &cuts);
        prop_assert_eq!(&stripped, &stripped_by(stripper(), &text, &[]));
        let (before, after) = (parts(framing, &text), parts(framing, &stripped));
        prop_assert!(!empties(framing, &stripped) || empties(framing, &text), "SDKs forget a turn with an event without parts");
        // What stands in for drafts says nothing.
        let mut after: Vec<_> = after.into_iter().filter(|part| part["text"] != "").collect();
        let mut finals = Finals::new(unmarked);
        let mut kept = Vec::new();
        for (at, part) in before.iter().enumerate() {
            let text = part["text"].as_str().unwrap_or_default();
            kept.extend(if is_image(part) { finals.image(at, is_draft(part)) } else if text.trim().is_empty() { None } else { finals.text() });
        }
        let lone = finals.end();
        if let Some(at) = lone {
            // A lone marked image is the final one, and goes out when that is known.
            let moved = after.iter().position(is_image).map(|at| after.remove(at));
            prop_assert_eq!(moved.as_ref(), before.get(at));
        }
        let expected: Vec<_> = before.iter().enumerate().filter(|(at, part)| !is_image(part) || kept.contains(at)).map(|(_, part)| part.clone()).collect();
        prop_assert_eq!(&after, &expected);
        if lone.is_none() && expected.len() == before.len() {
            prop_assert_eq!(&stripped, &text, "without drafts nothing changes");
        }
        // And a reader that takes every image gets what a reader of the whole stream calls final.
        let images = |text: &str, unmarked| {
            let mut scanner = Scanner::decoding(framing).unmarked_drafts(unmarked);
            scanner.feed(text.as_bytes()).unwrap();
            let answer = scanner.finish().unwrap();
            let images = answer.earlier_images.into_iter().chain(answer.image);
            images.map(|image| image.bytes).collect::<Vec<_>>()
        };
        prop_assert_eq!(images(&stripped, false), images(&text, unmarked));
    }

    // A caller is left with every image that may have been the last, wherever the upstream breaks.
    #[test]
    fn a_stream_that_breaks_gives_out_the_image_that_nothing_has_replaced(
        events in proptest::collection::vec("[ditb]{0,3}", 1..6),
        at in any::<usize>(),
    ) {
        let mut all: Vec<String> = events.iter().map(|parts| event(parts, false)).collect();
        all.push(event(".", false));
        let text = stream(Framing::Sse, &all);
        let text = &text[..at % (text.len() + 1)];
        let mut stripper = StreamStripper::new(Framing::Sse);
        let mut out = stripper.push(Bytes::copy_from_slice(text.as_bytes()));
        out.extend(stripper.fail());
        let out = String::from_utf8(out.concat()).unwrap();
        let last = parts(Framing::Sse, text).into_iter().rfind(|part| is_image(part) && !is_draft(part));
        prop_assert_eq!(parts(Framing::Sse, &out).into_iter().rfind(|part| is_image(part) && !is_draft(part)), last);
    }

    #[test]
    fn what_is_not_understood_passes_untouched(text in "[\\[\\]{}\",: \\\\a-z\\n]{0,200}", sse in any::<bool>(), cuts in proptest::collection::vec(any::<usize>(), 0..6)) {
        let framing = if sse { Framing::Sse } else { Framing::JsonArray };
        prop_assert_eq!(through(framing, &text, &cuts), text);
    }
}

#[test]
fn an_event_passes_before_the_next_one_comes() {
    let mut stripper = StreamStripper::new(Framing::Sse);
    let text = format!("data: {}\r\n\r\n", event("td", false));
    let out = stripper.push(Bytes::from(text)).concat();
    assert!(String::from_utf8(out).unwrap().ends_with("}\r\n\r\n"));
}

// google-genai's streamed chats dropped the turn: a later edit lost the image.
#[test]
fn an_event_that_loses_all_its_parts_is_still_one_that_chats_remember() {
    for drafts in ["d", "ddd", "d."] {
        let text =
            stream(Framing::Sse, &[event("i", false), event(drafts, false), event("t.", false)]);
        let stripped = through(Framing::Sse, &text, &[]);
        assert!(!stripped.contains("[]") && stripped.contains("[{\"text\":\"\"}]"), "{stripped}");
    }
}

#[test]
fn a_last_line_without_its_end_is_an_event_like_any_other() {
    let (draft, image) = (event("d", false), event("i.", false));
    let text = format!("data: {draft}\r\n\r\ndata: {image}");
    for cuts in [&[][..], &[5, 40, 200]] {
        let stripped = through(Framing::Sse, &text, cuts);
        assert!(
            stripped.ends_with(&image) && !parts(Framing::Sse, &stripped).iter().any(is_draft),
            "{stripped}"
        );
    }
    // And a draft that turns out to be the only image is an event of its own.
    let stripped = through(
        Framing::Sse,
        &format!("data: {}\n\ndata: {}", event("d", false), event("t", false)),
        &[],
    );
    let parts = parts(Framing::Sse, &stripped);
    assert!(
        parts.last().is_some_and(is_draft)
            && parts.iter().filter(|part| is_image(part)).count() == 1,
        "{stripped}"
    );
}

// Two lines of data with no empty line between them are one event, and no JSON.
#[test]
fn a_draft_that_was_held_is_an_event_of_its_own_however_the_last_one_ended() {
    for end in ["", "\n", "\n\n", "\r", "\r\r", "\r\n", "\r\n\r\n"] {
        let text = format!("data: {}\n\ndata: {}{end}", event("d", false), event("t", false));
        let stripped = through(Framing::Sse, &text, &[]).replace("\r\n", "\n").replace('\r', "\n");
        let events: Vec<_> =
            stripped.split("\n\n").filter(|event| !event.trim().is_empty()).collect();
        assert_eq!(events.len(), 3, "{end:?}: {stripped:?}");
        assert!(
            events.iter().all(|event| event.trim().lines().count() == 1),
            "{end:?}: {stripped:?}"
        );
    }
}

#[test]
fn lines_may_end_in_carriage_returns_alone() {
    let mut stripper = StreamStripper::new(Framing::Sse);
    for parts in ["t", "d", "ti."] {
        let text = format!("data: {}\r\r", event(parts, false));
        let out = String::from_utf8(stripper.push(Bytes::from(text)).concat()).unwrap();
        assert!(out.ends_with("}\r\r") && !out.contains("\"thought\":true"), "{out}");
    }
}

#[test]
fn a_bare_error_behind_the_events_passes() {
    let error = "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"overloaded\"\n  }\n}\n";
    let text = format!("data: {}\n\n{error}", event("d", false));
    assert!(through(Framing::Sse, &text, &[10, 50]).contains(error));
}

#[test]
fn what_waits_for_the_next_image_has_a_bound() {
    let mut stripper = StreamStripper::new(Framing::Sse);
    let image = format!("data: {}\r\n\r\n", event("i", false));
    assert!(stripper.push(Bytes::from(image.clone())).is_empty());
    let thought = format!(
        "data: {{\"candidates\":[{{\"content\":{{\"parts\":[{{\"thought\":true,\"text\":\"{}\"}}]}}}}]}}\n\n",
        "a".repeat(1 << 20)
    );
    let thought = Bytes::from(thought);
    let passed = (1..100).find_map(|n| {
        let out = stripper.push(thought.clone()).concat();
        (!out.is_empty()).then_some((n, out))
    });
    let (thoughts, out) = passed.unwrap();
    assert_eq!(thoughts, 64);
    assert!(out.starts_with(image.as_bytes()), "it passes as it came");
}

// One event without an end took whatever an upstream sent, and a brace a byte thirty times as much.
#[test]
fn an_event_that_is_too_long_to_be_held_passes_as_it_comes() {
    for filler in ["a".repeat(1 << 20), "}".repeat(1 << 20)] {
        let mut stripper = StreamStripper::new(Framing::Sse);
        let draft = format!("data: {}\r\n\r\n", event("d", false));
        let mut sent = draft.len();
        let mut out = stripper.push(Bytes::from(draft)).concat().len();
        let begin = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"";
        let mut most_held = 0;
        let chunks = std::iter::once(begin.to_owned()).chain(vec![filler; 99]);
        for chunk in chunks {
            sent += chunk.len();
            out += stripper.push(Bytes::from(chunk)).concat().len();
            most_held = most_held.max(stripper.held_bytes());
        }
        assert!(most_held <= (64 << 20) + 1000, "{most_held}");
        assert!(out >= sent, "all of it is out, and the image that the draft may be");
    }
}
