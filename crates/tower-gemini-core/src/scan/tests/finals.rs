//! Which images of a response are final, and where images are found.

use super::*;

/// Base64 of `one`, `two` and `three`.
const ONE: &str = "b25l";
const TWO: &str = "dHdv";
const THREE: &str = "dGhyZWU=";

fn finals(scanner: Scanner, body: &str) -> Vec<String> {
    let whole = scan_cut(scanner, body.as_bytes(), &[]).expect("a response");
    let images = whole.earlier_images.into_iter().chain(whole.image);
    images.map(|image| String::from_utf8_lossy(&image.bytes).into_owned()).collect()
}

fn image(data: &str) -> String {
    format!(r#"{{"inlineData":{{"mimeType":"image/png","data":"{data}"}}}}"#)
}

fn response(parts: &[String]) -> String {
    format!(
        r#"{{"candidates":[{{"content":{{"parts":[{}]}},"finishReason":"STOP"}}]}}"#,
        parts.join(",")
    )
}

const TEXT: &str = r#"{"text":"and then"}"#;

#[test]
fn images_with_text_between_them_are_all_final() {
    let (text, blank) = (TEXT.to_owned(), r#"{"text":" "}"#.to_owned());
    let parts = [image(ONE), text.clone(), image(TWO), text, image(THREE)];
    let body = response(&parts);
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), ["one", "two", "three"]);
    scan(Framing::Whole, &body).expect("the same however it is cut");
    let stream: String = parts
        .iter()
        .map(|part| format!("data: {}\n\n", response(std::slice::from_ref(part))))
        .collect();
    assert_eq!(finals(Scanner::decoding(Framing::Sse), &stream), ["one", "two", "three"]);
    scan(Framing::Sse, &stream).expect("the same however it is cut");
    let beside = response(&[image(ONE), blank, image(TWO)]);
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &beside), ["two"]);
}

#[test]
fn unmarked_images_of_a_model_that_does_not_think_are_all_final() {
    let body = response(&[image(ONE), image(TWO)]);
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), ["two"]);
    let all = Scanner::decoding(Framing::Whole).unmarked_drafts(false);
    assert_eq!(finals(all, &body), ["one", "two"]);
    let thought = image(ONE).replace("}}", r#"},"thought":true}"#);
    let marked = response(&[image(TWO), thought]);
    let all = Scanner::decoding(Framing::Whole).unmarked_drafts(false);
    assert_eq!(finals(all, &marked), ["two"]);
}

#[test]
fn every_result_of_a_list_is_final() {
    let predictions = format!(
        r#"{{"predictions":[{{"bytesBase64Encoded":"{ONE}"}},{{"bytesBase64Encoded":"{TWO}"}},{{"bytesBase64Encoded":"{THREE}"}}]}}"#
    );
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &predictions), ["one", "two", "three"]);
    let data = format!(r#"{{"data":[{{"b64_json":"{ONE}"}},{{"b64_json":"{TWO}"}}]}}"#);
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &data), ["one", "two"]);
    let choices = format!(
        r#"{{"choices":[{{"message":{{"images":[{{"image_url":{{"url":"data:image/png;base64,{ONE}"}}}}]}}}},{{"message":{{"images":[{{"image_url":{{"url":"data:image/png;base64,{TWO}"}}}}]}}}}]}}"#
    );
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &choices), ["one", "two"]);
}

#[test]
fn a_candidate_with_an_image_counts_whatever_the_first_says() {
    let body = format!(
        r#"{{"candidates":[{{"finishReason":"IMAGE_SAFETY"}},{{"content":{{"parts":[{}]}},"finishReason":"STOP"}}]}}"#,
        image(TWO)
    );
    let answer = scan(Framing::Whole, &body).expect("a response");
    assert_eq!((answer.images, answer.finish_reason.as_deref()), (1, Some("IMAGE_SAFETY")));
    assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), ["two"]);
}

#[test]
fn an_image_is_found_in_every_shape() {
    for body in [
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"inline_data":{{"mime_type":"image/png","data":"{ONE}"}}}}]}}}}]}}"#
        ),
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"inlineData":{{"mimeType":"image/png","data":"data:image/png;base64,{ONE}"}}}}]}}}}]}}"#
        ),
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"Here: ![it](data:image/png;base64,{ONE}) done"}}]}}}}]}}"#
        ),
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"data:image/png;base64,{ONE}"}}]}}}}]}}"#
        ),
        format!(r#"{{"response":{{"candidates":[{{"content":{{"parts":[{}]}}}}]}}}}"#, image(ONE)),
        format!(r#"{{"choices":[{{"message":{{"content":"data:image/png;base64,{ONE}"}}}}]}}"#),
        format!(
            r#"{{"choices":[{{"message":{{"content":"![](data:image/png;base64,{ONE})"}}}}]}}"#
        ),
        format!(
            r#"{{"choices":[{{"message":{{"content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{ONE}"}}}}]}}}}]}}"#
        ),
        format!(
            r#"{{"choices":[{{"message":{{"content":[{{"type":"text","text":"![](data:image/png;base64,{ONE})"}}]}}}}]}}"#
        ),
        format!(
            r#"{{"choices":[{{"message":{{"images":[{{"image_url":"data:image/png;base64,{ONE}"}}]}}}}]}}"#
        ),
        format!(
            r#"{{"choices":[{{"message":{{"content":"Here","multi_mod_content":[{{"text":"Here"}},{{"inline_data":{{"mime_type":"image/png","data":"{ONE}"}}}}]}}}}]}}"#
        ),
        format!(r#"{{"data":[{{"b64_json":"{ONE}"}}]}}"#),
        format!(r#"{{"data":[{{"b64_json":"data:image/png;base64,{ONE}"}}]}}"#),
        format!(r#"{{"data":[{{"url":"data:image/png;base64,{ONE}"}}]}}"#),
        format!(
            r#"{{"output":[{{"type":"message","content":[{{"type":"output_text","text":"![](data:image/png;base64,{ONE})"}}]}}]}}"#
        ),
        format!(r#"{{"output":[{{"type":"image_generation_call","result":"{ONE}"}}]}}"#),
        format!(r#"{{"outputs":[{{"type":"image","mime_type":"image/png","data":"{ONE}"}}]}}"#),
    ] {
        let answer =
            scan(Framing::Whole, &body).unwrap_or_else(|error| panic!("{error:?}: {body}"));
        assert_eq!(answer.images, 1, "{body}");
        assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), ["one"], "{body}");
    }
    for body in [
        r#"{"candidates":[{"content":{"parts":[{"fileData":{"mimeType":"image/png","fileUri":"gs://b/1.png"}}]}}]}"#,
        r#"{"outputs":[{"type":"image","uri":"https://h/1.png"}]}"#,
        r#"{"data":[{"url":"https://h/1.png"}]}"#,
        r#"{"candidates":[{"content":{"parts":[{"text":"![it](https://h/1.png)"}]}}]}"#,
    ] {
        assert_eq!(scan(Framing::Whole, body).expect("a response").image_urls.len(), 1, "{body}");
    }
}

#[test]
fn an_image_in_a_chats_text_is_found_however_the_deltas_cut_it() {
    let text = format!("Here: ![it](data:image/png;base64,{THREE}) and more");
    let event = |delta: &str| {
        let delta = serde_json::json!({"choices": [{"index": 0, "delta": {"content": delta}}]});
        format!("data: {delta}\n\n")
    };
    for first in 0..text.len() {
        for second in (first..text.len()).step_by(7) {
            let body =
                event(&text[..first]) + &event(&text[first..second]) + &event(&text[second..]);
            assert_eq!(finals(Scanner::decoding(Framing::Sse), &body), ["three"], "{body}");
        }
    }
    let bare = format!("data:image/png;base64,{THREE}");
    for cut in 0..bare.len() {
        let body = event(&bare[..cut]) + &event(&bare[cut..]) + "data: [DONE]\n\n";
        assert_eq!(finals(Scanner::decoding(Framing::Sse), &body), ["three"], "{body}");
    }
}

#[test]
fn a_text_that_only_looks_like_an_image_is_a_text() {
    for text in ["data: is here", "![no](data", "wow! [x](y)", "![x](data:image/png;base64,%%)"] {
        let part = serde_json::json!({ "text": text }).to_string();
        let answer = scan(Framing::Whole, response(&[part])).expect("a response");
        assert_eq!(answer.images, 0, "{text}");
    }
}

// A thought image was decoded over, and the response ended in an error although it was valid.
#[test]
fn a_text_that_only_looks_like_an_image_costs_no_image() {
    let thought = image(ONE).replace("}}", r#"},"thought":true}"#);
    for kept in [thought, image(ONE)] {
        for text in [
            "![](data:image/png;base64,QUJDc",
            "![](data:image/png;base64,%%)",
            "data:image/png;base64,Q",
        ] {
            let text = serde_json::json!({ "text": text }).to_string();
            for parts in [vec![kept.clone(), text.clone()], vec![text.clone(), kept.clone()]] {
                let body = response(&parts);
                assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), ["one"], "{body}");
                let stream: String = parts
                    .iter()
                    .map(|part| format!("data: {}\n\n", response(std::slice::from_ref(part))))
                    .collect();
                assert_eq!(finals(Scanner::decoding(Framing::Sse), &stream), ["one"], "{body}");
            }
        }
    }
}

// Whether a text is a thought was not asked where the mark stood behind it.
#[test]
fn a_thought_between_unmarked_drafts_makes_none_of_them_final() {
    for thought in [r#"{"text":"hm","thought":true}"#, r#"{"thought":true,"text":"hm"}"#] {
        let body = response(&[image(ONE), thought.to_owned(), image(TWO)]);
        assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), ["two"], "{body}");
    }
}

#[test]
fn the_words_of_a_text_settle_what_stands_before_them() {
    let shown = |data| format!("![it](data:image/png;base64,{data})");
    for (text, expected) in [
        (format!("{}{}", shown(TWO), shown(THREE)), &["three"][..]),
        (format!("and {}{}", shown(TWO), shown(THREE)), &["one", "three"]),
        (format!("{} and {}", shown(TWO), shown(THREE)), &["two", "three"]),
        (format!("{} and ", shown(TWO)), &["two"]),
    ] {
        let body = response(&[image(ONE), serde_json::json!({ "text": text }).to_string()]);
        assert_eq!(finals(Scanner::decoding(Framing::Whole), &body), expected, "{body}");
    }
}
