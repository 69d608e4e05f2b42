//! The scanner beside serde_json and base64, which read the same answer the plain way.

use ::base64::Engine as _;
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// The plain way: `Ok` with the final images' bytes and whether they are thoughts; `Err` where it
/// cannot be read.
fn plainly(body: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut chosen: Vec<(Vec<u8>, bool)> = Vec::new();
    // Whether the next image stands beside the last one, and not in its place.
    let mut is_settled = true;
    for candidate in value["candidates"].as_array().cloned().unwrap_or_default() {
        is_settled |= candidate.is_object();
        for part in candidate["content"]["parts"].as_array().cloned().unwrap_or_default() {
            let is_thought = part["thought"] == true;
            let text = part["text"].as_str().unwrap_or_default();
            is_settled |= !is_thought && !text.trim_ascii().is_empty();
            let inline = &part["inlineData"];
            let Some(data) = inline["data"].as_str() else { continue };
            let mime = inline["mimeType"].as_str().unwrap_or_default();
            if !mime.is_empty() && !is_image(mime) {
                continue;
            }
            let bytes = decode(data)?;
            let has_final = chosen.iter().any(|(_, is_thought)| !is_thought);
            if bytes.is_empty() || (is_thought && has_final) {
                continue;
            }
            if !(has_final && is_settled) {
                chosen.pop();
            }
            chosen.push((bytes, is_thought));
            is_settled = false;
        }
    }
    Ok(chosen)
}

fn decode(data: &str) -> Result<Vec<u8>, String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone);
    let data: String = data
        .chars()
        .filter(|c| !matches!(c, ' ' | '\n' | '\r' | '\t'))
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    let bare = data.trim_end_matches('=');
    if data.len() > bare.len() && data.len() % 4 != 0 || data.len() - bare.len() > 2 {
        return Err("padding".to_owned());
    }
    GeneralPurpose::new(&::base64::alphabet::STANDARD, config)
        .decode(bare)
        .map_err(|error| error.to_string())
}

fn finals(answer: Answer) -> impl Iterator<Item = Image> {
    answer.earlier_images.into_iter().chain(answer.image)
}

fn assert_alike(body: &[u8], cuts: &[usize]) {
    let scanned = scan_cut(Scanner::decoding(Framing::Whole), body, &[]);
    assert_eq!(
        scan_cut(Scanner::decoding(Framing::Whole), body, cuts),
        scanned,
        "{}",
        String::from_utf8_lossy(body)
    );
    match (plainly(body), scanned) {
        (Ok(plain), Ok(answer)) => {
            let found = finals(answer).map(|image| (image.bytes.to_vec(), image.is_thought));
            let found: Vec<_> = found.collect();
            assert_eq!(found, plain, "{}", String::from_utf8_lossy(body));
        }
        // A deliberate difference: numbers that no `f64` can hold are nobody's business here.
        (Err(plain), Ok(_)) if plain.starts_with("number out of range") => {}
        (Err(_), Err(_)) => {}
        // Another: a member that is repeated to say the opposite, after the image it speaks of was
        // given up on its word.
        (Ok(_), Err(ref failure)) if failure.error.to_string().starts_with("a repeated member") => {
        }
        (plain, scanned) => {
            panic!("plainly {plain:?}, scanned {scanned:?}: {}", String::from_utf8_lossy(body))
        }
    }
}

fn blank() -> impl Strategy<Value = &'static str> {
    prop_oneof![6 => Just(""), 2 => Just(" "), 1 => Just("\n  "), 1 => Just("\r\n\t")]
}

/// A JSON string, some of its characters escaped.
fn spelled(text: String) -> impl Strategy<Value = String> {
    let chars = text.chars().count();
    proptest::collection::vec(0..12_u8, chars).prop_map(move |how| {
        let mut out = String::from("\"");
        for (c, how) in text.chars().zip(how) {
            match (c, how) {
                (c, 0) => c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .for_each(|unit| out.push_str(&format!("\\u{unit:04X}"))),
                ('/', 1..=4) => out.push_str("\\/"),
                ('\n', _) => out.push_str("\\n"),
                ('"' | '\\', _) => {
                    out.push('\\');
                    out.push(c);
                }
                (c, _) if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
                (c, _) => out.push(c),
            }
        }
        out.push('"');
        out
    })
}

fn word(text: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![9 => Just(format!("\"{text}\"")), 1 => spelled(text.to_owned())]
}

fn object(
    members: Vec<(impl Strategy<Value = String>, BoxedStrategy<String>)>,
) -> impl Strategy<Value = String> {
    members
        .into_iter()
        .map(|(key, value)| {
            (key, value, blank(), blank())
                .prop_map(|(key, value, a, b)| format!("{a}{key}{b}:{a}{value}{b}"))
        })
        .collect::<Vec<_>>()
        .prop_shuffle()
        .prop_map(|members| format!("{{{}}}", members.join(",")))
}

fn data() -> impl Strategy<Value = String> {
    let encoded =
        (proptest::collection::vec(any::<u8>(), 0..90), 0..8_u8).prop_map(|(bytes, how)| {
            let standard = ::base64::engine::general_purpose::STANDARD.encode(&bytes);
            match how {
                0 => standard.trim_end_matches('=').to_owned(),
                1 => ::base64::engine::general_purpose::URL_SAFE.encode(&bytes),
                2 => ::base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&bytes),
                3 => standard
                    .as_bytes()
                    .chunks(19)
                    .map(|line| String::from_utf8_lossy(line))
                    .collect::<Vec<_>>()
                    .join("\n"),
                4 => standard
                    .as_bytes()
                    .chunks(5)
                    .map(|line| String::from_utf8_lossy(line))
                    .collect::<Vec<_>>()
                    .join(" "),
                _ => standard,
            }
        });
    prop_oneof![
        8 => encoded.clone().prop_flat_map(spelled),
        8 => encoded.prop_map(|data| format!("\"{}\"", data.replace('\n', "\\n"))),
        1 => Just("null".to_owned()),
        1 => Just("\"%%\"".to_owned()),
        1 => Just("17".to_owned()),
    ]
}

fn inline() -> impl Strategy<Value = String> {
    let mime = || prop_oneof![8 => word("image/png"), 1 => word("audio/wav"), 1 => Just("null".to_owned()), 1 => word("")];
    prop_oneof![
        8 => object(vec![(word("mimeType"), mime().boxed()), (word("data"), data().boxed())]),
        1 => object(vec![(word("data"), data().boxed())]),
        1 => object(vec![(word("data"), data().boxed()), (word("data"), data().boxed()), (word("mimeType"), mime().boxed())]),
        1 => object(vec![(word("mimeType"), mime().boxed()), (word("data"), data().boxed()), (word("mimeType"), mime().boxed())]),
        1 => Just("null".to_owned()),
    ]
}

fn a_part() -> impl Strategy<Value = String> {
    let thought = || prop_oneof![4 => Just("true".to_owned()), 1 => Just("false".to_owned()), 1 => Just("null".to_owned())];
    let text = || "\\PC{0,12}".prop_flat_map(spelled);
    prop_oneof![
        6 => object(vec![(word("inlineData"), inline().boxed())]),
        6 => object(vec![(word("inlineData"), inline().boxed()), (word("thought"), thought().boxed())]),
        2 => object(vec![
            (word("inlineData"), inline().boxed()),
            (word("inlineData"), inline().boxed()),
            (word("thought"), thought().boxed()),
        ]),
        2 => object(vec![
            (word("thought"), thought().boxed()),
            (word("inlineData"), inline().boxed()),
            (word("thought"), thought().boxed()),
        ]),
        2 => object(vec![(word("text"), text().boxed())]),
        1 => object(vec![(word("text"), text().boxed()), (word("thoughtSignature"), data().boxed())]),
        1 => object(vec![(word("functionCall"), object(vec![(word("inlineData"), inline().boxed())]).boxed())]),
        1 => Just("null".to_owned()),
        1 => Just("[{\"inlineData\":{\"data\":\"AAAA\"}}]".to_owned()),
        1 => Just("-0.5e+3".to_owned()),
    ]
}

fn answer() -> impl Strategy<Value = String> {
    let list = || {
        (proptest::collection::vec(a_part(), 0..5), blank())
            .prop_map(|(parts, b)| format!("[{b}{}{b}]", parts.join(",")))
    };
    let content = || {
        prop_oneof![
            8 => object(vec![(word("parts"), list().boxed()), (word("role"), word("model").boxed())]),
            1 => object(vec![(word("parts"), list().boxed()), (word("parts"), list().boxed())]),
            1 => Just("{}".to_owned()),
        ]
    };
    let candidate = || {
        prop_oneof![
            8 => object(vec![(word("content"), content().boxed()), (word("finishReason"), word("STOP").boxed())]),
            1 => object(vec![(word("content"), content().boxed()), (word("content"), content().boxed())]),
            1 => Just("null".to_owned()),
        ]
    };
    let candidates = || {
        proptest::collection::vec(candidate(), 0..3).prop_map(|all| format!("[{}]", all.join(" ,")))
    };
    prop_oneof![
        8 => object(vec![
            (word("candidates"), candidates().boxed()),
            (word("usageMetadata"), Just("{\"promptTokenCount\":1}".to_owned()).boxed()),
        ]),
        1 => object(vec![(word("candidates"), candidates().boxed()), (word("candidates"), candidates().boxed())]),
        1 => object(vec![(word("promptFeedback"), Just("{\"blockReason\":\"OTHER\"}".to_owned()).boxed())]),
    ]
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let telling = prop::sample::select(&b"{}[]\",:\\u= -_AZ09\x00\x1f\n\xc3\xa4\xed\xff"[..]);
    prop_oneof![
        (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), telling.clone()])
            .prop_map(|(at, b)| Mutation::Flip(at, b)),
        any::<prop::sample::Index>().prop_map(Mutation::Cut),
        (any::<prop::sample::Index>(), proptest::collection::vec(telling, 1..4))
            .prop_map(|(at, b)| Mutation::Insert(at, b)),
        any::<prop::sample::Index>().prop_map(Mutation::Remove),
    ]
}

fn mutate(body: &mut Vec<u8>, mutation: &Mutation) {
    if body.is_empty() {
        return;
    }
    match mutation {
        Mutation::Flip(at, b) => *at.get_mut(body) = *b,
        Mutation::Cut(at) => body.truncate(at.index(body.len())),
        Mutation::Insert(at, bytes) => {
            let at = at.index(body.len());
            body.splice(at..at, bytes.iter().copied());
        }
        Mutation::Remove(at) => {
            body.remove(at.index(body.len()));
        }
    }
}

fn sorted(cuts: &[prop::sample::Index], len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_scanner_reads_what_serde_json_reads(
        body in answer(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        assert_alike(body.as_bytes(), &sorted(&cuts, body.len()));
    }

    #[test]
    fn the_scanner_refuses_what_serde_json_refuses(
        body in answer(),
        mutations in proptest::collection::vec(mutation(), 1..4),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut body = body.into_bytes();
        mutations.iter().for_each(|mutation| mutate(&mut body, mutation));
        // What begins like an event is read as one, and a byte order mark is passed over: neither
        // is serde_json's business.
        let first = body.iter().find(|b| !b.is_ascii_whitespace());
        prop_assume!(!first.is_some_and(|b| b":deir\xEF".contains(b)));
        assert_alike(&body, &sorted(&cuts, body.len()));
    }

    #[test]
    fn every_split_comes_to_the_same(
        body in answer(),
        mutations in proptest::collection::vec(mutation(), 0..2),
    ) {
        let mut body = format!("data: {body}\n\ndata: {body}").into_bytes();
        mutations.iter().for_each(|mutation| mutate(&mut body, mutation));
        let whole = scan_cut(Scanner::decoding(Framing::Sse), &body, &[]);
        let step = body.len() / 50 + 1;
        for cut in (0..=body.len()).step_by(step) {
            prop_assert_eq!(&scan_cut(Scanner::decoding(Framing::Sse), &body, &[cut]), &whole);
        }
        let all: Vec<usize> = (0..body.len()).collect();
        prop_assert_eq!(&scan_cut(Scanner::decoding(Framing::Sse), &body, &all), &whole);
    }

    #[test]
    fn stripped_answers_are_json_with_the_final_images_alone(body in answer()) {
        let Ok(answer) = scan_cut(Scanner::decoding(Framing::Whole), body.as_bytes(), &[]) else { return Ok(()) };
        let left = strip_drafts([Bytes::from(body.clone())], &answer).concat();
        prop_assert!(serde_json::from_slice::<Value>(&left).is_ok(), "{}", body);
        // What a repeated list took back stays where it was, and counts as little as before.
        let again = scan_cut(Scanner::decoding(Framing::Whole), &left, &[]).unwrap();
        let bytes = |answer: Answer| finals(answer).map(|image| image.bytes).collect::<Vec<_>>();
        let (images, again) = (again.images, bytes(again));
        prop_assert_eq!(images as usize, again.len());
        prop_assert_eq!(again, bytes(answer));
    }
}
