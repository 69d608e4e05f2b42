//! The subcommand `explain` as its users meet it.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that cannot go on says where")]

use std::io::{self, Write};

use serde_json::{Value, json};
use tower_gemini_gateway::explain;

fn run(args: &[&str], mut input: &[u8]) -> (u8, String, String) {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = explain::app(&args, &mut input, &mut out, &mut err);
    (code, String::from_utf8(out).expect("UTF-8"), String::from_utf8(err).expect("UTF-8"))
}

fn lines(input: &[u8]) -> Vec<Value> {
    let (code, out, err) = run(&["--jsonl"], input);
    assert_eq!((code, err.as_str()), (0, ""));
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

const OVERLOADED: &str =
    r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;

#[test]
fn a_pasted_answer_is_told_in_plain_words() {
    let whole = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 7\r\n\r\n{OVERLOADED}"
    );
    let (code, out, _) = run(&[], whole.as_bytes());
    assert_eq!(code, 0);
    assert!(
        out.contains("overloaded")
            && out.contains("7 s, says a Retry-After header")
            && out.contains("charged       no\n"),
        "{out}"
    );

    let (_, bare, _) = run(&["--status", "503"], b"<html>busy</html>");
    assert!(bare.starts_with("what          overloaded\n"), "{bare}");
    let (_, body_only, _) =
        run(&["--status=429"], br#"{"error":{"code":429,"message":"Quota exceeded, limit: 0"}}"#);
    assert!(
        body_only.contains("quota_zero_or_billing") && !body_only.contains("wait  "),
        "{body_only}"
    );
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    assert_eq!(run(&["--help"], b"").0, 0);
    assert!(run(&["--help"], b"").1.contains("--jsonl"));
    for args in
        [&["--what"][..], &["--status"], &["--status", "abc"], &["--jsonl", "--status", "429"], &[]]
    {
        let (code, out, err) = run(args, b"");
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(err.starts_with("explain: "), "{args:?}");
    }
}

#[test]
fn one_object_a_line_gives_one_object_a_line() {
    let input = [
        json!({"id": "a", "http_status": 503, "headers": {}, "body": OVERLOADED}),
        json!({"id": 2, "http_status": null, "body": OVERLOADED}),
        json!({"http_status": 429, "headers": {"retry-after": "7"}, "body": r#"{"error":{"code":429,"message":"Please retry in 56.185908122s."}}"#}),
        json!({"http_status": 200, "body": r#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}]}"#}),
        json!({"http_status": "200", "body": {"promptFeedback": {"blockReason": "SAFETY"}}}),
    ];
    let input: Vec<String> = input.iter().map(Value::to_string).collect();
    let found = lines(input.join("\n").as_bytes());
    assert_eq!(found.len(), 5);
    assert_eq!(found[0]["id"], "a");
    assert_eq!(found[1]["id"], 2);
    for line in &found[..2] {
        assert_eq!(
            (&line["kind"], &line["retryable_same_model"], &line["billed"]),
            (&json!("overloaded"), &json!(true), &json!("no"))
        );
    }
    assert_eq!(found[2]["wait_hint_s"], json!(56.185908122));
    assert_eq!(found[3]["kind"], "content_blocked_billed");
    assert_eq!(found[4]["kind"], "prompt_blocked");
    let keys: Vec<_> = found[2].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["billed", "fallback_model_helps", "kind", "retryable_same_model", "wait_hint_s", "why"]
    );
}

#[test]
fn a_bad_line_is_told_and_the_rest_goes_on() {
    let mut input =
        b"not json\n\n[1]\n{\"http_status\": 99999, \"body\": \"\"}\n{\"headers\": 5}\n\xff\xfe\n"
            .to_vec();
    input.extend_from_slice(br#"{"http_status": 503, "body": ""}"#);
    let found = lines(&input);
    let codes: Vec<_> = found
        .iter()
        .map(|line| (line["error"]["code"].as_str().unwrap_or("-"), line["line"].as_u64()))
        .collect();
    assert_eq!(
        codes,
        [
            ("not_json", Some(1)),
            ("not_an_object", Some(3)),
            ("bad_status", Some(4)),
            ("bad_headers", Some(5)),
            ("not_utf8", Some(6)),
            ("-", None),
        ]
    );
    assert_eq!(found[5]["kind"], "overloaded");
}

/// Endless blanks: a line that is too long must be dropped, not collected.
struct LongLine {
    left: usize,
    tail: &'static [u8],
}

impl io::Read for LongLine {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.left);
        if count > 0 {
            buffer[..count].fill(b'x');
            self.left -= count;
            return Ok(count);
        }
        let count = buffer.len().min(self.tail.len());
        let (now, later) = self.tail.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.tail = later;
        Ok(count)
    }
}

#[test]
fn a_huge_line_is_dropped_with_an_error() {
    let input =
        LongLine { left: 65 * 1024 * 1024, tail: b"\n{\"http_status\": 404, \"body\": \"\"}\n" };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(
        explain::app(&["--jsonl".to_owned()], &mut io::BufReader::new(input), &mut out, &mut err),
        0
    );
    let out = String::from_utf8(out).unwrap();
    let found: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found[0]["error"]["code"], "line_too_long");
    assert_eq!(found[1]["kind"], "not_found");
}

struct ClosedPipe;

impl Write for ClosedPipe {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let mut err = Vec::new();
    let line = b"{\"http_status\": 503, \"body\": \"\"}\n";
    assert_eq!(explain::app(&["--jsonl".to_owned()], &mut &line[..], &mut ClosedPipe, &mut err), 0);
    assert!(err.is_empty());
}

#[test]
fn the_upstream_decides_what_an_unexplained_failure_cost() {
    let charged = |args: &[&str]| {
        let (code, out, err) = run(&[args, &["--status", "502"]].concat(), b"no words of Google's");
        assert_eq!(code, 0, "{err}");
        let line = out.lines().find(|line| line.starts_with("charged")).expect("a line").to_owned();
        (line, out)
    };
    assert_eq!(charged(&[]).0, "charged       not known");
    let (line, out) = charged(&["--upstream", "google"]);
    assert_eq!(line, "charged       no");
    assert!(out.contains("rules         google: Gemini API billing FAQ"), "{out}");
    assert_eq!(charged(&["--upstream=generativelanguage.googleapis.com"]).0, "charged       no");
    assert_eq!(charged(&["--upstream=relay.example"]).0, "charged       not known");
    let (code, _, err) = run(&["--upstream", "gogle"], b"x");
    assert_eq!(code, 2);
    assert!(err.contains("google, vertex, laozhang, apiyi, unknown"), "{err}");

    let row = |upstream: &str| {
        json!({"http_status": 502, "body": "x", "upstream": upstream}).to_string() + "\n"
    };
    assert_eq!(lines(row("google").as_bytes())[0]["billed"], "no");
    assert_eq!(lines(row("unknown").as_bytes())[0]["billed"], "unknown");
    assert_eq!(lines(row("gogle").as_bytes())[0]["error"]["code"], "no_such_upstream");
}

#[test]
fn a_refusal_names_its_cause_and_what_to_write_instead() {
    let lowercase = json!({"http_status": 400, "body": {"error": {"code": 400, "status": "INVALID_ARGUMENT",
        "message": "Invalid value at 'generation_config.image_config.image_size' (\"2k\")"}}});
    let row = &lines((lowercase.to_string() + "\n").as_bytes())[0];
    assert!(row["cause"].as_str().expect("a cause").contains("image size"), "{row}");
    assert!(row["instead"].as_str().expect("a remedy").contains("capital K"), "{row}");
    let (_, out, _) = run(&[], br#"{"candidates":[{"finishReason":"IMAGE_PROHIBITED_CONTENT"}]}"#);
    assert!(out.contains("instead       describe the looks"), "{out}");
    assert!(lines(b"{\"http_status\": 503, \"body\": \"\"}\n")[0].get("cause").is_none());
}

#[test]
fn an_interaction_that_goes_on_is_to_be_fetched_and_not_sent_again() {
    let running = r#"{"id":"v1_a","object":"interaction","status":"in_progress"}"#;
    let (_, out, _) = run(&[], running.as_bytes());
    assert!(out.contains("fetch it by its id"), "{out}");
    let row = json!({"http_status": 200, "body": running, "api": "interactions"});
    let row = &lines((row.to_string() + "\n").as_bytes())[0];
    assert_eq!((&row["retryable_same_model"], &row["billed"]), (&json!(false), &json!("unknown")));
}

#[test]
fn a_wait_that_the_server_does_not_state_is_no_hint() {
    let body = json!({"error": {"code": 400, "status": "FAILED_PRECONDITION",
        "message": "Service agents are being provisioned. So please try again in a few minutes."}});
    let row = json!({"http_status": 400, "body": body});
    let row = &lines((row.to_string() + "\n").as_bytes())[0];
    assert_eq!((&row["retryable_same_model"], &row["wait_hint_s"]), (&json!(true), &json!(null)));
    let (_, out, _) = run(&["--status", "400"], body.to_string().as_bytes());
    assert!(out.contains("60 s, says an estimate of ours"), "{out}");
}

#[test]
fn a_file_is_read_as_standard_input_is_and_a_recorded_line_is_judged_as_one() {
    let file = std::env::temp_dir().join(format!("explain-{}.json", std::process::id()));
    let line = json!({"id": 7, "http_status": 429, "headers": {"retry-after": "7"}, "body": "x"});
    std::fs::write(&file, line.to_string()).unwrap();
    let path = file.to_str().unwrap();
    let (code, out, _) = run(&[path], b"");
    assert_eq!(code, 0);
    assert!(out.starts_with("what          rate_limit_unknown") && out.contains("7 s"), "{out}");
    let (_, out, _) = run(&["--json", path], b"");
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["id"], &found["billed"]), (&json!(7), &json!("no")));
    std::fs::remove_file(&file).unwrap();
    let (code, _, err) = run(&[path], b"");
    assert_eq!(code, 2);
    assert!(err.contains(path), "{err}");
    let (_, out, _) = run(&["--json", "-"], OVERLOADED.as_bytes());
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["kind"], "overloaded");
}
