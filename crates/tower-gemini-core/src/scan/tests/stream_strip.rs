//! Drafts are cut out of streams on their way, however the stream is cut.

use proptest::prelude::*;

use super::*;

/// An event with these parts: `d` a draft, `i` an image, `t` a text, and `.` the end.
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
    let (mut stripper, mut out, mut at) = (StreamStripper::new(framing), Vec::new(), 0);
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
    let events: Vec<serde_json::Value> = match framing {
        Framing::Sse => text
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok())
            .collect(),
        _ => serde_json::from_str(text).unwrap(),
    };
    events
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
        events in proptest::collection::vec("[dit]{0,4}", 1..5),
        sse in any::<bool>(),
        snake in any::<bool>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let framing = if sse { Framing::Sse } else { Framing::JsonArray };
        let mut events: Vec<String> = events.iter().map(|parts| event(parts, snake)).collect();
        events.push(event("t.", snake));
        let text = stream(framing, &events);
        let stripped = through(framing, &text, &cuts);
        prop_assert_eq!(&stripped, &through(framing, &text, &[]));
        let (before, after) = (parts(framing, &text), parts(framing, &stripped));
        prop_assert!(!empties(framing, &stripped) || empties(framing, &text), "SDKs forget a turn with an event without parts");
        // What stands in for drafts says nothing.
        let after: Vec<_> = after.into_iter().filter(|part| part["text"] != "").collect();
        let kept: Vec<_> = before.iter().filter(|part| !is_draft(part)).cloned().collect();
        prop_assert_eq!(&after.iter().filter(|part| !is_draft(part)).cloned().collect::<Vec<_>>(), &kept);
        let drafts: Vec<_> = after.iter().filter(|part| is_draft(part)).collect();
        if kept.iter().any(is_image) {
            prop_assert!(drafts.is_empty());
        } else {
            // A lone marked image is the final one.
            let last = before.iter().rfind(|part| is_draft(part));
            prop_assert_eq!(drafts, last.into_iter().collect::<Vec<_>>());
        }
        if before.iter().all(|part| !is_draft(part)) {
            prop_assert_eq!(stripped, text, "without drafts nothing changes");
        }
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
