//! Explains responses of the Gemini image API: what each means, what it cost, and what to do.
//!
//! [`app`] is the whole program over any reader and writers, so that a test runs it. [`explain`]
//! judges one response.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde_json::{Map, Number, Value, json};
use tower_gemini_core::call::{Call, Dialect, Verb};
use tower_gemini_core::charge_rules::ChargeRules;
use tower_gemini_core::classify::{classify, classify_without_status, remedy};
use tower_gemini_core::verdict::{Charge, Outcome, Verdict, WaitSource};

/// A 4K image is some 20 MB of base64, and an answer holds up to three of them.
const MAX_INPUT: usize = 64 * 1024 * 1024;

const HELP: &str = "\
explain: what an answer of the Gemini image API means, and what to do

USAGE
    explain [--status CODE] [--upstream WHO]   read one answer from stdin, print it in plain words
    explain --jsonl [--upstream WHO]           read one JSON object a line, write one JSON object a line

INPUT OF THE PLAIN FORM
    Either a bare body, or a whole answer: a status line (HTTP/1.1 429 Too Many Requests), headers, a blank line, the body.
    Without a status the body has to say what it is.

INPUT OF --jsonl
    http_status   the status of the answer; null or absent where it is not known
    headers       an object of strings (optional)
    body          the body, as a string
    id            anything; it is given back (optional)
    method, path  the request, for what was asked (optional; an image is assumed)
    api           gemini, vertex, imagen, openai-compat, interactions or proxy (optional)
    upstream      who sent the answer, as with --upstream (optional)

OUTPUT OF --jsonl
    kind                  what it means, in one word
    retryable_same_model  whether the same request may do better later, without having been paid for
    wait_hint_s           how long the server asks to wait, in seconds as stated, or null
    fallback_model_helps  whether another model of the same account may answer
    billed                yes, no or unknown
    why                   a sentence
    cause, instead        what the request did wrong and what to write instead; only where it is known

    A line that cannot be read gives {\"error\": {...}, \"line\": N}, and the rest goes on.

OPTIONS
    --status CODE    the HTTP status of the pasted answer
    --upstream WHO   who sent it, by name (google, vertex, laozhang, apiyi, unknown) or by host: whose rules say
                     what a failure costs that Google did not report itself. Default: unknown, which is careful
    --jsonl          work on lines of JSON
    -h, --help       print this
";

/// Runs the program. The result is the exit code: 0, or 2 where the arguments or the input make no
/// sense.
pub fn app(
    args: &[String],
    mut input: impl BufRead,
    mut output: impl Write,
    mut errors: impl Write,
) -> u8 {
    let done = match Options::parse(args) {
        Ok(Options { help: true, .. }) => output.write_all(HELP.as_bytes()).map(|()| 0),
        Ok(Options { jsonl: true, rules, .. }) => lines(&mut input, &mut output, rules).map(|()| 0),
        Ok(options) => one(&mut input, &mut output, &mut errors, &options),
        Err(message) => writeln!(errors, "explain: {message}\n\nTry --help.").map(|()| 2),
    };
    match done.and_then(|code| output.flush().map(|()| code)) {
        Ok(code) => code,
        // The reader of our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            // Nothing is left to tell it to if this fails too.
            let _ = writeln!(errors, "explain: {error}");
            2
        }
    }
}

#[derive(Default)]
struct Options {
    help: bool,
    jsonl: bool,
    status: Option<StatusCode>,
    rules: Option<ChargeRules>,
}

/// The charge rules of an upstream, by its name or its host.
fn rules_of(upstream: &str) -> Result<ChargeRules, String> {
    match ChargeRules::named(upstream) {
        Some(rules) => Ok(rules),
        None if upstream.contains(['.', ':']) => Ok(ChargeRules::for_host(upstream)),
        None => {
            let names: Vec<_> = ChargeRules::all().map(ChargeRules::name).collect();
            Err(format!("no upstream {upstream:?}: name one of {} or a host", names.join(", ")))
        }
    }
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg.as_str(), None),
            };
            match name {
                "-h" | "--help" => options.help = true,
                "--jsonl" => options.jsonl = true,
                "--status" => {
                    let code = value.or_else(|| args.next().map(String::as_str));
                    let code = code.ok_or("--status needs a code, such as 429")?;
                    options.status =
                        Some(code.parse().map_err(|_| format!("{code:?} is no HTTP status"))?);
                }
                "--upstream" => {
                    let who = value.or_else(|| args.next().map(String::as_str));
                    options.rules =
                        Some(rules_of(who.ok_or("--upstream needs a name or a host")?)?);
                }
                _ => return Err(format!("unknown argument {arg:?}")),
            }
        }
        if options.jsonl && options.status.is_some() {
            return Err(
                "--status belongs to the plain form; with --jsonl each line has its http_status"
                    .to_owned(),
            );
        }
        Ok(options)
    }
}

/// The plain form.
fn one(
    input: &mut impl BufRead,
    output: &mut impl Write,
    errors: &mut impl Write,
    options: &Options,
) -> io::Result<u8> {
    let status = options.status;
    let mut bytes = Vec::new();
    input.take(MAX_INPUT as u64).read_to_end(&mut bytes)?;
    if bytes.trim_ascii().is_empty() && status.is_none() {
        writeln!(errors, "explain: nothing on stdin. Paste an answer, or try --help.")?;
        return Ok(2);
    }
    let pasted = Pasted::read(&bytes);
    let mut call = image_call();
    call.charge_rules = options.rules.unwrap_or_default();
    let verdict = explain(&call, status.or(pasted.status), &pasted.headers, pasted.body);
    output.write_all(in_words(&verdict).as_bytes())?;
    if let Some(rules) = options.rules {
        let date = if rules.date().is_empty() { "" } else { ", " };
        writeln!(
            output,
            "{:<14}{}: {}{date}{}",
            "rules",
            rules.name(),
            rules.source(),
            rules.date()
        )?;
    }
    Ok(0)
}

/// Judges one answer; without a status, by its body.
#[must_use]
pub fn explain(
    call: &Call,
    status: Option<StatusCode>,
    headers: &HeaderMap,
    body: &[u8],
) -> Verdict {
    match status {
        Some(status) => classify(call, status, headers, body),
        None => classify_without_status(call, headers, body),
    }
}

/// What is assumed of a request that is not known: it wants an image.
fn image_call() -> Call {
    let mut call = Call::unrecognised();
    call.wants_image = true;
    call.images = 1;
    call
}

/// An answer as pasted: a whole one with its head, or a bare body.
struct Pasted<'a> {
    status: Option<StatusCode>,
    headers: HeaderMap,
    body: &'a [u8],
}

impl<'a> Pasted<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let bare = Self { status: None, headers: HeaderMap::new(), body: bytes };
        let start = bytes.trim_ascii_start();
        if !start.starts_with(b"HTTP/") {
            return bare;
        }
        let (line, mut rest) = split_line(start);
        let code = line.split(|b| *b == b' ').filter(|word| !word.is_empty()).nth(1);
        let Some(status) = code.and_then(|code| StatusCode::from_bytes(code).ok()) else {
            return bare;
        };
        let mut headers = HeaderMap::new();
        while !rest.is_empty() {
            let (line, after) = split_line(rest);
            rest = after;
            if line.is_empty() {
                break;
            }
            if let Some(at) = line.iter().position(|b| *b == b':')
                && let Ok(name) = HeaderName::from_bytes(line[..at].trim_ascii())
                && let Ok(value) = HeaderValue::from_bytes(line[at + 1..].trim_ascii())
            {
                headers.append(name, value);
            }
        }
        Self { status: Some(status), headers, body: rest }
    }
}

fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    (line, bytes.get(end + 1..).unwrap_or_default())
}

/// The form with one JSON object a line.
fn lines(
    input: &mut impl BufRead,
    output: &mut impl Write,
    rules: Option<ChargeRules>,
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut number = 0u64;
    while let Some(is_whole) = read_line(input, &mut line)? {
        number += 1;
        let text = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line).trim_ascii();
        if is_whole && text.is_empty() {
            continue;
        }
        let too_long = || format!("the line is longer than {MAX_INPUT} bytes");
        let answer = match is_whole {
            true => explain_line(text, rules),
            false => Err(Unreadable::new("line_too_long", too_long())),
        };
        let answer = answer.unwrap_or_else(
            |why| json!({"error": {"code": why.code, "message": why.message}, "line": number}),
        );
        serde_json::to_writer(&mut *output, &answer)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

/// Reads a line; returns whether it was short enough, or `None` at the end. The rest of a line that
/// is too long is read and dropped.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    if input.by_ref().take(MAX_INPUT as u64 + 1).read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    if line.ends_with(b"\n") || line.len() <= MAX_INPUT {
        return Ok(Some(true));
    }
    *line = Vec::new();
    input.skip_until(b'\n')?;
    Ok(Some(false))
}

/// Why a line could not be explained.
struct Unreadable {
    code: &'static str,
    message: String,
}

impl Unreadable {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

fn explain_line(line: &[u8], rules: Option<ChargeRules>) -> Result<Value, Unreadable> {
    let text = std::str::from_utf8(line)
        .map_err(|error| Unreadable::new("not_utf8", format!("the line is not UTF-8: {error}")))?;
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Unreadable::new("not_json", format!("the line is not JSON: {error}")))?;
    let Value::Object(object) = value else {
        return Err(Unreadable::new("not_an_object", "the line is not a JSON object"));
    };
    let status = status_of(object.get("http_status"))?;
    let headers = headers_of(object.get("headers"))?;
    let printed;
    let body = match object.get("body") {
        Some(Value::String(body)) => body.as_str(),
        None | Some(Value::Null) => "",
        // A body that was parsed on the way here.
        Some(other) => {
            printed = other.to_string();
            &printed
        }
    };
    let mut call = call_of(&object);
    call.charge_rules = match object.get("upstream").and_then(Value::as_str) {
        Some(who) => rules_of(who).map_err(|why| Unreadable::new("no_such_upstream", why))?,
        None => rules.unwrap_or_default(),
    };
    let verdict = explain(&call, status, &headers, body.as_bytes());
    let mut answer = Map::new();
    if let Some(id) = object.get("id") {
        answer.insert("id".to_owned(), id.clone());
    }
    answer.insert("kind".to_owned(), kind(verdict.outcome()).into());
    answer.insert("retryable_same_model".to_owned(), verdict.is_retryable().into());
    answer.insert(
        "wait_hint_s".to_owned(),
        match verdict.wait() {
            Some(wait) if wait.source() != WaitSource::Estimate => seconds(wait.stated()),
            _ => Value::Null,
        },
    );
    answer.insert("fallback_model_helps".to_owned(), verdict.another_model_helps().into());
    answer.insert("billed".to_owned(), billed(verdict.charge()).into());
    answer.insert("why".to_owned(), why(&verdict).into());
    if let Some(remedy) = remedy(&verdict) {
        answer.insert("cause".to_owned(), remedy.cause.into());
        answer.insert("instead".to_owned(), remedy.instead.into());
    }
    Ok(Value::Object(answer))
}

fn status_of(status: Option<&Value>) -> Result<Option<StatusCode>, Unreadable> {
    let text = match status {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.trim().to_owned(),
        Some(other) => other.to_string(),
    };
    text.parse().map(Some).map_err(|_| {
        Unreadable::new("bad_status", "http_status is neither null nor an HTTP status")
    })
}

fn headers_of(headers: Option<&Value>) -> Result<HeaderMap, Unreadable> {
    let mut map = HeaderMap::new();
    let headers = match headers {
        None | Some(Value::Null) => return Ok(map),
        Some(Value::Object(headers)) => headers,
        Some(_) => return Err(Unreadable::new("bad_headers", "headers is not an object")),
    };
    for (name, value) in headers {
        for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // A header that could not have been sent is not worth a failed line.
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
                && let Ok(value) = HeaderValue::from_str(&text)
            {
                map.append(name, value);
            }
        }
    }
    Ok(map)
}

fn call_of(object: &Map<String, Value>) -> Call {
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    if let Some(uri) = text("path").and_then(|path| path.parse::<Uri>().ok()) {
        let method = text("method").and_then(|method| method.parse().ok()).unwrap_or(Method::POST);
        let call = Call::parse(&method, &uri, &HeaderMap::new(), None);
        if call.dialect != Dialect::Unrecognised {
            return call;
        }
    }
    let mut call = image_call();
    (call.dialect, call.verb) = match text("api") {
        Some("gemini") => (Dialect::GeminiApi, Verb::Generate),
        Some("vertex") => (Dialect::VertexAi, Verb::Generate),
        Some("imagen") => (Dialect::GeminiApi, Verb::Predict),
        Some("openai-compat" | "openai") => (Dialect::OpenAiChat, Verb::Generate),
        Some("interactions") => (Dialect::Interactions, Verb::Generate),
        _ => (Dialect::Unrecognised, Verb::Other),
    };
    call
}

/// The word of an outcome. Six outcomes are finer than the words that are promised here.
fn kind(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered => "success",
        Outcome::ContentBlocked => "content_blocked_billed",
        Outcome::OutOfTokens => "no_image",
        Outcome::SpendRateLimited => "rate_limit_unknown",
        Outcome::Interrupted => "stream_error",
        Outcome::NotSent => "other",
        outcome => outcome.as_str(),
    }
}

fn billed(charge: Charge) -> &'static str {
    match charge {
        Charge::None | Charge::Waived => "no",
        Charge::Charged => "yes",
        Charge::Maybe => "unknown",
    }
}

/// Seconds as a JSON number with the digits that were stated, and none that arithmetic on floats
/// would add.
fn seconds(span: Duration) -> Value {
    let text = decimal(span);
    if let Ok(whole) = text.parse::<u64>() {
        return whole.into();
    }
    text.parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

fn decimal(span: Duration) -> String {
    let text = format!("{}.{:09}", span.as_secs(), span.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What an outcome means, and what to do about it.
fn advice(verdict: &Verdict) -> (&'static str, &'static str) {
    match verdict.outcome() {
        Outcome::Image => ("there is an image", "use it; it is paid for"),
        Outcome::Answered => ("it is a complete answer", "use it"),
        Outcome::NoImage => match verdict.charge() {
            Charge::Charged => (
                "no image came, and tokens were paid for",
                "change the prompt rather than repeat it; each try costs again",
            ),
            Charge::Waived => (
                "no image came, and the server says it charges nothing",
                "try once or twice more, then reword the prompt",
            ),
            _ => (
                "no image came, and it is not known what that cost",
                "reword the prompt, or try again if the cost does not matter",
            ),
        },
        Outcome::OutOfTokens => (
            "the output tokens ran out before an image was made",
            "raise maxOutputTokens or lower the thinking level",
        ),
        Outcome::ContentBlocked => (
            "the result was refused after it was made",
            "change the prompt; the same one is refused and paid for again",
        ),
        Outcome::PromptBlocked => {
            ("the prompt was refused", "change the prompt; no model takes it as it is")
        }
        Outcome::StreamError | Outcome::Interrupted if verdict.is_retryable() => {
            ("the answer broke off", "treat it as failed; a new try may be charged once more")
        }
        Outcome::StreamError | Outcome::Interrupted => (
            "the answer broke off, and a new try would cost again or fail again",
            "treat it as failed and look at the cause",
        ),
        Outcome::RateLimitedMinute => {
            ("a limit of this minute is used up", "wait, or use another model")
        }
        Outcome::RateLimitedDay => (
            "a limit of this day is used up",
            "use another model, or wait for midnight Pacific; short hints are wrong here",
        ),
        Outcome::RateLimited => (
            "some limit is used up, and the answer does not say which",
            "wait, or use another model",
        ),
        Outcome::SpendRateLimited => (
            "the account spends faster than its tier allows",
            "send nothing for ten minutes; other models are closed too",
        ),
        Outcome::QuotaZeroOrBilling => (
            "there is no quota, or nobody pays",
            "set up billing, add credit or raise the cap; waiting changes nothing",
        ),
        Outcome::Overloaded => (
            "the model has no capacity right now",
            "wait with growing pauses, or use another model at once",
        ),
        Outcome::Deadline => (
            "the server gave up at its deadline",
            "try again, at a smaller size or with a longer deadline",
        ),
        Outcome::Internal => {
            ("the service failed", "try again a few times, then use another model")
        }
        Outcome::Cancelled => (
            "the service cancelled it, which it does under load",
            "try again a few times; whether a try was charged is not known",
        ),
        Outcome::BadGateway if verdict.charge().is_surely_free() => {
            ("a gateway in front of the service failed", "try again shortly")
        }
        Outcome::BadGateway => (
            "a gateway in front of the service failed, and does not know what became of the request",
            "look whether it was charged before you send it again",
        ),
        Outcome::BadRequest => {
            ("the request is wrong", "correct it; it fails the same way each time")
        }
        Outcome::PayloadTooLarge => {
            ("the request is too large", "send smaller or fewer images, or upload them as files")
        }
        Outcome::MissingThoughtSignature => (
            "the conversation lacks a thought signature",
            "send back every signature as it was received, on its own part",
        ),
        Outcome::Region => {
            ("the caller's place is not served", "call from a place that is, or through Vertex AI")
        }
        Outcome::Auth => ("the key or token is wrong", "replace it"),
        Outcome::Permission => (
            "the key may not do this",
            "grant the permission, enable the API, or use another project",
        ),
        Outcome::NotFound if verdict.another_model_helps() => {
            ("there is no such model here", "correct the model's id, or use another model")
        }
        Outcome::NotFound => (
            "there is nothing at this address",
            "correct the address or the name; another model does not help",
        ),
        Outcome::NotSent => ("it was never sent", "send it again"),
        _ => ("it is nothing that is known", "look at the body"),
    }
}

/// One sentence for machines to log.
fn why(verdict: &Verdict) -> String {
    let (means, _) = advice(verdict);
    match verdict.reason() {
        Some(reason) => format!("{means} ({reason})"),
        None => means.to_owned(),
    }
}

/// The plain form's output.
fn in_words(verdict: &Verdict) -> String {
    let (means, todo) = advice(verdict);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut say = |label: &str, words: &str| {
        let _ = writeln!(text, "{label:<14}{words}");
    };
    say("what", kind(verdict.outcome()));
    say("means", means);
    match remedy(verdict) {
        Some(remedy) => {
            say("cause", remedy.cause);
            say("instead", remedy.instead);
        }
        None => say("do", todo),
    }
    say(
        "charged",
        match verdict.charge() {
            Charge::None => "no",
            Charge::Waived => "no, the answer says so",
            Charge::Charged => "yes",
            Charge::Maybe => "not known",
        },
    );
    say(
        "same model",
        if verdict.is_retryable() {
            "may do better later"
        } else {
            "will not do better, or has been paid for"
        },
    );
    say("other model", if verdict.another_model_helps() { "may answer" } else { "will not help" });
    if let Some(wait) = verdict.wait() {
        let source = match wait.source() {
            WaitSource::RetryInfo => "RetryInfo",
            WaitSource::Message => "the message",
            WaitSource::QuotaResetDelay => "quotaResetDelay",
            WaitSource::ResetText => "the reset text",
            WaitSource::RetryAfter => "a Retry-After header",
            WaitSource::Page => "the page",
            WaitSource::Family => "the documented window",
            WaitSource::Body => "retry_after in the body",
            WaitSource::Estimate => "an estimate: the service says that it passes",
            _ => "the answer",
        };
        say("wait", &format!("{} s, says {source}", decimal(wait.stated())));
    }
    if let Some(detail) = verdict.detail() {
        if let Some(reason) = &detail.reason {
            say("reason", reason);
        }
        if let Some(status) = detail.inner_status {
            say("inner status", &status.to_string());
        }
        if let Some(quota) = &detail.quota {
            let limit =
                quota.value.map_or_else(|| "not stated".to_owned(), |value| value.to_string());
            let name = quota.id.as_deref().or(quota.metric.as_deref()).unwrap_or("not named");
            say("quota", &format!("{name}, limit {limit}"));
        }
        if let Some(successor) = &detail.successor {
            say("use instead", successor);
        }
        if let Some(message) = &detail.message {
            say("server says", &message.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    text
}
