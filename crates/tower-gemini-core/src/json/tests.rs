use super::*;
use proptest::prelude::*;

#[test]
fn a_value_is_read_and_replaced_where_it_stands() {
    let body =
        Bytes::from_static(br#"{"generation_config": {"imageConfig": {"image_size": "4K"}}}"#);
    let (mut size, mut span) = (None, 0..0);
    Cursor::new(&body).object(|c, name| match name {
        // Names are in camel case, however the text spells them.
        b"generationConfig" => c.object(|c, _| {
            c.object(|c, _| {
                let start = c.position();
                size = c.text().and_then(|text| text.decoded());
                span = start..c.position_after();
            });
        }),
        _ => c.skip(),
    });
    assert_eq!(size.as_deref(), Some("4K"));

    let mut edits = Edits::default();
    edits.replace(span, "\"2K\"");
    let body = edits.apply(&body).concat();
    assert_eq!(body, br#"{"generation_config": {"imageConfig": {"image_size": "2K"}}}"#);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_members_can_be_taken_out_and_put_in(
        count in 0usize..6, gone in proptest::collection::vec(any::<bool>(), 6), new in 0usize..3, spaced in any::<bool>(),
    ) {
        let (comma, colon) = if spaced { (" ,\n", " : ") } else { (",", ":") };
        let entries: Vec<_> = (0..count).map(|i| format!("\"k{i}\"{colon}{{\"a\":[{i},\"}}\\\"\"]}}")).collect();
        let text = Bytes::from(format!("{{ {} }}", entries.join(comma)));
        let root = Cursor::new(&text).span();
        let members = Cursor::new(&text).members().unwrap();
        prop_assert_eq!(members.len(), count);
        let spans: Vec<_> = members.into_iter().map(|member| member.span).collect();
        let inserted: Vec<_> = (0..new).map(|i| format!("\"n{i}\":{i}")).collect();
        let mut edits = Edits::default();
        edits.reshape(&root, &spans, &gone[..count], &inserted);
        let out = edits.apply(&text).concat();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        let mut expected: Vec<_> = (0..count).filter(|i| !gone[*i]).map(|i| format!("k{i}")).collect();
        expected.extend((0..new).map(|i| format!("n{i}")));
        expected.sort();
        prop_assert_eq!(keys, expected);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(prop::sample::select(b"{}[]\",:\\a1 \n".to_vec()), 0..60)) {
        for at in 0..=bytes.len() {
            let _ = Cursor::at(&bytes, at).members();
            let _ = Cursor::at(&bytes, at).elements();
        }
    }
}

#[test]
fn names_are_read_in_both_spellings() {
    let json = br#"{"image_config":1,"imageConfig":2,"im\u0061ge":3,"\u005fa_b":4}"#;
    let members = Cursor::new(json).members().unwrap();
    let names: Vec<_> =
        members.iter().map(|member| (member.name.as_str(), member.is_snake)).collect();
    let expected = [("imageConfig", true), ("imageConfig", false), ("image", false)];
    assert_eq!(names[..3], expected);
    assert_eq!(names[3].0, "aB");
}

#[test]
fn a_value_is_broken_where_a_parser_would_stop() {
    for text in [
        "{\"a\":1",
        "{\"a\"",
        "{\"a\":}",
        "{\"a\":,}",
        "{\"a\" 1}",
        "{a:1}",
        "{,}",
        "{\"a\":1 2}",
        "{\"a\":\"",
        "[1",
        "[,]",
        "[1,,2]",
        "[:]",
        "",
        "}",
        "\"",
    ] {
        let cursor = Cursor::new(text.as_bytes());
        let is_array = text.starts_with('[');
        let is_read =
            if is_array { cursor.elements().is_some() } else { cursor.members().is_some() };
        assert!(!is_read, "{text}");
    }
    for text in ["{}", " { } ", "{\"a\":[1,{}],\"b\":null}", "\u{feff}{\"a\":1}", "1", "null"] {
        assert!(Cursor::new(text.as_bytes()).members().is_some(), "{text}");
    }
    assert_eq!(Cursor::new(b"[1, [2, 3] ,{}]").elements().unwrap(), [1..2, 4..10, 12..14]);
    let only = Cursor::new(b" {\"a\":1}").elements().unwrap();
    assert_eq!((only.len(), only[0].clone()), (1, 1..8), "its only element");
}

#[test]
fn nesting_of_any_depth_is_skipped_without_recursion() {
    let deep = format!("{{\"a\":{}1{}, \"b\":2}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let members = Cursor::new(deep.as_bytes()).members().unwrap();
    assert_eq!((members.len(), members[1].name.as_str()), (2, "b"));
    assert!(Cursor::new(&deep.as_bytes()[..1 << 20]).members().is_none());
}

#[test]
fn edits_that_overlap_or_reach_beyond_the_text_are_left_out() {
    let text = Bytes::from_static(b"0123456789");
    let mut edits = Edits::default();
    edits.replace(8..12, "x");
    edits.replace(3..5, "-");
    edits.replace(4..6, "x");
    edits.replace(5..5, "a");
    edits.replace(5..5, "b");
    assert_eq!(edits.apply(&text).concat(), b"012-ab56789");
}
