//! The data, its documentation, and the page: complete, and without secrets or markup of others.

pub(crate) mod browser;
mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_gemini::call::ModelId;
use tower_gemini::cost::Cost;
use tower_gemini::model_fallback::Chain;
use tower_gemini::trail::{SkipReason, Step};
use tower_gemini::verdict::{Outcome, Verdict};
use tower_gemini::{CallOptions, GeminiStack, ModelFallbackLayer, ObserveLayer};
use tower_gemini_sim::{Fault, Sim};

use self::sample::in_paused_time;
use super::{Budget, Circuit, Quota, QuotaLimit, Spending, Status, csp, page};
use crate::stats::Stats;

/// A status in which every text from outside is this one.
fn hostile(text: &str) -> Status {
    let report = in_paused_time(async {
        let stats = Stats::new();
        let layer = ObserveLayer::new().observer(stats.observer()).whole_responses();
        let text: String = text.to_owned();
        let inner = service_fn(move |request: Request<Full<Bytes>>| {
            let text = text.clone();
            let trail =
                request.extensions().get::<CallOptions>().unwrap().clone().trail_mut().clone();
            let id = trail.begin_attempt(Some(ModelId::new(&text)), None);
            id.end(
                Some(503),
                &Verdict::interrupted(),
                Cost::UNKNOWN,
                std::time::Duration::from_secs(1),
            );
            id.close();
            trail.push(Step::Skipped { target: text.clone(), why: SkipReason::Gone });
            trail.push(Step::FellBack {
                from: text.clone(),
                to: text.clone(),
                why: Outcome::Interrupted,
            });
            async {
                Ok::<_, Infallible>(
                    Response::builder().status(503).body(Full::new(Bytes::new())).unwrap(),
                )
            }
        });
        for _ in 0..6 {
            let request = Request::post("/v1beta/models/m:generateContent")
                .body(Full::new(Bytes::new()))
                .unwrap();
            let response = layer.layer(inner.clone()).oneshot(request).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
        stats.report()
    });
    let mut status = Status::new(report);
    status.version = text.to_owned();
    status.upstream = text.to_owned();
    let limit =
        QuotaLimit { dimension: "rpm", limit: 0, used: 1, reserved: 1, resets_in_seconds: 1 };
    status.quotas = vec![Quota {
        project: text.to_owned(),
        model: text.to_owned(),
        upstream: Some(text.to_owned()),
        waiting_calls: 1,
        limits: vec![limit],
    }];
    status.circuits = vec![Circuit {
        name: text.to_owned(),
        state: "open",
        cause: None,
        cooldown_seconds: Some(1),
        consecutive: 2,
    }];
    status.spending = vec![Spending {
        period: text.to_owned(),
        began_unix_seconds: 0,
        spent: Cost::UNKNOWN,
        reserved_at_most_microusd: None,
        cap_microusd: Some(0),
        images: 0,
        rejected_attempts: 1,
    }];
    status.budgets = vec![Budget { upstream: text.to_owned(), spending: status.spending.clone() }];
    status
}

pub(crate) const HOSTILE: [&str; 6] = [
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=alert(1)>",
    "'onmouseover='alert(1)",
    "</style></script><iframe src=//evil.example>",
    "&lt;b&gt;&amp;<!--",
    "]]>{{7*7}}\u{202e}\u{0}\u{1b}[31m",
];

#[test]
fn the_json_has_exactly_the_documented_fields() {
    let mut documented: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut section = "";
    for line in include_str!("../mod.rs").lines() {
        if let Some(title) = line.strip_prefix("//! ## ") {
            section = title;
        } else if let Some(row) = line.strip_prefix("//! | `") {
            let fields = row.split(" | ").next().unwrap_or_default();
            let fields = fields.split('`').filter(|name| !name.contains(['/', ',', ' ']));
            documented.entry(section).or_default().extend(fields.filter(|name| !name.is_empty()));
        }
    }
    documented.remove("");
    let json: Value = serde_json::from_str(&sample::status().to_json()).unwrap();
    for (section, pointer) in [
        ("Status", ""),
        ("Diagnosis", "/diagnosis/hour"),
        ("Window", "/total"),
        ("Hour", "/hours/0"),
        ("Cost", "/total/cost"),
        ("Call", "/recent_calls/0"),
        ("Quota", "/quotas/0"),
        ("Limit", "/quotas/0/limits/0"),
        ("Circuit", "/circuits/0"),
        ("Spending", "/spending/0"),
        ("Budget", "/budgets/0"),
        ("Caller", "/callers/0"),
        ("Load", "/load"),
        ("Stored", "/stored"),
        ("Alerts", "/alerts"),
    ] {
        let object = json.pointer(pointer).and_then(Value::as_object);
        let object = object.unwrap_or_else(|| panic!("no object at {pointer}"));
        let mut fields: BTreeSet<&str> = object.keys().map(String::as_str).collect();
        let expected = documented.remove(section).unwrap_or_default();
        if section == "Hour" {
            fields.retain(|field| json["total"].get(field).is_none());
        }
        assert_eq!(fields, expected, "{section}");
    }
    assert!(documented.is_empty(), "{documented:?}");
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["total"]["calls"], 421);
    assert_eq!(json["failure_rate_targets"]["peak_hours_known"], true);
    for map in ["/diagnosis", "/total/waits/backoff", "/total/models/gemini-3-pro-image"] {
        assert!(json.pointer(map).is_some_and(Value::is_object), "{map}");
    }
    let markup = |text: &str| text.contains('<');
    assert!(!markup(&json.to_string()), "data, not HTML");
}

/// The page said "quota of gemini-3-pro-image of of caller 1a2b3c4d".
#[test]
fn a_circuit_is_named_in_plain_words() {
    let circuits = in_paused_time(async {
        let fallback =
            ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
        let sim = Sim::builder().tiny_images(true).build();
        sim.push_script([Fault::RateLimitDay { retry_after: Duration::from_secs(9) }, Fault::None]);
        let service = GeminiStack::new().fallback(fallback.clone()).raw(sim.service());
        let response = service.oneshot(sample::request(1, "1K")).await.unwrap();
        response.into_body().collect().await.unwrap();
        let (circuits, now) = (fallback.circuits().snapshot(), Instant::now());
        circuits.iter().map(|circuit| Circuit::new(circuit, now)).collect::<Vec<_>>()
    });
    let [circuit] = &circuits[..] else { panic!("{circuits:?}") };
    let caller = circuit.name.strip_prefix("quota of gemini-3-pro-image of caller ");
    let caller = caller.and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    assert!(caller.len() == 8, "{}", circuit.name);
    assert_eq!((circuit.state, circuit.cause), ("open", Some("rate_limit_day")));
}

#[test]
fn a_key_is_nowhere_in_the_status() {
    let status = sample::status();
    for text in [status.to_json(), format!("{status:?}")] {
        assert!(!text.contains("sentinel"));
    }
    // Where a caller names its key as a model, what the layers keep of it is redacted before it
    // gets here.
    let hostile = hostile("AIzaSyA-sentinel-key-0123456789abcdefghij");
    let report = serde_json::to_string(&hostile.report).unwrap();
    assert!(!report.contains("sentinel"), "{report}");
}

#[test]
fn the_page_is_complete_and_loads_nothing_else() {
    let html = page();
    for says in ["<!doctype html>", "name=\"viewport\"", "<noscript>", "Failures by hour"] {
        assert!(html.contains(says), "{says}");
    }
    let without_namespace = html.replace("http://www.w3.org/2000/svg", "");
    for from_elsewhere in
        ["http://", "https://", "url(", "@import", " src=", "stylesheet", " style=", " onclick="]
    {
        assert!(!without_namespace.contains(from_elsewhere), "{from_elsewhere}");
    }
    assert!(html.len() < 50_000, "{} bytes", html.len());
    let markup = html.split("<script>").next().unwrap_or_default();
    let ids: Vec<_> =
        markup.split(" id=\"").skip(1).filter_map(|id| id.split('"').next()).collect();
    let unique: BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), unique.len(), "an id names one element: {ids:?}");
}

/// Values come from callers and servers. The script may not have a way to make markup of them.
#[test]
fn the_script_makes_elements_and_text_only() {
    let script = concat!(
        include_str!("../live.js"),
        include_str!("../page.js"),
        include_str!("../../jobs/page.js")
    );
    for markup in [
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "DOMParser",
        "eval(",
        "Function(",
        "createContextualFragment",
    ] {
        assert!(!script.contains(markup), "{markup}");
    }
}

#[test]
fn the_policy_allows_the_pages_own_script_and_style_only() {
    let policy = csp();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    for refused in ["unsafe-inline", "unsafe-eval", "*", "http"] {
        assert!(!policy.contains(refused), "{policy}");
    }
    let html = page();
    assert_eq!((html.matches("<script>").count(), html.matches("<style>").count()), (1, 1));
}
