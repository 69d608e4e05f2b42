//! Explains responses of the Gemini image API: what each means, what it cost, and what to do.
//!
//! [`app`] is the subcommand `explain` as a program of its own, over any reader and writers;
//! `advice.toml` holds what to do about each outcome.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, Parser};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tower_gemini::call::{Call, Dialect, Verb};
use tower_gemini::charge_rules::ChargeRules;
use tower_gemini::classify::{classify, classify_without_status, remedy};
use tower_gemini::verdict::{Charge, Outcome, Verdict, WaitSource};

/// A 4K image is some 20 MB of base64, and a response holds up to three of them.
const MAX_INPUT: usize = 64 * 1024 * 1024;

/// What to explain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = include_str!("help.txt"))]
pub(crate) struct ExplainArgs {
    /// A file with the response, or - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// The HTTP status of the response
    #[arg(long, value_name = "CODE", conflicts_with = "jsonl")]
    status: Option<StatusCode>,
    /// Who sent it, by name (google, vertex, laozhang, apiyi, unknown) or by host: whose rules say
    /// what a failure costs that Google did not report itself; unknown, which is careful, by
    /// default
    #[arg(long, value_name = "NAME|HOST", value_parser = rules_of)]
    upstream: Option<ChargeRules>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
    /// Read one JSON object a line, write one JSON object a line
    #[arg(long, conflicts_with = "json")]
    jsonl: bool,
}

/// The subcommand as a program of its own.
#[derive(Debug, Parser)]
#[command(name = "explain", about = "Say what a response means, and what to do")]
struct Explain {
    #[command(flatten)]
    args: ExplainArgs,
}

/// Runs `gemini-gateway explain` with these arguments. The result is the exit code: 0, or 2 where
/// the arguments or the input make no sense.
///
/// ```
/// use tower_gemini_gateway::explain;
///
/// let (mut output, mut errors) = (Vec::new(), Vec::new());
/// let args = ["--status=503".to_owned()];
/// assert_eq!(explain::app(&args, &mut &b"busy"[..], &mut output, &mut errors), 0);
/// assert!(String::from_utf8(output)?.starts_with("what          overloaded"));
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
pub fn app(
    args: &[String],
    stdin: &mut dyn BufRead,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    let args = std::iter::once("explain").chain(args.iter().map(String::as_str));
    let written = match Explain::try_parse_from(args) {
        Ok(Explain { args }) => return run(&args, stdin, output, errors),
        Err(help) if !help.use_stderr() => write!(output, "{help}").map(|()| 0),
        Err(error) => write!(errors, "explain: {error}").map(|()| 2),
    };
    written.unwrap_or(2)
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

/// Runs the subcommand. The result is the exit code: 0, or 2 where the input makes no sense.
pub(crate) fn run(
    args: &ExplainArgs,
    stdin: &mut dyn BufRead,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    match explain_file(args, stdin, output).and_then(|()| output.flush()) {
        Ok(()) => 0,
        // The reader of our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            // Nothing is left to tell it to if this fails too.
            let _ = writeln!(errors, "explain: {error}");
            2
        }
    }
}

fn explain_file(
    args: &ExplainArgs,
    stdin: &mut dyn BufRead,
    output: &mut dyn Write,
) -> io::Result<()> {
    let mut file;
    let input = match args.file.as_os_str() == "-" {
        true => stdin,
        false => {
            let path = args.file.display();
            let opened = File::open(&args.file);
            file = BufReader::new(opened.map_err(|e| io::Error::other(format!("{path}: {e}")))?);
            &mut file as &mut dyn BufRead
        }
    };
    match args.jsonl {
        true => lines(input, output, args.upstream.unwrap_or_default()),
        false => one(input, output, args),
    }
}

/// Explains one response, or one line as `--jsonl` reads them.
fn one(input: &mut dyn BufRead, output: &mut dyn Write, args: &ExplainArgs) -> io::Result<()> {
    let mut bytes = Vec::new();
    input.take(MAX_INPUT as u64).read_to_end(&mut bytes)?;
    if bytes.trim_ascii().is_empty() && args.status.is_none() {
        return Err(io::Error::other("nothing to explain: paste a response, or see --help"));
    }
    let rules = args.upstream.unwrap_or_default();
    let record = recorded(&bytes).filter(|_| args.status.is_none());
    let (verdict, id) = match record {
        Some(object) => {
            let verdict = judge_record(&object, rules).map_err(|(_, why)| io::Error::other(why))?;
            (verdict, object.get("id").cloned())
        }
        None => (judge_pasted(&bytes, args.status, rules), None),
    };
    if args.json {
        return writeln!(output, "{:#}", as_json(&verdict, id));
    }
    output.write_all(as_text(&verdict).as_bytes())?;
    if let Some(rules) = args.upstream {
        let date = if rules.date().is_empty() { "" } else { ", " };
        let (name, source) = (rules.name(), rules.source());
        writeln!(output, "{:<14}{name}: {source}{date}{}", "rules", rules.date())?;
    }
    Ok(())
}

/// A recorded line: an object that has a response in it.
fn recorded(bytes: &[u8]) -> Option<Map<String, Value>> {
    let object: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    (object.contains_key("http_status") && object.contains_key("body")).then_some(object)
}

fn judge_pasted(bytes: &[u8], status: Option<StatusCode>, rules: ChargeRules) -> Verdict {
    let (pasted, headers, body) = whole_response(bytes).unwrap_or((None, HeaderMap::new(), bytes));
    let mut call = image_call();
    call.charge_rules = rules;
    judge(&call, status.or(pasted), &headers, body)
}

/// Judges one response; without a status, by its body.
fn judge(call: &Call, status: Option<StatusCode>, headers: &HeaderMap, body: &[u8]) -> Verdict {
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

/// Status, headers and body of a response that was pasted with its head; `None` for a bare body.
fn whole_response(bytes: &[u8]) -> Option<(Option<StatusCode>, HeaderMap, &[u8])> {
    let (line, mut rest) = split_line(bytes.trim_ascii_start().strip_prefix(b"HTTP/")?);
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let status = StatusCode::from_bytes(words.nth(1)?).ok()?;
    let mut headers = HeaderMap::new();
    while !rest.is_empty() {
        let (line, after) = split_line(rest);
        rest = after;
        if line.is_empty() {
            break;
        }
        if let Some(at) = line.iter().position(|byte| *byte == b':') {
            add(&mut headers, &line[..at], line[at + 1..].trim_ascii());
        }
    }
    Some((Some(status), headers, rest))
}

fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    (line, bytes.get(end + 1..).unwrap_or_default())
}

/// Adds a header, unless it could not have been sent: that is not worth a failed response.
fn add(headers: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let Ok(name) = HeaderName::from_bytes(name.trim_ascii())
        && let Ok(value) = HeaderValue::from_bytes(value)
    {
        headers.append(name, value);
    }
}

/// The form with one JSON object a line.
fn lines(input: &mut dyn BufRead, output: &mut dyn Write, rules: ChargeRules) -> io::Result<()> {
    let mut line = Vec::new();
    let mut number = 0u64;
    while let Some(is_whole) = read_line(input, &mut line)? {
        number += 1;
        let text = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line).trim_ascii();
        if is_whole && text.is_empty() {
            continue;
        }
        let explained = match is_whole {
            true => explain_line(text, rules),
            false => Err(("line_too_long", format!("the line is longer than {MAX_INPUT} bytes"))),
        };
        let explained = explained.unwrap_or_else(|(code, message)| {
            json!({ "error": { "code": code, "message": message }, "line": number })
        });
        serde_json::to_writer(&mut *output, &explained)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

/// Reads a line; returns whether it was short enough, or `None` at the end. The rest of a line that
/// is too long is read and dropped.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    if (&mut *input).take(MAX_INPUT as u64 + 1).read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    if line.ends_with(b"\n") || line.len() <= MAX_INPUT {
        return Ok(Some(true));
    }
    *line = Vec::new();
    input.skip_until(b'\n')?;
    Ok(Some(false))
}

/// Why a line could not be explained: a code and a message.
type Unreadable = (&'static str, String);

fn explain_line(line: &[u8], rules: ChargeRules) -> Result<Value, Unreadable> {
    let text = std::str::from_utf8(line)
        .map_err(|error| ("not_utf8", format!("the line is not UTF-8: {error}")))?;
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ("not_json", format!("the line is not JSON: {error}")))?;
    let Value::Object(object) = value else {
        return Err(("not_an_object", "the line is not a JSON object".to_owned()));
    };
    let verdict = judge_record(&object, rules)?;
    Ok(as_json(&verdict, object.get("id").cloned()))
}

fn judge_record(object: &Map<String, Value>, rules: ChargeRules) -> Result<Verdict, Unreadable> {
    let status = match object.get("http_status") {
        None | Some(Value::Null) => None,
        Some(status) => Some(string(status).trim().parse().map_err(|_| {
            ("bad_status", "http_status is neither null nor an HTTP status".to_owned())
        })?),
    };
    let headers = headers_of(object.get("headers"))?;
    // A body may have been parsed on the way here.
    let body = object.get("body").filter(|body| !body.is_null()).map(string).unwrap_or_default();
    let mut call = call_of(object);
    call.charge_rules = match object.get("upstream").and_then(Value::as_str) {
        Some(who) => rules_of(who).map_err(|why| ("no_such_upstream", why))?,
        None => rules,
    };
    Ok(judge(&call, status, &headers, body.as_bytes()))
}

/// What machines read of a verdict; `id` is the caller's.
fn as_json(verdict: &Verdict, id: Option<Value>) -> Value {
    // Only what the server states: an estimate of ours is none of its hints.
    let wait = verdict.wait().filter(|wait| wait.source() != WaitSource::Estimate);
    let wait = wait.and_then(|wait| serde_json::from_str(&decimal(wait.stated())).ok());
    let mut explained = json!({
        "kind": kind(verdict.outcome()),
        "retryable_same_model": verdict.is_retryable(),
        "wait_hint_s": wait.unwrap_or(Value::Null),
        "fallback_model_helps": verdict.another_model_helps(),
        "billed": billed(verdict.charge()),
        "why": why(verdict),
    });
    if let Some(remedy) = remedy(verdict) {
        explained["cause"] = remedy.cause.into();
        explained["instead"] = remedy.instead.into();
    }
    if let Some(id) = id {
        explained["id"] = id;
    }
    explained
}

/// A string, or another value as JSON.
fn string(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn headers_of(headers: Option<&Value>) -> Result<HeaderMap, Unreadable> {
    let mut map = HeaderMap::new();
    let headers = match headers {
        None | Some(Value::Null) => return Ok(map),
        Some(Value::Object(headers)) => headers,
        Some(_) => return Err(("bad_headers", "headers is not an object".to_owned())),
    };
    for (name, value) in headers {
        for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
            add(&mut map, name.as_bytes(), string(value).as_bytes());
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

pub(crate) fn billed(charge: Charge) -> &'static str {
    match charge {
        Charge::None | Charge::Waived => "no",
        Charge::Charged => "yes",
        Charge::Maybe => "unknown",
    }
}

/// Seconds with the digits that were stated, and none that arithmetic on floats would add.
fn decimal(span: Duration) -> String {
    let text = format!("{}.{:09}", span.as_secs(), span.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An entry of `advice.toml`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Advice {
    pub(crate) means: String,
    pub(crate) r#do: String,
}

static ADVICE: LazyLock<HashMap<String, Advice>> = LazyLock::new(|| {
    let read = toml::from_str(include_str!("advice.toml"));
    debug_assert!(read.is_ok(), "{read:?}");
    read.unwrap_or_default()
});

/// What an outcome means, and what to do about it.
pub(crate) fn advice(verdict: &Verdict) -> &'static Advice {
    static NONE: LazyLock<Advice> = LazyLock::new(Advice::default);
    let outcome = verdict.outcome().as_str();
    let reason = verdict.reason().unwrap_or_default();
    let conditions = [
        (!reason.is_empty(), reason.to_owned()),
        (verdict.charge().is_surely_free(), "free".to_owned()),
        (true, verdict.charge().to_string()),
        (verdict.is_retryable(), "retryable".to_owned()),
        (verdict.another_model_helps(), "other_model".to_owned()),
    ];
    let keys = conditions.into_iter().filter(|(holds, _)| *holds);
    let keys = keys.map(|(_, condition)| format!("{outcome}_{condition}"));
    let mut keys = keys.chain([outcome.to_owned(), "other".to_owned()]);
    keys.find_map(|key| ADVICE.get(&key)).unwrap_or(&NONE)
}

/// One sentence for machines to log.
fn why(verdict: &Verdict) -> String {
    let means = &advice(verdict).means;
    verdict.reason().map_or_else(|| means.clone(), |reason| format!("{means} ({reason})"))
}

/// The plain form's output: a line for everything that is known.
fn as_text(verdict: &Verdict) -> String {
    let (advice, remedy, detail) = (advice(verdict), remedy(verdict), verdict.detail());
    let charged = match verdict.charge() {
        Charge::None => "no",
        Charge::Waived => "no, the answer says so",
        Charge::Charged => "yes",
        Charge::Maybe => "not known",
    };
    let later = match verdict.is_retryable() {
        true => "may do better later",
        false => "will not do better, or has been paid for",
    };
    let other = if verdict.another_model_helps() { "may answer" } else { "will not help" };
    let wait = verdict.wait().map(|wait| {
        let source = match wait.source() {
            WaitSource::RetryInfo => "RetryInfo",
            WaitSource::Message => "the message",
            WaitSource::QuotaResetDelay => "quotaResetDelay",
            WaitSource::ResetText => "the reset text",
            WaitSource::RetryAfter => "a Retry-After header",
            WaitSource::Page => "the page",
            WaitSource::Body => "retry_after in the body",
            WaitSource::Family => "the documented window",
            WaitSource::Estimate => "an estimate of ours: the service says that it passes",
            _ => "the answer",
        };
        format!("{} s, says {source}", decimal(wait.stated()))
    });
    let quota = detail.and_then(|detail| detail.quota.as_ref()).map(|quota| {
        let limit = quota.value.map_or_else(|| "not stated".to_owned(), |value| value.to_string());
        let name = quota.id.as_deref().or(quota.metric.as_deref()).unwrap_or("not named");
        format!("{name}, limit {limit}")
    });
    let says = detail.and_then(|detail| detail.message.as_deref());
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = |label: &str, text: Option<String>| {
        text.map(|text| format!("{label:<14}{text}\n")).unwrap_or_default()
    };
    [
        line("what", Some(kind(verdict.outcome()).to_owned())),
        line("means", Some(advice.means.clone())),
        line("cause", remedy.as_ref().map(|remedy| remedy.cause.to_string())),
        line("instead", remedy.as_ref().map(|remedy| remedy.instead.to_string())),
        line("do", remedy.is_none().then(|| advice.r#do.clone())),
        line("charged", Some(charged.to_owned())),
        line("same model", Some(later.to_owned())),
        line("other model", Some(other.to_owned())),
        line("wait", wait),
        line("reason", detail.and_then(|detail| detail.reason.as_ref()).map(ToString::to_string)),
        line("inner status", detail.and_then(|d| d.inner_status).map(|code| code.to_string())),
        line("quota", quota),
        line("use instead", detail.and_then(|d| d.successor.as_ref()).map(ToString::to_string)),
        line("server says", says.map(one_line)),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_advice() {
        for outcome in Outcome::ALL {
            assert!(ADVICE.contains_key(outcome.as_str()), "{outcome}");
        }
    }
}
