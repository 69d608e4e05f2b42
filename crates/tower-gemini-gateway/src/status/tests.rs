//! The page as text: whole, escaped, and silent about secrets.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use serde_json::Value;
use tower::{Layer, ServiceExt, service_fn};
use tower_gemini::CallOptions;
use tower_gemini::call::ModelId;
use tower_gemini::cost::Cost;
use tower_gemini::observe::ObserveLayer;
use tower_gemini::trail::{SkipReason, Step};
use tower_gemini::verdict::{Outcome, Verdict};

use super::sample::{self, in_paused_time};
use super::{QuotaEntryView, QuotaView, SpendingView, StatusView, TargetView, csp, json, page};

/// Every text that gets into the view from outside is this one.
fn hostile(text: &str) -> StatusView {
    let report = in_paused_time(async {
        let layer = ObserveLayer::new();
        let text: String = text.to_owned();
        let inner = service_fn(|request: Request<Full<Bytes>>| {
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
            trail.push(Step::MovedOn {
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
            let response = layer.layer(inner).oneshot(request).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
        layer.observatory().report()
    });
    let mut view = StatusView::new(report);
    view.version = text.to_owned();
    view.upstream = text.to_owned();
    view.quotas = vec![QuotaView {
        project: text.to_owned(),
        model: text.to_owned(),
        waiting: 1,
        entries: vec![QuotaEntryView {
            dimension: "rpm",
            limit: 0,
            used: 1,
            reserved: 1,
            resets_in_seconds: 1,
        }],
    }];
    view.targets = vec![TargetView {
        what: text.to_owned(),
        condition: "open",
        cause: None,
        left_seconds: Some(1),
        in_a_row: 2,
    }];
    view.spending = vec![SpendingView {
        period: text.to_owned(),
        spent: Cost::UNKNOWN,
        reserved_at_most_microusd: None,
        cap_microusd: Some(0),
        images: 0,
        refused: 1,
    }];
    view
}

/// The tags of a page, in order, with their attributes; quoted text is left out.
fn tags(html: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let mut quoted = false;
        let end = rest[start..].find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let Some(end) = end else { break };
        tags.push(rest[start..=start + end].to_owned());
        rest = &rest[start + end + 1..];
    }
    tags
}

/// The names of the elements, and of nothing that is in attributes or text.
fn elements(html: &str) -> Vec<String> {
    let name = |tag: &String| {
        tag.trim_start_matches('<').split([' ', '>', '/']).next().unwrap_or_default().to_owned()
    };
    tags(html).iter().map(name).filter(|name| !name.is_empty()).collect()
}

const HOSTILE: [&str; 6] = [
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=alert(1)>",
    "'onmouseover='alert(1)",
    "</style></script><iframe src=//evil.example>",
    "&lt;b&gt;&amp;<!--",
    "]]>{{7*7}}\u{202e}\u{0}\u{1b}[31m",
];

#[test]
fn no_text_from_outside_makes_an_element_or_an_attribute() {
    let expected = elements(&page(&hostile("harmless")));
    for text in HOSTILE {
        let view = hostile(text);
        let html = page(&view);
        assert_eq!(elements(&html), expected, "{text}");
        let of_page = tags(&html).join("");
        for evil in ["onerror", "onmouseover", "evil.example", "alert"] {
            let unquoted: String = of_page.split('"').step_by(2).collect();
            assert!(!unquoted.contains(evil), "{text}");
        }
        // What the script puts in is what the page was made of.
        let parsed: Value = serde_json::from_str(&json(&view)).unwrap();
        for section in parsed["sections"].as_object().unwrap().values() {
            assert!(html.contains(section.as_str().unwrap()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn whatever_texts_come_the_page_has_the_same_elements(text in "\\PC{1,60}|[<>\"'&/a-z =]{1,60}") {
        prop_assert_eq!(elements(&page(&hostile(&text))), elements(&page(&hostile("harmless"))));
    }
}

#[test]
fn a_sentinel_key_is_nowhere_on_the_page() {
    let view = sample::view();
    let key = "AIzaSyA-sentinel-key-0123456789abcdefghij";
    let hostile = hostile(key);
    for text in [page(&view), json(&view), format!("{view:?}")] {
        assert!(!text.contains("sentinel"));
    }
    // Where a caller names its key as a model, what the layers keep of it is redacted before it
    // gets here.
    let html = page(&StatusView {
        version: String::new(),
        upstream: String::new(),
        quotas: Vec::new(),
        targets: Vec::new(),
        spending: Vec::new(),
        ..hostile
    });
    assert!(!html.contains("sentinel"), "{html}");
}

#[test]
fn the_page_is_whole_and_loads_nothing() {
    let html = page(&sample::view());
    for says in [
        "<!doctype html>",
        "name=\"viewport\"",
        "http-equiv=\"refresh\"",
        "Success by hour",
        "429 : 503 = ",
        "The line marks 70 %.",
        "pictures-eu",
        "redeemed",
        "Does not help:",
    ] {
        assert!(html.contains(says), "{says}");
    }
    for from_elsewhere in [
        "http://",
        "https://",
        "url(",
        "@import",
        " src=",
        "<link rel=\"stylesheet\"",
        " style=",
        " onclick=",
    ] {
        assert!(!html.contains(from_elsewhere), "{from_elsewhere}");
    }
    assert!(html.len() < 200_000, "{} bytes", html.len());
    let ids: Vec<_> = tags(&html)
        .iter()
        .filter_map(|tag| Some(tag.split_once(" id=\"")?.1.split('"').next()?.to_owned()))
        .collect();
    let mut once = ids.clone();
    once.sort();
    once.dedup();
    assert_eq!(ids.len(), once.len(), "an id names one element: {ids:?}");
}

#[test]
fn the_policy_allows_the_pages_own_script_and_style_only() {
    let policy = csp();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    for refused in ["unsafe-inline", "unsafe-eval", "*", "http"] {
        assert!(!policy.contains(refused), "{policy}");
    }
    let html = page(&StatusView::new(ObserveLayer::new().observatory().report()));
    assert_eq!((html.matches("<script>").count(), html.matches("<style>").count()), (1, 1));
}

#[test]
fn the_json_holds_the_view_too() {
    let parsed: Value = serde_json::from_str(&json(&sample::view())).unwrap();
    assert_eq!(parsed["view"]["report"]["total"]["calls"], 421);
    assert_eq!(parsed["view"]["report"]["targets"]["peak_hours_are_known"], true);
    assert!(parsed["view"]["quotas"][0]["entries"][0]["limit"].is_u64());
}
