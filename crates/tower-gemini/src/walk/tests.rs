//! The planner and the policy, without a service.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Request, StatusCode, Uri};
use proptest::prelude::*;
use tokio::time::Instant;
use tower_gemini_core::call::{Call, ImageSize};
use tower_gemini_core::classify::classify;
use tower_gemini_core::target::{MustKeep, Target, Upstream};
use tower_gemini_core::verdict::{Outcome, Verdict};

use super::plan::{Next, Walk};
use super::policy::{Decision, Situation, Ways};
use super::{
    Chain, Circuits, Cooldowns, FallbackOrder, FallbackPolicy, Ladder, Pool, Reaction, Settings,
};
use crate::CallOptions;
use crate::body::{CallBody, RequestTemplate};
use crate::call_state::CallState;
use crate::clock::RuntimeClock;
use crate::jittered_retry::{RetryOverride, RetryPolicy};
use crate::trail::{SkipReason, Step, StopReason};

const PRO: &str = "gemini-3-pro-image";
const FLASH: &str = "gemini-3.1-flash-image";
const FLASH_25: &str = "gemini-2.5-flash-image";

fn template(model: &str, size: &str, options: CallOptions) -> (RequestTemplate, Uri) {
    let uri: Uri =
        format!("https://gemini.example/v1beta/models/{model}:generateContent").parse().unwrap();
    let json = format!(
        r#"{{"contents":[{{"parts":[{{"text":"a cat"}}]}}],"generationConfig":{{"imageConfig":{{"imageSize":"{size}"}}}}}}"#
    );
    let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(json.as_bytes()));
    let state = CallState::new(options);
    let body = CallBody::whole([json.into()], None, Arc::new(call), state);
    let request = Request::post(uri.clone()).body(body).unwrap();
    (RequestTemplate::new(&request).unwrap(), uri)
}

fn judged(status: u16, word: &str, message: &str) -> Verdict {
    let body =
        format!(r#"{{"error":{{"code":{status},"message":"{message}","status":"{word}"}}}}"#);
    let status = StatusCode::from_u16(status).unwrap();
    let uri = Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
    let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), None);
    classify(&call, status, &HeaderMap::new(), body.as_bytes())
}

fn overloaded() -> Verdict {
    judged(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
}

const EVERYWHERE: Ways =
    Ways { targets: true, sizes: true, account_closed: false, other_accounts: true };

/// 2026-09-01, before 2.5 Flash is retired and after Imagen is.
fn settings(chain: Option<Chain>, ladder: Option<Ladder>) -> Settings {
    let september = SystemTime::UNIX_EPOCH + Duration::from_secs(1_788_220_800);
    Settings {
        clock: Arc::new(RuntimeClock::starting_at(september)),
        ..Settings::new(chain, ladder)
    }
}

fn model_and_size(next: &Next) -> String {
    let call = next.rewrite.call();
    let size = call.size.map_or("", |size| size.as_str());
    format!("{} {size}", call.model.as_ref().unwrap().as_str())
}

/// Where a call goes, one failure after the other.
fn way(
    settings: &Settings,
    model: &str,
    size: &str,
    options: CallOptions,
    mut after: impl FnMut(usize) -> (Verdict, Ways),
) -> Vec<String> {
    let (template, uri) = template(model, size, options);
    let circuits = Circuits::default();
    let mut walk = Walk::new(settings, &circuits, &template, &HeaderMap::new(), &uri);
    let (mut way, now) = (Vec::new(), Instant::now());
    while let Some(mut next) = walk.next(now, false) {
        way.push(model_and_size(&next));
        let (verdict, ways) = after(way.len());
        walk.settle(&mut next.visit, now, &verdict);
        walk.go_on(&next.visit, &verdict, ways);
        assert!(way.len() < 50, "it does not end: {way:?}");
    }
    way
}

fn everywhere(settings: &Settings, model: &str, size: &str) -> Vec<String> {
    way(settings, model, size, CallOptions::new(), |_| (overloaded(), EVERYWHERE))
}

#[tokio::test(start_paused = true)]
async fn the_fallback_order_is_data() {
    let mut settings =
        settings(Some(Chain::new([PRO, FLASH, FLASH_25])), Some(Ladder::recommended()));
    assert_eq!(
        everywhere(&settings, PRO, "4K"),
        [
            "gemini-3-pro-image 4K",
            "gemini-3-pro-image 2K",
            "gemini-3-pro-image 1K",
            "gemini-3.1-flash-image 4K",
            "gemini-3.1-flash-image 2K",
            "gemini-3.1-flash-image 1K",
            // It has one size, and is asked for nothing twice.
            "gemini-2.5-flash-image ",
        ]
    );
    settings.order = FallbackOrder::ModelFirst;
    assert_eq!(
        everywhere(&settings, PRO, "4K"),
        [
            "gemini-3-pro-image 4K",
            "gemini-3.1-flash-image 4K",
            "gemini-2.5-flash-image ",
            "gemini-3-pro-image 2K",
            "gemini-3.1-flash-image 2K",
            "gemini-3-pro-image 1K",
            "gemini-3.1-flash-image 1K",
        ]
    );
    assert_eq!(
        everywhere(&settings, FLASH, "1K"),
        ["gemini-3.1-flash-image 1K", "gemini-2.5-flash-image "]
    );
}

#[tokio::test(start_paused = true)]
async fn a_ladder_alone_stays_with_the_model_and_without_one_the_size_stays() {
    let ladder = settings(None, Some(Ladder::new([ImageSize::K4, ImageSize::K1])));
    assert_eq!(everywhere(&ladder, PRO, "4K"), ["gemini-3-pro-image 4K", "gemini-3-pro-image 1K"]);
    let chain = settings(Some(Chain::new([PRO, FLASH])), None);
    assert_eq!(
        everywhere(&chain, PRO, "4K"),
        ["gemini-3-pro-image 4K", "gemini-3.1-flash-image 4K"]
    );
    let both = settings(Some(Chain::new([PRO, FLASH])), Some(Ladder::recommended()));
    let keeps = CallOptions::new().must_keep(MustKeep::nothing().size());
    let sent = way(&both, PRO, "4K", keeps, |_| (overloaded(), EVERYWHERE));
    assert_eq!(sent, ["gemini-3-pro-image 4K", "gemini-3.1-flash-image 4K"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_on_only_where_the_policy_lets_it() {
    let settings = settings(Some(Chain::new([PRO, FLASH])), Some(Ladder::recommended()));
    let only = |targets, sizes| {
        let ways = Ways { targets, sizes, account_closed: false, other_accounts: true };
        way(&settings, PRO, "4K", CallOptions::new(), move |_| (overloaded(), ways))
    };
    let pro = ["gemini-3-pro-image 4K", "gemini-3-pro-image 2K", "gemini-3-pro-image 1K"];
    assert_eq!(only(false, true), pro);
    assert_eq!(only(true, false), ["gemini-3-pro-image 4K", "gemini-3.1-flash-image 4K"]);
    assert_eq!(only(false, false), ["gemini-3-pro-image 4K"]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_account_leaves_the_targets_of_the_others() {
    let rich = Upstream::gemini_api(Uri::from_static("https://rich.example")).account("rich");
    let settings = settings(Some(Chain::new([PRO, FLASH]).then(Target::new(PRO).on(rich))), None);
    let closed = Ways { targets: true, sizes: false, account_closed: true, other_accounts: true };
    let sent = way(&settings, PRO, "4K", CallOptions::new(), move |_| (overloaded(), closed));
    assert_eq!(sent, ["gemini-3-pro-image 4K", "gemini-3-pro-image 4K"]);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_fit_is_passed_over_at_every_size_and_the_next_is_not() {
    // Imagen before its date: it is asked in another way.
    let july = SystemTime::UNIX_EPOCH + Duration::from_secs(1_782_864_000);
    let chain = Chain::new([PRO, "imagen-4.0-fast-generate-001", FLASH]);
    let settings = Settings {
        clock: Arc::new(RuntimeClock::starting_at(july)),
        ..settings(Some(chain), Some(Ladder::recommended()))
    };
    let sent = everywhere(&settings, PRO, "2K");
    assert_eq!(
        sent,
        [
            "gemini-3-pro-image 2K",
            "gemini-3-pro-image 1K",
            "gemini-3.1-flash-image 2K",
            "gemini-3.1-flash-image 1K",
        ]
    );
}

// Two projects at one address had one circuit, and the second was never asked.
#[tokio::test(start_paused = true)]
async fn upstreams_at_one_address_are_told_apart_by_name_kind_and_project() {
    let vertex = |project: &'static str| {
        let base = Uri::from_static("https://aiplatform.example");
        Target::new(PRO).on(Upstream::vertex(base, project, "global").account("one payer"))
    };
    let chain = Chain::new([PRO]).then(vertex("a")).then(vertex("b")).then(vertex("a"));
    let mut settings = settings(Some(chain), None);
    assert_eq!(everywhere(&settings, PRO, "1K").len(), 3, "project a once");
    settings.cooldowns = Cooldowns::recommended().after_failures(1);
    let (template, uri) = template(PRO, "1K", CallOptions::new());
    let (circuits, now) = (Circuits::default(), Instant::now());
    let mut walk = Walk::new(&settings, &circuits, &template, &HeaderMap::new(), &uri);
    let mut next = walk.next(now, false).unwrap();
    walk.settle(&mut next.visit, now, &overloaded());
    let names: Vec<_> = circuits.snapshot().into_iter().map(|circuit| circuit.name).collect();
    assert_eq!(
        names,
        ["gemini-3-pro-image at 1K on gemini-api https://gemini.example - gemini.example"]
    );
    assert_eq!(
        walk.next(now, false).unwrap().visit.label,
        "gemini-3-pro-image on aiplatform.example"
    );
}

// A retired model of the caller's own was never asked, although its date was withdrawn.
#[tokio::test(start_paused = true)]
async fn a_date_replaces_fallback_targets_and_never_the_model_that_the_call_names() {
    let imagen = "imagen-4.0-fast-generate-001";
    let settings = settings(Some(Chain::new([PRO, imagen])), None);
    let sent = everywhere(&settings, PRO, "4K");
    assert_eq!(sent[0], "gemini-3-pro-image 4K");
    assert!(sent.len() == 2 && !sent[1].starts_with("imagen"), "{sent:?}");
    let preview = "gemini-3-pro-image-preview";
    assert_eq!(everywhere(&settings, preview, "4K")[0], "gemini-3-pro-image-preview 4K");
    // Unless the API itself says so.
    let gone = judged(404, "NOT_FOUND", "models/gemini-3-pro-image-preview is not found");
    assert_eq!(gone.outcome(), Outcome::NotFound);
    let after_404 =
        Ways { targets: true, sizes: false, account_closed: false, other_accounts: true };
    let sent = way(&settings, preview, "4K", CallOptions::new(), |sent| match sent {
        1 => (gone.clone(), after_404),
        _ => (overloaded(), after_404),
    });
    assert_eq!(sent[..2], ["gemini-3-pro-image-preview 4K", "gemini-3-pro-image 4K"]);
}

#[tokio::test(start_paused = true)]
async fn the_successor_of_a_model_is_tried_at_smaller_sizes_too_and_remembered() {
    let settings = settings(Some(Chain::default()), Some(Ladder::recommended()));
    let (preview, circuits) = ("gemini-3-pro-image-preview", Circuits::default());
    let gone = judged(404, "NOT_FOUND", "models/gemini-3-pro-image-preview is not found");
    let (first, uri) = template(preview, "2K", CallOptions::new());
    let mut walk = Walk::new(&settings, &circuits, &first, &HeaderMap::new(), &uri);
    let next = walk.next(Instant::now(), false).unwrap();
    walk.go_on(
        &next.visit,
        &gone,
        Ways { targets: true, sizes: false, account_closed: false, other_accounts: true },
    );
    let next = walk.next(Instant::now(), false).unwrap();
    assert_eq!(model_and_size(&next), "gemini-3-pro-image 2K");
    walk.go_on(&next.visit, &overloaded(), EVERYWHERE);
    assert_eq!(model_and_size(&walk.next(Instant::now(), false).unwrap()), "gemini-3-pro-image 1K");

    let (second, uri) = template(preview, "2K", CallOptions::new());
    let mut walk = Walk::new(&settings, &circuits, &second, &HeaderMap::new(), &uri);
    assert_eq!(model_and_size(&walk.next(Instant::now(), false).unwrap()), "gemini-3-pro-image 2K");
    let succeeded = Step::Replaced { model: preview.to_owned(), successor: PRO.to_owned() };
    assert_eq!(second.state().trail().steps(), [succeeded]);
}

#[tokio::test(start_paused = true)]
async fn each_target_is_retried_as_it_says_and_once_while_another_can_be_tried() {
    let own = RetryPolicy::recommended();
    // `None` where the call comes back for further attempts.
    let attempts = |settings: &Settings, model: &str, size: &str| -> Vec<Option<u32>> {
        let (template, uri) = template(model, size, CallOptions::new());
        let circuits = Circuits::default();
        let mut walk = Walk::new(settings, &circuits, &template, &HeaderMap::new(), &uri);
        let mut attempts = Vec::new();
        while let Some(mut next) = walk.next(Instant::now(), false) {
            let retries = walk.retries(&mut next.visit, RetryOverride::none());
            let of_visit = retries.over(&own).map_or(5, |policy| policy.max_attempts());
            attempts.push(Some(of_visit).filter(|_| retries.before().is_none()));
            walk.go_on(&next.visit, &overloaded(), EVERYWHERE);
        }
        attempts
    };
    let chain = || {
        Chain::default()
            .then(Target::new(PRO))
            .then(Target::new(FLASH).attempts(3))
            .then_retried(Target::new(FLASH_25), RetryPolicy::recommended().attempts(4))
    };
    let all = settings(Some(chain()), None);
    assert_eq!(attempts(&all, PRO, "1K"), [None, Some(3), Some(4)]);
    assert_eq!(attempts(&settings(Some(Chain::new([PRO])), None), PRO, "1K"), [None]);
    let sizes = settings(Some(chain()), Some(Ladder::recommended().attempts(2)));
    assert_eq!(attempts(&sizes, PRO, "2K"), [Some(2), None, Some(2), Some(3), Some(4)]);
    let mut sizes = sizes;
    sizes.order = FallbackOrder::ModelFirst;
    assert_eq!(attempts(&sizes, PRO, "2K"), [Some(1), Some(3), Some(4), None, Some(3)]);
    let alone = settings(None, Some(Ladder::recommended().attempts(2)));
    assert_eq!(attempts(&alone, PRO, "4K"), [Some(2), Some(2), Some(5)]);
    // Who does not wait tries once what is not the last.
    let mut all = all;
    all.policy = FallbackPolicy::recommended().refuse_when_all_open();
    assert_eq!(attempts(&all, PRO, "1K"), [Some(1), Some(3), Some(4)]);
}

/// A chain of which all circuits are open: Flash's for 25 minutes, Pro's from now on.
fn all_open(settings: &Settings, verdict: &Verdict) -> (Circuits, Instant) {
    let (circuits, began) = (Circuits::default(), Instant::now());
    let later = began + Duration::from_secs(25 * 60);
    for (model, now) in [(FLASH, began), (PRO, later)] {
        let (template, uri) = template(model, "1K", CallOptions::new());
        let mut walk = Walk::new(settings, &circuits, &template, &HeaderMap::new(), &uri);
        let mut next = walk.next(now, false).unwrap();
        walk.settle(&mut next.visit, now, verdict);
    }
    (circuits, later)
}

#[tokio::test(start_paused = true)]
async fn where_all_circuits_are_open_a_call_wakes_when_the_first_is_due() {
    let mut settings = settings(Some(Chain::new([PRO, FLASH])), None);
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    settings.cooldowns =
        Cooldowns::recommended().after_failures(1).overload(minutes(30), minutes(120));
    let (circuits, now) = all_open(&settings, &overloaded());
    let (template, uri) = template(PRO, "1K", CallOptions::new());
    let mut walk = Walk::new(&settings, &circuits, &template, &HeaderMap::new(), &uri);
    assert!(walk.next(now, false).is_none());
    assert_eq!(walk.shortest_wait(now), Some(minutes(5)), "Flash");
    // What may be probed early is probed by one call, the first of the chain first.
    walk.look_again(now);
    let mut probe = walk.next(now, true).unwrap();
    assert_eq!(model_and_size(&probe), "gemini-3-pro-image 1K");
    walk.settle(&mut probe.visit, now, &overloaded());
    let probe = walk.next(now, true).unwrap();
    assert_eq!(model_and_size(&probe), "gemini-3.1-flash-image 1K");
    assert!(walk.next(now, true).is_none());
    // Another call waits for what comes of the probe.
    let (other, _) = self::template(PRO, "1K", CallOptions::new());
    let mut walk = Walk::new(&settings, &circuits, &other, &HeaderMap::new(), &uri);
    assert!(walk.next(now, false).is_none());
    walk.look_again(now);
    assert!(walk.next(now, true).is_none());
    assert_eq!(walk.wake_at(now, now + minutes(2)), Some(now + minutes(2)));
    assert_eq!(walk.shortest_wait(now), Some(minutes(30)), "Pro");
    let skipped = |at: usize, target: &str, why| {
        assert_eq!(
            other.state().trail().steps()[at],
            Step::Skipped { target: target.to_owned(), why }
        );
    };
    skipped(0, PRO, SkipReason::CircuitOpen { left: minutes(30) });
    skipped(1, FLASH, SkipReason::Probed);
    walk.look_again(now);
    assert!(walk.next(now, true).is_none());
    assert_eq!(other.state().trail().steps().len(), 2, "said once");
    // The probe ends without saying anything: it is free for the next call, once a cooldown.
    drop(probe);
    assert_eq!(walk.wake_at(now, now + minutes(2)), Some(now), "at once");
    walk.look_again(now);
    let mut next = walk.next(now, true).unwrap();
    assert_eq!(model_and_size(&next), "gemini-3.1-flash-image 1K");
    walk.settle(&mut next.visit, now, &overloaded());
    drop(next);
    assert_eq!(walk.wake_at(now, now + minutes(40)), Some(now + minutes(30)), "Pro is due");
    assert_eq!(walk.wake_at(now, now + minutes(30)), None, "it would come too late");
    assert_eq!(walk.wake_at(now, now), None);
    walk.look_again(now);
    let next = walk.next(now + minutes(30), false).unwrap();
    assert_eq!(model_and_size(&next), "gemini-3-pro-image 1K");
    // Who does not want to wait does not.
    settings.policy = FallbackPolicy::recommended().refuse_when_all_open();
    let mut walk = Walk::new(&settings, &circuits, &template, &HeaderMap::new(), &uri);
    assert!(walk.next(now, false).is_none());
    assert_eq!(walk.wake_at(now, now + minutes(60)), None);
}

fn situation(verdict: &Verdict) -> Situation<'_> {
    Situation {
        verdict,
        has_chain: true,
        ladder: None,
        allowance_left: 0,
        empty_answers: 0,
        now: Instant::now(),
        deadline: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_decides_by_verdict_allowance_and_deadline() {
    let policy = FallbackPolicy::recommended();
    let stop = |why| Decision::Stop(Some(why));
    let go = |targets, sizes, account_closed| {
        let other_accounts = account_closed;
        Decision::Continue(Ways { targets, sizes, account_closed, other_accounts })
    };
    let ladder = Ladder::recommended();
    let overloaded = overloaded();
    let at = situation(&overloaded);
    assert_eq!(policy.next(&at), go(true, false, false));
    let sized = Situation { ladder: Some(&ladder), ..at };
    assert_eq!(policy.next(&sized), go(true, true, false));
    assert_eq!(policy.next(&Situation { has_chain: false, ..sized }), go(false, true, false));
    let alone = Situation { has_chain: false, ..at };
    assert_eq!(policy.next(&alone), Decision::Stop(None), "nothing is there to fall back to");
    let late = Situation { deadline: Some(at.now), ..at };
    assert_eq!(policy.next(&late), stop(StopReason::DeadlineTooNear));
    let in_time = Situation { deadline: Some(at.now + Duration::from_millis(1)), ..at };
    assert_eq!(policy.next(&in_time), go(true, false, false));

    let delivered = Verdict::delivering();
    assert_eq!(policy.next(&situation(&delivered)), Decision::Stop(None));
    let charged = Verdict::interrupted_delivery();
    assert_eq!(policy.next(&situation(&charged)), stop(StopReason::Charged));
    let maybe = Verdict::interrupted();
    assert_eq!(policy.next(&situation(&maybe)), stop(StopReason::MaybeCharged));
    let allowed = Situation { allowance_left: 1, ladder: Some(&ladder), ..situation(&maybe) };
    assert_eq!(policy.next(&allowed), go(true, true, false));

    let bad = judged(400, "INVALID_ARGUMENT", "Request contains an invalid argument.");
    assert_eq!(policy.next(&situation(&bad)), stop(StopReason::NotRetryable));
    let own = FallbackPolicy::recommended().on(Outcome::BadRequest, Reaction::FallBack);
    assert_eq!(own.next(&situation(&bad)), go(true, false, false));
    let own = own.on(Outcome::BadRequest, Reaction::Stop).on(Outcome::Overloaded, Reaction::Stop);
    assert_eq!(own.next(&situation(&bad)), stop(StopReason::NotRetryable));
    assert_eq!(own.next(&at), stop(StopReason::NotRetryable));
    assert_eq!(own.next(&sized), go(false, true, false));

    let key = judged(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.");
    assert_eq!(policy.next(&situation(&key)), go(true, false, true));

    let body = r#"{"candidates":[{"finishReason":"IMAGE_OTHER","finishMessage":"You will not be charged for this request."}]}"#;
    let mut call = Call::unrecognised();
    call.wants_image = true;
    call.dialect = tower_gemini_core::call::Dialect::GeminiApi;
    let empty = classify(&call, StatusCode::OK, &HeaderMap::new(), body.as_bytes());
    assert_eq!(empty.outcome(), Outcome::NoImage);
    assert_eq!(policy.next(&situation(&empty)), go(true, false, false));
    let again = Situation { empty_answers: 1, ..situation(&empty) };
    assert_eq!(policy.next(&again), stop(StopReason::AttemptsUsedUp));
    let twice = FallbackPolicy::recommended().empty_answers(2);
    assert_eq!(twice.next(&again), go(true, false, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the chain, the ladder and the order: a walk ends, asks for nothing twice, and only
    /// for what there is to ask for.
    #[test]
    fn every_walk_ends_and_asks_for_nothing_twice(
        links in prop::collection::vec((0usize..4, prop::option::of(prop::sample::select(ImageSize::ALL.to_vec()))), 0..6),
        wraps in any::<bool>(),
        sizes in prop::option::of(prop::collection::vec(prop::sample::select(ImageSize::ALL.to_vec()), 0..4)),
        model_first in any::<bool>(),
        asked in 0usize..4,
        size in prop::sample::select(vec!["1K", "2K", "4K"]),
        ways in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 50),
    ) {
        const MODELS: [&str; 4] = [PRO, FLASH, FLASH_25, "gemini-3-pro-image-preview"];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _entered = runtime.enter();
        let chain = links.iter().fold(Chain::default(), |chain, (model, cap)| {
            let target = Target::new(MODELS[*model]);
            chain.then(cap.map_or(target.clone(), |cap| target.size_cap(cap)))
        });
        let chain = if wraps { chain.wrapping() } else { chain };
        let mut settings = settings(Some(chain), sizes.clone().map(Ladder::new));
        settings.order = if model_first { FallbackOrder::ModelFirst } else { FallbackOrder::SizeFirst };
        let sent = way(&settings, MODELS[asked], size, CallOptions::new(), |sent| {
            let (targets, sizes, account_closed) = ways[sent % ways.len()];
            (overloaded(), Ways { targets, sizes, account_closed, other_accounts: true })
        });
        prop_assert!(!sent.is_empty());
        let mut once = sent.clone();
        once.sort();
        once.dedup();
        prop_assert_eq!(once.len(), sent.len(), "{:?}", sent);
        if sizes.is_none() && links.iter().all(|(_, cap)| cap.is_none()) {
            prop_assert!(sent.iter().all(|at| at.ends_with(size) || at.ends_with(' ')), "{:?}", sent);
        }
    }
}

// One service has one capacity for all of its accounts; a quota belongs to one.
#[tokio::test(start_paused = true)]
async fn another_account_of_a_pool_is_asked_after_a_quota_and_not_after_an_overload() {
    let at = |url: &'static str, name: &'static str| {
        Upstream::gemini_api(Uri::from_static(url)).name(name).account(name)
    };
    let same = at("https://gemini.example", "b");
    let pool = Pool::new(1).member(same, 1).member(at("https://relay.example", "c"), 1);
    let settings = settings(Some(Chain::default().pool(pool)), None);
    let quota =
        judged(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).");
    for (failed, visited) in [(quota, 3), (overloaded(), 2)] {
        let ways = match settings.policy.next(&situation(&failed)) {
            Decision::Continue(ways) => ways,
            Decision::Stop(why) => panic!("{why:?}"),
        };
        let sent = way(&settings, PRO, "1K", CallOptions::new(), |_| (failed.clone(), ways));
        assert_eq!(sent.len(), visited, "{sent:?}");
    }
}
