//! Every family of answers, in shapes made after the recorded ones.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use proptest::prelude::*;

use super::{classify, classify_answer, classify_without_status, limit_charge};
use crate::call::{Call, Dialect};
use crate::scan::{Framing, Scanner};
use crate::verdict::{Charge, Outcome, QuotaCharge, Verdict, WaitSource};

fn image_call() -> Call {
    let mut call = Call::unrecognised();
    call.wants_image = true;
    call
}

fn judged(status: u16, body: &str) -> Verdict {
    judged_with(status, &[], body)
}

fn judged_with(status: u16, headers: &[(&'static str, &str)], body: &str) -> Verdict {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    if status == 0 {
        classify_without_status(&image_call(), &map, body.as_bytes())
    } else {
        classify(&image_call(), StatusCode::from_u16(status).unwrap(), &map, body.as_bytes())
    }
}

fn google(code: u16, status: &str, message: &str) -> String {
    format!(r#"{{"error":{{"code":{code},"message":{message:?},"status":"{status}"}}}}"#)
}

fn google_with(code: u16, status: &str, message: &str, details: &str) -> String {
    format!(
        r#"{{"error":{{"code":{code},"message":{message:?},"status":"{status}","details":[{details}]}}}}"#
    )
}

fn violation(metric: &str, id: &str, value: &str) -> String {
    let mut members =
        vec![format!(r#""quotaMetric":"generativelanguage.googleapis.com/{metric}""#)];
    if !id.is_empty() {
        members.push(format!(r#""quotaId":"{id}""#));
    }
    members.push(r#""quotaDimensions":{"location":"global","model":"gemini-9-flash"}"#.to_owned());
    if !value.is_empty() {
        members.push(format!(r#""quotaValue":"{value}""#));
    }
    format!("{{{}}}", members.join(","))
}

fn quota_failure(violations: &[String]) -> String {
    format!(
        r#"{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{}]}}"#,
        violations.join(",")
    )
}

fn retry_info(delay: &str) -> String {
    format!(r#"{{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{delay}"}}"#)
}

fn error_info(reason: &str, metadata: &str) -> String {
    format!(
        r#"{{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"{reason}","domain":"googleapis.com","metadata":{{{metadata}}}}}"#
    )
}

const QUOTA: &str = "You exceeded your current quota, please check your plan and billing details.";

fn limited(metric: &str, id: &str, value: &str, delay: &str) -> String {
    google_with(
        429,
        "RESOURCE_EXHAUSTED",
        QUOTA,
        &format!("{},{}", quota_failure(&[violation(metric, id, value)]), retry_info(delay)),
    )
}

#[test]
fn quota_windows_are_read_from_ids_and_metrics() {
    use Outcome::{RateLimited as Some_, RateLimitedDay as Day, RateLimitedMinute as Minute};
    for (metric, id, want) in [
        (
            "generate_content_free_tier_requests",
            "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            Minute,
        ),
        ("generate_content_requests", "GenerateRequestsPerMinutePerProjectPerModel", Minute),
        (
            "generate_content_free_tier_requests",
            "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
            Day,
        ),
        ("generate_requests_per_model_per_day", "GenerateRequestsPerDayPerProjectPerModel", Day),
        (
            "generate_content_free_tier_input_token_count",
            "GenerateContentInputTokensPerModelPerMinute-FreeTier",
            Minute,
        ),
        (
            "generate_content_free_tier_input_token_count",
            "GenerateContentInputTokensPerModelPerDay-FreeTier",
            Day,
        ),
        (
            "generate_content_paid_tier_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute",
            Minute,
        ),
        (
            "generate_content_paid_tier_2_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier2",
            Minute,
        ),
        ("generate_content_paid_tier_2_input_token_count", "", Minute),
        ("generate_content_paid_tier_3_input_token_count", "", Minute),
        (
            "generate_content_requests",
            "GenerateContentRequestsPerMinutePerProjectPerRegion",
            Minute,
        ),
        (
            "predict_requests_per_model_per_day_paid_tier_1",
            "PredictRequestsPerDayPerProjectPerModel",
            Day,
        ),
        ("predict_requests_per_model_per_day_paid_tier_3", "", Day),
        ("generated_images_paid_tier_1_per_model", "", Day),
        (
            "generated_images_free_tier",
            "GenerateImagesPerMinutePerProjectPerModel-FreeTier",
            Minute,
        ),
        ("generate_content_paid_tier_2_requests", "", Some_),
        ("generate_requests_per_model", "", Some_),
        ("predict_requests_free_tier_per_model", "", Some_),
        ("generate_requests_per_model_per_day", "", Day),
        ("generate_content_requests_per_minute_per_project_per_user", "", Minute),
    ] {
        let verdict = judged(429, &limited(metric, id, "10", "21s"));
        assert_eq!(verdict.outcome(), want, "{metric} {id}");
        assert_eq!(verdict.is_retryable(), want != Day, "{metric} {id}");
        assert!(verdict.another_model_helps());
        assert_eq!(verdict.charge(), Charge::None);
        assert_eq!(verdict.wait().is_some(), want != Day, "a day has no short wait: {metric} {id}");
        let quota = verdict.detail().unwrap().quota.as_ref().unwrap();
        assert_eq!(quota.value, Some(10));
        assert_eq!(quota.dimensions.len(), 2);
    }
}

#[test]
fn a_violated_day_beats_the_minute_beside_it() {
    let both = quota_failure(&[
        violation(
            "generate_content_free_tier_requests",
            "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            "10",
        ),
        violation(
            "generate_content_free_tier_requests",
            "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
            "250",
        ),
    ]);
    let verdict = judged(
        429,
        &google_with(429, "RESOURCE_EXHAUSTED", QUOTA, &format!("{},{both}", retry_info("2.5s"))),
    );
    assert_eq!(verdict.outcome(), Outcome::RateLimitedDay);
    assert_eq!(verdict.wait(), None);
    assert_eq!(verdict.reason(), Some("GenerateRequestsPerDayPerProjectPerModel-FreeTier"));
}

#[test]
fn zero_quotas_are_final_however_they_are_spelled() {
    let free = |model: &str| {
        format!(
            "{QUOTA}\n* Quota exceeded for metric: x/generate_content_free_tier_requests, limit: 0, model: {model}\nPlease retry in 40.1s."
        )
    };
    let minute = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier";
    let day = "GenerateRequestsPerDayPerProjectPerModel-FreeTier";
    let requests = "generate_content_free_tier_requests";
    for (name, body, elsewhere) in [
        ("text", google(429, "RESOURCE_EXHAUSTED", &free("gemini-9-flash")), true),
        ("image model", google(429, "RESOURCE_EXHAUSTED", &free("gemini-9-flash-image")), false),
        (
            "with a hint",
            google_with(429, "RESOURCE_EXHAUSTED", &free("gemini-9-flash"), &retry_info("40s")),
            true,
        ),
        ("value 0", limited(requests, minute, "0", "4s"), true),
        (
            "quota_limit_value",
            google_with(
                429,
                "RESOURCE_EXHAUSTED",
                "Quota exceeded",
                &error_info(
                    "RATE_LIMIT_EXCEEDED",
                    r#""quota_limit":"RequestsPerMinutePerProjectPerRegion","quota_limit_value":"0""#,
                ),
            ),
            false,
        ),
        (
            "all windows, no values",
            google_with(
                429,
                "RESOURCE_EXHAUSTED",
                QUOTA,
                &quota_failure(&[violation(requests, minute, ""), violation(requests, day, "")]),
            ),
            true,
        ),
        (
            "on a line of its own",
            google(
                429,
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for metric: y\nlimit: 0\nPlease retry in 5s",
            ),
            false,
        ),
        ("under 503", google(503, "UNAVAILABLE", "quota exceeded, limit: 0"), false),
    ] {
        let verdict = judged(429, &body);
        assert_eq!(verdict.outcome(), Outcome::QuotaZeroOrBilling, "{name}");
        assert!(!verdict.is_retryable(), "{name}");
        assert_eq!(verdict.wait(), None, "{name}");
        assert_eq!(verdict.another_model_helps(), elsewhere, "{name}");
    }
    let unvalued = judged(429, &limited(requests, day, "", "30s"));
    assert!(unvalued.detail().unwrap().quota.is_some());
    // One exhausted day without a value is a day, and not nothing.
    assert_eq!(judged(429, &limited(requests, day, "", "30s")).outcome(), Outcome::RateLimitedDay);
}

/// Status, body, outcome, whether retryable, whether another model helps.
type Row = (u16, String, Outcome, bool, bool);

fn check(rows: &[Row]) {
    for (status, body, outcome, retryable, elsewhere) in rows {
        let verdict = judged(*status, body);
        assert_eq!(verdict.outcome(), *outcome, "{body}");
        assert_eq!(verdict.is_retryable(), *retryable, "{body}");
        assert_eq!(verdict.another_model_helps(), *elsewhere, "{body}");
        // Refusals are free whoever reports them; what failures cost, `provenance.rs` tests.
        let is_refusal = matches!(
            outcome,
            Outcome::RateLimitedMinute
                | Outcome::RateLimitedDay
                | Outcome::RateLimited
                | Outcome::SpendRateLimited
                | Outcome::QuotaZeroOrBilling
                | Outcome::BadRequest
                | Outcome::PayloadTooLarge
                | Outcome::MissingThoughtSignature
                | Outcome::Region
                | Outcome::Auth
                | Outcome::Permission
                | Outcome::NotFound
        );
        if *status >= 400 && is_refusal {
            assert_eq!(verdict.charge(), Charge::None, "{body}");
        }
        if !retryable && *outcome != Outcome::RateLimitedDay {
            assert_eq!(verdict.wait(), None, "{body}");
        }
    }
}

#[test]
fn families_of_429() {
    use Outcome as O;
    let exhausted = "RESOURCE_EXHAUSTED";
    let g = |message: &str| google(429, exhausted, message);
    check(&[
        (429, g("Resource has been exhausted (e.g. check quota)."), O::RateLimited, true, true),
        (429, g("Resource exhausted. Please try again later. Please refer to https://cloud.google.com/vertex-ai/generative-ai/docs/error-code-429 for more details."), O::Overloaded, true, true),
        (429, g("Resource exhausted, please try again later."), O::Overloaded, true, true),
        (429, g("You exceeded your spend-based rate limit. Your spending rate has exceeded what the tier allows."), O::SpendRateLimited, true, false),
        (429, g("Your project has exceeded its monthly spending cap. Raise it in AI Studio."), O::QuotaZeroOrBilling, false, false),
        (429, g("Your prepayment credits are depleted. Please go to AI Studio."), O::QuotaZeroOrBilling, false, false),
        (402, g("Your prepayment credits are depleted."), O::QuotaZeroOrBilling, false, false),
        (402, r#"{"error":{"code":"payment_required","message":"Add credits."}}"#.into(), O::QuotaZeroOrBilling, false, false),
        (402, String::new(), O::QuotaZeroOrBilling, false, false),
        (429, google_with(429, exhausted, "No capacity available for model m on the server", &error_info("MODEL_CAPACITY_EXHAUSTED", "")), O::Overloaded, true, true),
        (429, google_with(429, exhausted, "busy", &error_info("MODEL_CAPACITY_EXCEEDED", "")), O::Overloaded, true, true),
        (429, google_with(429, exhausted, "Your quota will reset after 19h14m47s.", &error_info("QUOTA_EXHAUSTED", "")), O::RateLimitedDay, false, true),
        (429, google_with(429, exhausted, "You have exhausted your capacity.", &error_info("QUOTA_EXHAUSTED", "")), O::RateLimitedDay, false, true),
        (429, google_with(429, exhausted, "Your quota will reset after 26s.", &error_info("QUOTA_EXHAUSTED", "")), O::RateLimitedMinute, true, true),
        (429, google_with(429, exhausted, "Your quota will reset after 0s.", &error_info("RATE_LIMIT_EXCEEDED", "")), O::RateLimitedMinute, true, true),
        (429, google_with(429, exhausted, "limit reached", &error_info("REQUEST_LIMIT_EXCEEDED", "")), O::RateLimitedMinute, true, true),
        (429, google_with(429, exhausted, "x", &error_info("INSUFFICIENT_G1_CREDITS_BALANCE", "")), O::QuotaZeroOrBilling, false, false),
        (429, g("Individual quota reached. Contact your administrator to enable overages. Resets in 164h27m24s."), O::RateLimitedDay, false, true),
        (429, google_with(429, exhausted, "Quota exceeded for quota metric 'P' and limit 'P per day per user per tier'", &error_info("RATE_LIMIT_EXCEEDED", r#""quota_limit":"ProRequestsPerDay""#)), O::RateLimitedDay, false, true),
        (429, g("Quota exceeded for aiplatform.googleapis.com/generate_content_requests_per_minute_per_project_per_base_model with base model: m. Please submit a quota increase request."), O::RateLimitedMinute, true, true),
        (429, g("Quota exceeded for quota metric 'Requests' and limit 'Requests per minute' of service 's'"), O::RateLimitedMinute, true, true),
        (429, g(&format!("{QUOTA}\n* Quota exceeded for metric: g/generate_content_paid_tier_2_input_token_count, limit: 3000000\nPlease retry in 11.7s.")), O::RateLimitedMinute, true, true),
        (429, g(&format!("{QUOTA}\n* Quota exceeded for metric: g/generate_content_free_tier_requests, limit: 20\nPlease retry in 21.2s.")), O::RateLimited, true, true),
        (429, r#"{"error":{"code":"rate_limit_exceeded","message":"Too many requests a minute."}}"#.into(), O::RateLimitedMinute, true, true),
        (429, r#"{"error":{"code":"quota_exceeded","message":"Daily quota is used up."}}"#.into(), O::RateLimitedDay, false, true),
        (429, "Too many requests, please try again later.".into(), O::RateLimited, true, true),
        (429, String::new(), O::RateLimited, true, true),
        (429, r#"{"error":{"message":"Rate limit exceeded: free-models-per-day. Add credits to unlock more","code":429}}"#.into(), O::RateLimitedDay, false, true),
        (429, r#"{"error":{"message":"Rate limit exceeded: free-models-per-min.","code":429}}"#.into(), O::RateLimitedMinute, true, true),
        (429, r#"{"error":{"message":"Provider returned error","code":429,"metadata":{"raw":"vendor/m is temporarily rate-limited upstream. Please retry shortly","limit_source":"upstream_provider_shared_pool"}}}"#.into(), O::Overloaded, true, true),
        (429, r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#.into(), O::QuotaZeroOrBilling, false, false),
        (403, r#"{"error":{"message":"user quota is not enough","type":"new_api_error","code":"insufficient_user_quota"}}"#.into(), O::QuotaZeroOrBilling, false, false),
        (403, r#"{"error":{"code":403,"message":"Rate Limit Exceeded","errors":[{"domain":"usageLimits","reason":"userRateLimitExceeded"}]}}"#.into(), O::RateLimited, true, true),
    ]);
}

#[test]
fn families_of_other_statuses() {
    use Outcome as O;
    let invalid = |message: &str| google(400, "INVALID_ARGUMENT", message);
    let failed = |message: &str| google(400, "FAILED_PRECONDITION", message);
    let denied = |message: &str| google(403, "PERMISSION_DENIED", message);
    let missing = |message: &str| google(404, "NOT_FOUND", message);
    check(&[
        // 400
        (400, google_with(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", &error_info("API_KEY_INVALID", "")), O::Auth, false, false),
        (400, invalid("API key expired. Please renew the API key."), O::Auth, false, false),
        (400, invalid("API Key not found. Please pass a valid API key."), O::Auth, false, false),
        (400, format!("[{}]", invalid("Multiple authentication credentials received. Please pass only one.")), O::Auth, false, false),
        (400, invalid("Request contains an invalid argument."), O::BadRequest, false, false),
        (400, invalid("Invalid JSON payload received. Unknown name \"imageSize\" at 'generation_config': Cannot find field."), O::BadRequest, false, false),
        (400, invalid("The input token count (1300000) exceeds the maximum number of tokens allowed (1048576)."), O::BadRequest, false, false),
        (400, invalid("Unable to process input image. Please retry or report in https://x"), O::BadRequest, false, false),
        (400, invalid("Cannot fetch content from the provided URL. Status: URL_ROBOTED-ROBOTED_DENIED"), O::BadRequest, false, false),
        (400, invalid("Aspect ratio is not enabled for this model"), O::BadRequest, false, false),
        (400, invalid("Request payload size exceeds the limit: 20971520 bytes."), O::PayloadTooLarge, false, false),
        (400, invalid("Imagen API is only accessible to billed users at this time."), O::QuotaZeroOrBilling, false, false),
        (400, invalid("Image generation failed with the following error: The prompt could not be submitted. It violates Google's Responsible AI practices."), O::PromptBlocked, false, false),
        (400, invalid("Image part is missing a thought_signature in content position 2, part position 1."), O::MissingThoughtSignature, false, false),
        (400, invalid("Invalid thought signature."), O::MissingThoughtSignature, false, false),
        (400, invalid("Function call is missing a thought_signature in functionCall parts. position 143"), O::MissingThoughtSignature, false, false),
        (400, invalid("Unable to submit request because Thought signature is not valid.. Learn more"), O::MissingThoughtSignature, false, false),
        (400, invalid("Unable to submit request because function call `X` in the 6. content block is missing a `thought_signature`."), O::MissingThoughtSignature, false, false),
        (400, failed("User location is not supported for the API use."), O::Region, false, false),
        (400, failed("Gemini API free tier is not available in your country. Please enable billing on your project in Google AI Studio."), O::Region, false, false),
        (400, failed("Billing is disabled for this project."), O::QuotaZeroOrBilling, false, false),
        (400, failed("Project `p` is not allowed to use Publisher Model `projects/p/m`"), O::Permission, false, true),
        (400, r#"{"error":{"code":"parameter_unknown","message":"Unknown parameter."}}"#.into(), O::BadRequest, false, false),
        (416, r#"{"error":{"code":"out_of_range","message":"x"}}"#.into(), O::BadRequest, false, false),
        // 401, 403
        (401, google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token."), O::Auth, false, false),
        (401, r#"{"error":{"code":"authentication","message":"x"}}"#.into(), O::Auth, false, false),
        (401, String::new(), O::Auth, false, false),
        (403, google_with(403, "PERMISSION_DENIED", "API has not been used in project 1 before or it is disabled, then retry.", &error_info("SERVICE_DISABLED", "")), O::Permission, false, false),
        (403, google_with(403, "PERMISSION_DENIED", "This API method requires billing to be enabled.", &error_info("BILLING_DISABLED", "")), O::QuotaZeroOrBilling, false, false),
        (403, google_with(403, "PERMISSION_DENIED", "Permission 'p' denied on resource", &error_info("IAM_PERMISSION_DENIED", "")), O::Permission, false, false),
        (403, denied("Your API key was reported as leaked. Please use another API key."), O::Auth, false, false),
        (403, denied("Method doesn't allow unregistered callers. Please use API Key or other form of API consumer identity."), O::Auth, false, false),
        (403, google_with(403, "PERMISSION_DENIED", "Consumer 'api_key:x' has been suspended.", &error_info("CONSUMER_SUSPENDED", "")), O::Permission, false, false),
        (403, denied("The caller does not have permission"), O::Permission, false, false),
        (403, denied("Your project has been denied access. Please contact support."), O::Permission, false, false),
        (403, google_with(403, "PERMISSION_DENIED", "Validation required to continue.", &error_info("VALIDATION_REQUIRED", "")), O::Permission, false, false),
        (403, google_with(403, "PERMISSION_DENIED", "x", &error_info("LOCATION_POLICY_VIOLATED", "")), O::Region, false, false),
        (403, r#"{"error":{"code":"permission_denied","message":"x"}}"#.into(), O::Permission, false, false),
        // 404
        (404, missing("models/x is not found for API version v1beta, or is not supported for generateContent. Call ListModels to see"), O::NotFound, false, true),
        (404, missing("models/x is not found for API version v1beta, or is not supported. Call ModelService.ListModels to see"), O::NotFound, false, true),
        (404, missing("This model models/x is no longer available to new users. Please update your code to use models/y."), O::NotFound, false, true),
        (404, missing("Publisher Model `projects/p/locations/l/publishers/google/models/x` was not found or your project does not have access to it."), O::NotFound, false, true),
        (404, missing("Requested entity was not found."), O::NotFound, false, true),
        (404, missing("Not found: cache content metadata 123."), O::NotFound, false, false),
        (404, "<!DOCTYPE html><title>Error 404 (Not Found)!!1</title><style>p{}</style><p>The requested URL /models/m:generateContent was not found".into(), O::NotFound, false, false),
        (404, "404 page not found".into(), O::NotFound, false, false),
        (404, r#"{"detail":"Not Found"}"#.into(), O::NotFound, false, false),
        (404, r#"{"error":{"code":"model_not_found","message":"x"}}"#.into(), O::NotFound, false, true),
        (502, r#"{"error":{"message":"unknown provider for model m","type":"server_error","code":"internal_server_error"}}"#.into(), O::NotFound, false, true),
        // Sizes
        (413, "<html><head><title>413 Request Entity Too Large</title></head></html>".into(), O::PayloadTooLarge, false, false),
        (413, r#"{"error":{"code":"invalid_request","message":"too big"}}"#.into(), O::PayloadTooLarge, false, false),
        (413, r#"{"message":"body limit is 1048576"}"#.into(), O::PayloadTooLarge, false, false),
        // Faults of the service
        (499, google(499, "CANCELLED", "The operation was cancelled."), O::Cancelled, true, true),
        (499, r#"{"error":{"code":"cancelled","message":"x"}}"#.into(), O::Cancelled, true, true),
        (500, google(500, "INTERNAL", "An internal error has occurred. Please retry or report in https://x"), O::Internal, true, true),
        (500, format!("[{}]", google(500, "INTERNAL", "An internal error has occurred.")), O::Internal, true, true),
        (500, "got status: INTERNAL. {\"error\":{\"code\":500,\"message\":\"x\",\"status\":\"INTERNAL\"}}".into(), O::Internal, true, true),
        (500, r#"{"error":{"code":"api_error","message":"x"}}"#.into(), O::Internal, true, true),
        (500, "Internal Server Error".into(), O::Internal, true, true),
        (501, google(501, "UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled."), O::BadRequest, false, true),
        (502, "<html><title>502 Bad Gateway</title><center>nginx</center></html>".into(), O::BadGateway, true, true),
        (503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), O::Overloaded, true, true),
        (503, google(503, "UNAVAILABLE", "This model is currently experiencing high demand. Spikes in demand are usually temporary."), O::Overloaded, true, true),
        (503, google(503, "UNAVAILABLE", "The service is currently unavailable."), O::Overloaded, true, true),
        (503, r#"{"error":{"code":"service_unavailable","message":"x"}}"#.into(), O::Overloaded, true, true),
        (503, String::new(), O::Overloaded, true, true),
        (503, google(503, "UNAVAILABLE", "Deadline expired before operation could complete."), O::Deadline, true, true),
        (504, google(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."), O::Deadline, true, true),
        (504, r#"{"error":{"code":"deadline_exceeded","message":"x"}}"#.into(), O::Deadline, true, true),
        (504, "<html><title>504 Gateway Time-out</title></html>".into(), O::Deadline, true, true),
        (408, String::new(), O::Deadline, true, true),
    ]);
}

#[test]
fn wrappers_do_not_hide_the_cause() {
    use Outcome as O;
    let overloaded = google(503, "UNAVAILABLE", "The model is overloaded. Please try again later.");
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let gone = google(404, "NOT_FOUND", "Requested entity was not found.");
    check(&[
        (500, format!(r#"{{"error":{{"message":{},"type":null,"param":null,"code":"500"}}}}"#, quoted(&format!("litellm.InternalServerError: geminiException - {overloaded}. Received Model Group=m"))), O::Overloaded, true, true),
        (500, format!("Max retries exhausted. Last error: Upstream error 503 Service Unavailable: {overloaded}"), O::Overloaded, true, true),
        (500, "Upstream error 503 Service Unavailable".into(), O::Overloaded, true, true),
        (400, format!(r#"{{"error":{{"code":400,"status":"INTERNAL","message":{}}}}}"#, quoted(&google(400, "INVALID_ARGUMENT", "bad ratio"))), O::BadRequest, false, false),
        (200 + 300, format!(r#"{{"error":{{"message":{overloaded}}}}}"#), O::Overloaded, true, true),
        (500, format!(r#"{{"error":{{"message":"x","type":"api_error","upstreamStatus":404,"upstreamResponse":{gone}}}}}"#), O::NotFound, false, true),
        (500, format!(r#"{{"error":{{"message":"x","upstreamStatus":404,"upstreamResponse":{}}}}}"#, quoted(&gone)), O::NotFound, false, true),
        (502, format!(r#"{{"error":{{"message":"Provider returned error","code":502,"metadata":{{"raw":{},"provider_name":"Google"}}}}}}"#, quoted(&format!("[{overloaded}]"))), O::Overloaded, true, true),
        (404, r#"{"error":{"message":"Provider returned error","code":404,"metadata":{"raw":"","previous_errors":[{"code":429,"message":"Resource exhausted"}]}}}"#.into(), O::RateLimited, true, true),
        (500, r#"{"error":{"code":"http_error","message":"Internal server error during generate"}}"#.into(), O::Internal, true, true),
        (500, "[app] [500] Error fetching from https://h/v1/models/m: [400 Bad Request] API key not valid. Please pass a valid API key. [{\"@type\":\"t/google.rpc.ErrorInfo\",\"reason\":\"API_KEY_INVALID\"}]".into(), O::Auth, false, false),
        (400, "400 POST https://h/v1beta/models/m:generateContent?%24alt=json: User location is not supported for the API use.".into(), O::Region, false, false),
        (500, "{'error': {'code': 429, 'message': 'Resource has been exhausted (e.g. check quota).', 'status': 'RESOURCE_EXHAUSTED'}}".into(), O::RateLimited, true, true),
        (400, "%{\"error\" => %{\"code\" => 400, \"details\" => [%{\"@type\" => \"x\", \"fieldViolations\" => [%{\"description\" => \"Unknown name\"".into(), O::BadRequest, false, false),
        (400, r#"{"error":{"code":400,"message":"$grpcMessage","status":"FAILED_PRECONDITION","details":[{"@type":"t/google.rpc.DebugInfo","detail":"[ORIGINAL ERROR] generic::failed_precondition: User location is not supported for the API use."}]}}"#.into(), O::Region, false, false),
        (400, r#"{"error":{"message":"content refused: IMAGE_SAFETY","type":"channel_error","code":"channel:image_generation_failed"}}"#.into(), O::ContentBlocked, false, false),
        (400, r#"PAI 400: {"candidates":[{"content":{"role":"model"},"finishReason":"IMAGE_PROHIBITED_CONTENT","finishMessage":"Unable to show the gener"#.into(), O::ContentBlocked, false, false),
        (500, r#"{"error":{"message":"no image in response, finishReason NO_IMAGE","code":"bad_response"}}"#.into(), O::NoImage, true, true),
        (400, r#"{"error":{"code":"image_safety","message":"blocked"}}"#.into(), O::ContentBlocked, false, false),
        (429, "got status: 429 Too Many Requests. {\"error\":{\"message\":\"{\\n  \"error\": {\\n    \"code\": 429,\\n    \"message\": \"quota\",\\n \"status\": \"RESOURCE_EXHAUSTED\",\\n \"details\": [\\n {\\n \"@type\": \"t/google.rpc.QuotaFailure\",\\n \"violations\": [\\n {\\n \"quotaId\": \"GenerateRequestsPerMinutePerProject\"}]}, {\"retryDelay\": \"26s\"}]}}\\n\",\"code\":429}}".into(), O::RateLimitedMinute, true, true),
        (500, r#"upstream said: {\"error\": {\"code\": 503, \"message\": \"The model is overloaded.\", \"status\": \"UNAVAILABLE\"}}"#.into(), O::Overloaded, true, true),
        (0, format!("data: {overloaded}\n\n"), O::Overloaded, true, true),
        (0, overloaded.clone(), O::Overloaded, true, true),
        (400, r#"{"error":{"code":8,"message":"Resource has been exhausted (e.g. check quota)."}}"#.into(), O::RateLimited, true, true),
    ]);
}

#[test]
fn hints_are_taken_in_the_order_of_trust() {
    let exhausted =
        |message: &str, details: &str| google_with(429, "RESOURCE_EXHAUSTED", message, details);
    let ms = Duration::from_millis;
    for (body, headers, want, source) in [
        (
            exhausted("Please retry in 58.931s.", &retry_info("58s")),
            &[][..],
            ms(58_931),
            WaitSource::Message,
        ),
        (
            exhausted("Please retry in 12.5s.", &retry_info("58s")),
            &[],
            ms(58_000),
            WaitSource::RetryInfo,
        ),
        (
            exhausted("x", &retry_info("34.5s")),
            &[("retry-after", "7")],
            ms(34_500),
            WaitSource::RetryInfo,
        ),
        (
            exhausted("Please retry in 900.5ms", &error_info("X", r#""quotaResetDelay":"3s""#)),
            &[],
            Duration::from_micros(900_500),
            WaitSource::Message,
        ),
        (
            exhausted("reset after 9s", &error_info("X", r#""quotaResetDelay":"539.477544ms""#)),
            &[],
            Duration::from_nanos(539_477_544),
            WaitSource::QuotaResetDelay,
        ),
        (
            exhausted("Your quota will reset after 1m3s", ""),
            &[("retry-after", "7")],
            ms(63_000),
            WaitSource::ResetText,
        ),
        (exhausted("x", ""), &[("retry-after", "7")], ms(7_000), WaitSource::RetryAfter),
        (
            exhausted("x", ""),
            &[("retry-after-ms", "1200"), ("retry-after", "2")],
            ms(1_200),
            WaitSource::RetryAfter,
        ),
        (
            exhausted(
                "x",
                r#"{"@type":"t/google.rpc.RetryInfo","retryDelay":{"seconds":5,"nanos":500000000}}"#,
            ),
            &[],
            ms(5_500),
            WaitSource::RetryInfo,
        ),
    ] {
        let verdict = judged_with(429, headers, &body);
        let wait = verdict.wait().unwrap_or_else(|| panic!("{body}"));
        assert_eq!((wait.stated(), wait.source()), (want, source), "{body}");
        assert!(wait.not_before() >= want);
    }
    let page = "<!DOCTYPE html><title>Error 502 (Server Error)!!1</title><p>Please try again in 30 seconds.";
    let wait = judged(502, page).wait().unwrap();
    assert_eq!((wait.stated(), wait.source()), (ms(30_000), WaitSource::Page));
    for nonsense in ["-5s", "", "x", "99999999999999999999s", "18446744073709551615d"] {
        assert_eq!(judged(429, &exhausted("x", &retry_info(nonsense))).wait(), None, "{nonsense}");
    }
    let spend = judged(
        429,
        &google(429, "RESOURCE_EXHAUSTED", "You exceeded your spend-based rate limit."),
    );
    assert_eq!(spend.wait().map(|wait| wait.stated()), Some(Duration::from_secs(600)));
    let hours = judged(429, &exhausted("Your quota will reset after 19h14m47s.", ""));
    assert_eq!(hours.wait().map(|wait| wait.stated()), Some(Duration::from_secs(69_287)));
}

#[test]
fn answers_of_200() {
    use Charge::{Charged, Maybe, Waived};
    use Outcome as O;
    let finish = |reason: &str, usage: &str| {
        format!(
            r#"{{"candidates":[{{"content":{{"role":"model"}},"finishReason":{reason}}}]{usage}}}"#
        )
    };
    let thoughts = r#","usageMetadata":{"promptTokenCount":1119,"thoughtsTokenCount":240,"totalTokenCount":1359}"#;
    let image_tokens = r#","usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1290,"candidatesTokensDetails":[{"modality":"IMAGE","tokenCount":1290}]}"#;
    let image = r#"{"candidates":[{"content":{"parts":[{"text":"here"},{},{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}}]},"finishReason":"STOP"}]}"#;
    let mut rows = vec![
        (image.to_owned(), O::Image, Charged),
        (r#"{"candidates":[{"content":{"parts":[{"inline_data":{"mime_type":"image/jpeg","data":"/9j/4AAQ...<900 chars elided>"}}]},"finishReason":1}]}"#.into(), O::Image, Charged),
        (format!("data: {image}\n\ndata: [DONE]\n\n"), O::Image, Charged),
        (format!("[{image}\n,\n{image}]"), O::Image, Charged),
        (r#"{"choices":[{"message":{"content":"","images":[{"image_url":{"url":"data:image/png;base64,iVBO"}}]},"finish_reason":"stop"}]}"#.into(), O::Image, Charged),
        (r#"{"choices":[{"message":{"content":"![i](https://h/x.png)"},"finish_reason":"stop"}]}"#.into(), O::Image, Charged),
        (r#"{"created":1,"data":[{"b64_json":"iVBO"}]}"#.into(), O::Image, Charged),
        (r#"{"created":1,"data":[{"url":"https://h/x.png"}]}"#.into(), O::Image, Charged),
        (r#"{"predictions":[{"bytesBase64Encoded":"iVBO","mimeType":"image/png"},{"raiFilteredReason":"You will not be charged for blocked images."}]}"#.into(), O::Image, Charged),
        (r#"{"candidates":[{"content":{"parts":[{"thought":true,"inlineData":{"mimeType":"image/png","data":"iVBO"}}]},"finishReason":"IMAGE_SAFETY"}]}"#.into(), O::ContentBlocked, Charged),
        // Without an image
        (finish(r#""NO_IMAGE""#, ""), O::NoImage, Maybe),
        (finish(r#""NO_IMAGE""#, thoughts), O::NoImage, Charged),
        (finish(r#""IMAGE_OTHER""#, ""), O::NoImage, Maybe),
        (finish(r#""STOP""#, ""), O::NoImage, Maybe),
        (finish(r#""STOP""#, image_tokens), O::NoImage, Charged),
        (finish(r#""OTHER""#, ""), O::NoImage, Maybe),
        (finish(r#""MALFORMED_RESPONSE""#, ""), O::NoImage, Maybe),
        (finish(r#""UNEXPECTED_TOOL_CALL""#, ""), O::NoImage, Maybe),
        (finish(r#""MAX_TOKENS""#, thoughts), O::OutOfTokens, Charged),
        (finish(r#""MISSING_THOUGHT_SIGNATURE""#, ""), O::MissingThoughtSignature, Maybe),
        (finish(r#""IMAGE_SAFETY""#, ""), O::ContentBlocked, Maybe),
        (finish(r#""IMAGE_PROHIBITED_CONTENT""#, thoughts), O::ContentBlocked, Charged),
        (finish("11", ""), O::ContentBlocked, Maybe),
        (finish("16", ""), O::NoImage, Maybe),
        (finish(r#""IMAGE_SOMETHING_NEW""#, ""), O::Other, Maybe),
        (finish(r#""IMAGE_CELEBRITY_SAFETY""#, ""), O::ContentBlocked, Maybe),
        (finish(r#""LANGUAGE""#, ""), O::ContentBlocked, Maybe),
        (r#"{"candidates":[{"finishReason":"IMAGE_OTHER","finishMessage":"Unable to show it. YOU WILL NOT BE CHARGED for this request."}]}"#.into(), O::NoImage, Waived),
        (r#"{"candidates":[{"finishReason":"IMAGE_SAFETY","finishMessage":"You won't be charged for blocked images."}]}"#.into(), O::ContentBlocked, Waived),
        (r#"{"candidates":[{"content":{"parts":[{"text":"You will not be charged."}]},"finishReason":"STOP"}]}"#.into(), O::NoImage, Maybe),
        (r#"{"predictions":[{"raiFilteredReason":"All were filtered. You will not be charged for blocked images."}]}"#.into(), O::ContentBlocked, Waived),
        (r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}"#.into(), O::NoImage, Maybe),
        (r#"{"choices":[{"message":{"content":""},"finish_reason":"content_filter","native_finish_reason":"NO_IMAGE"}]}"#.into(), O::NoImage, Maybe),
        (r#"{"created":1,"data":[]}"#.into(), O::NoImage, Maybe),
        (r#"{"candidates":[{"content":{}}]}"#.into(), O::NoImage, Maybe),
        (r#"{"candidates":[{"content":{"parts":null},"finishReason":"STOP"}]}"#.into(), O::NoImage, Maybe),
        (r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":13,"totalTokenCount":13}}"#.into(), O::PromptBlocked, Maybe),
        (r#"{"promptFeedback":{"blockReason":4}}"#.into(), O::PromptBlocked, Maybe),
        (r#"{"candidates":[],"promptFeedback":{"blockReasonMessage":"No."}}"#.into(), O::PromptBlocked, Maybe),
        (r#"{"promptFeedback":{"blockReason":"MODEL_ARMOR"},"usageMetadata":{"trafficType":"ON_DEMAND"}}"#.into(), O::PromptBlocked, Charge::None),
        (r#"{"status":"failed","errors":[{"code":"image_safety","message":"x"}],"outputs":[]}"#.into(), O::ContentBlocked, Maybe),
        (r#"{"status":"failed","errors":[{"code":"no_image","message":"x"}]}"#.into(), O::NoImage, Maybe),
        // Errors in a 200
        (google(503, "UNAVAILABLE", "overloaded"), O::StreamError, Maybe),
        (format!("data: {{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":\"a\"}}]}},\"finishReason\":\"STOP\"}}]}}\n\n{}", google(503, "UNAVAILABLE", "x")), O::StreamError, Maybe),
        (format!("data: {image}\n\n{}", google(503, "UNAVAILABLE", "x")), O::StreamError, Charged),
        (format!("data: {}\n\n", google(500, "INTERNAL", "x")), O::StreamError, Maybe),
        ("{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}]}}]}\n{\"error\": bad_json}".into(), O::StreamError, Maybe),
        (r#"{"event_type":"error","error":{"code":"api_error","message":"x"}}"#.into(), O::StreamError, Maybe),
        ("data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"cut\"}]}}]}\n\n".into(), O::Interrupted, Maybe),
        (r#"{"candidates":[{"content":{"parts":[{"text":"cut of"#.into(), O::Interrupted, Maybe),
        (r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw0K"#.into(), O::Interrupted, Charged),
        (String::new(), O::Interrupted, Maybe),
        (r#"{"this":"is foreign"}"#.into(), O::Other, Maybe),
    ];
    rows.push((format!("event: message\r\ndata: {image}\r\n\r\n"), O::Image, Charged));
    for (body, outcome, charge) in rows {
        let verdict = judged(200, &body);
        assert_eq!((verdict.outcome(), verdict.charge()), (outcome, charge), "{body}");
        if matches!(outcome, O::ContentBlocked | O::PromptBlocked | O::OutOfTokens | O::Image) {
            assert!(!verdict.is_retryable() && !verdict.another_model_helps(), "{body}");
        }
    }
}

#[test]
fn the_cause_of_a_broken_stream_decides_whether_it_passes() {
    assert!(judged(200, &google(503, "UNAVAILABLE", "x")).is_retryable());
    assert!(judged(200, &google(499, "CANCELLED", "x")).is_retryable());
    let gone = judged(
        200,
        r#"{"event_type":"error","error":{"code":"not_found","message":"Result not found."}}"#,
    );
    assert!(!gone.is_retryable() && !gone.another_model_helps());
    let zero = judged(200, &google(429, "RESOURCE_EXHAUSTED", "quota, limit: 0"));
    assert!(!zero.is_retryable());
}

/// Status, body, outcome, charge, whether another model helps.
#[test]
fn rules_decide_where_only_they_differ() {
    use Charge::{Maybe, None as Free};
    use Outcome as O;
    let minute = violation("requests", "GenerateRequestsPerMinutePerProjectPerModel", "5");
    let denied = |details: &str| google_with(403, "PERMISSION_DENIED", "x", details);
    for (status, body, outcome, charge, elsewhere) in [
        // A gateway's vague number gives way to its word; Google's number stands.
        (
            500,
            r#"{"error":{"statusCode":500,"code":"unavailable"}}"#.into(),
            O::Overloaded,
            Maybe,
            true,
        ),
        (500, google(500, "UNAVAILABLE", "x"), O::Internal, Free, true),
        (404, r#"{"error":{"message":"x","code":400}}"#.into(), O::NotFound, Free, false),
        (
            500,
            r#"{"error":{"message":"status: 429 slow down","code":502}}"#.into(),
            O::RateLimited,
            Free,
            true,
        ),
        (
            404,
            r#"{"error":{"message":"status: 503 x","code":404}}"#.into(),
            O::NotFound,
            Free,
            false,
        ),
        // The reason alone.
        (
            400,
            google_with(400, "INVALID_ARGUMENT", "x", &error_info("API_KEY_INVALID", "")),
            O::Auth,
            Free,
            false,
        ),
        (
            400,
            google_with(400, "INVALID_ARGUMENT", "x", &error_info("SERVICE_DISABLED", "")),
            O::Permission,
            Free,
            false,
        ),
        (413, google(413, "INVALID_ARGUMENT", "x"), O::PayloadTooLarge, Free, false),
        (403, denied(&error_info("INSUFFICIENT_SCOPE", "")), O::Permission, Free, false),
        (403, denied(&error_info("INSUFFICIENT_CREDITS", "")), O::QuotaZeroOrBilling, Free, false),
        (403, denied(&error_info("INSUFFICIENT_BALANCE", "")), O::QuotaZeroOrBilling, Free, false),
        // The service's own faults are not the conversation's.
        (500, "invalid thought signature".into(), O::Internal, Maybe, true),
        (499, "invalid thought signature".into(), O::MissingThoughtSignature, Free, false),
        // Google's older format.
        (
            403,
            r#"{"error":{"code":403,"message":"x","errors":[{"reason":"dailyLimitExceeded"}]}}"#
                .into(),
            O::RateLimitedDay,
            Free,
            true,
        ),
        (
            403,
            r#"{"error":{"code":403,"message":"x","errors":[{"reason":"quotaExceeded"}]}}"#.into(),
            O::RateLimited,
            Free,
            true,
        ),
        // Advice to enable billing is a limit's too.
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", "5 per day. Please enable billing"),
            O::RateLimitedDay,
            Free,
            true,
        ),
        (
            400,
            google(400, "FAILED_PRECONDITION", "Please enable billing"),
            O::QuotaZeroOrBilling,
            Free,
            false,
        ),
        // A limit under a status that is none.
        (403, denied(&quota_failure(&[minute])), O::RateLimitedMinute, Free, true),
        (403, denied(&error_info("QUOTA_EXCEEDED", "")), O::RateLimited, Free, true),
        (500, "Rate limit exceeded".into(), O::RateLimited, Free, true),
        (500, google(500, "INTERNAL", "Rate limit exceeded"), O::Internal, Free, true),
        // Clashes pass, what exists already does not.
        (409, google(409, "ABORTED", "clash"), O::Other, Free, false),
        (409, google(409, "ALREADY_EXISTS", "it already exists"), O::BadRequest, Free, false),
        (409, "it already exists".into(), O::Other, Free, false),
        (425, String::new(), O::Other, Free, false),
        // Fronts know nothing of the origin.
        (520, String::new(), O::BadGateway, Maybe, true),
        (527, String::new(), O::BadGateway, Maybe, true),
        (529, String::new(), O::Overloaded, Maybe, true),
        (505, String::new(), O::Internal, Maybe, true),
        (407, String::new(), O::Permission, Free, false),
        (451, String::new(), O::Permission, Free, false),
        (410, String::new(), O::NotFound, Free, false),
        (300, google(300, "INVENTED", "x"), O::Other, Maybe, true),
        (300, google(300, "UNKNOWN", "x"), O::Internal, Maybe, true),
        // Other things than models are missing.
        (404, google(404, "NOT_FOUND", "File files/abc does not exist"), O::NotFound, Free, false),
        (404, google(404, "NOT_FOUND", "x"), O::NotFound, Free, true),
        (
            404,
            r#"{"error":{"message":"x","code":"no_such_model"}}"#.into(),
            O::NotFound,
            Free,
            true,
        ),
        // Only Google refuses before any work, and says so with a 400.
        (
            400,
            google(400, "INVALID_ARGUMENT", "prompt contains sensitive words"),
            O::PromptBlocked,
            Free,
            false,
        ),
        (
            500,
            google(500, "INTERNAL", "prompt contains sensitive words"),
            O::PromptBlocked,
            Maybe,
            false,
        ),
        (400, "prompt contains sensitive words".into(), O::PromptBlocked, Maybe, false),
        (
            400,
            r#"{"error":{"message":"x","type":"moderation_blocked"}}"#.into(),
            O::PromptBlocked,
            Maybe,
            false,
        ),
        (
            500,
            r#"{"error":{"message":"against our policy","code":"image_generation_failed"}}"#.into(),
            O::ContentBlocked,
            Maybe,
            false,
        ),
        (
            500,
            r#"{"error":{"message":"against the odds","code":"image_generation_failed"}}"#.into(),
            O::Internal,
            Maybe,
            true,
        ),
        (
            500,
            r#"{"error":{"message":"x","type":"overloaded_error"}}"#.into(),
            O::Overloaded,
            Maybe,
            true,
        ),
        (
            403,
            r#"{"error":{"message":"x","code":"unsupported_country"}}"#.into(),
            O::Region,
            Free,
            false,
        ),
        (
            403,
            r#"{"error":{"message":"x","code":"billing_hard_limit_reached"}}"#.into(),
            O::QuotaZeroOrBilling,
            Free,
            false,
        ),
        (
            403,
            r#"{"error":{"message":"x","type":"insufficient_quota"}}"#.into(),
            O::QuotaZeroOrBilling,
            Free,
            false,
        ),
        (
            403,
            r#"{"error":{"message":"x","code":"insufficient_permission"}}"#.into(),
            O::Permission,
            Free,
            false,
        ),
        // A field's limit is no quota's.
        (
            400,
            google(400, "INVALID_ARGUMENT", "count is over the limit: 0"),
            O::BadRequest,
            Free,
            false,
        ),
        (400, "quota: limit: 0".into(), O::QuotaZeroOrBilling, Free, false),
        (400, "size: limit: 0".into(), O::BadRequest, Free, false),
    ] {
        let verdict = judged(status, &body);
        assert_eq!((verdict.outcome(), verdict.charge()), (outcome, charge), "{status} {body}");
        assert_eq!(verdict.another_model_helps(), elsewhere, "{status} {body}");
    }
}

#[test]
fn a_proxys_header_never_makes_a_day_of_a_limit() {
    for (headers, want) in [
        (&[("retry-after", "3600")][..], Outcome::RateLimited),
        (&[("retry-after", "2")], Outcome::RateLimited),
    ] {
        assert_eq!(judged_with(429, headers, "").outcome(), want);
    }
    let quota = |text: &str| {
        let info = error_info("QUOTA_EXHAUSTED", "");
        judged(429, &google_with(429, "RESOURCE_EXHAUSTED", text, &info)).outcome()
    };
    assert_eq!(quota("Your quota will reset after 5m"), Outcome::RateLimitedMinute);
    assert_eq!(quota("Your quota will reset after 5m1s"), Outcome::RateLimitedDay);
    // Beside a violated day only hours are believed.
    let day =
        |delay| judged(429, &limited("requests", "GenerateRequestsPerDay", "5", delay)).wait();
    assert_eq!(day("300s"), None);
    assert_eq!(day("301s").map(|wait| wait.stated()), Some(Duration::from_secs(301)));
}

/// Two readers knew different shapes: an image in `generatedImages` or in the Responses API's
/// `output` was found in a short body and missed in a scanned one.
#[test]
fn a_response_means_the_same_read_whole_and_scanned() {
    use Outcome as O;
    let choice =
        |member: &str| format!(r#"{{"choices":[{{"message":{{"content":""}},{member}}}]}}"#);
    for (body, outcome) in [
        (
            r#"{"generatedImages":[{"image":{"imageBytes":"iVBO","mimeType":"image/png"}}]}"#
                .into(),
            O::Image,
        ),
        (r#"{"generated_images":[{"image":{"gcsUri":"gs://b/x.png"}}]}"#.into(), O::Image),
        (r#"{"predictions":[{"rai_filtered_reason":"blocked"}]}"#.into(), O::ContentBlocked),
        (
            r#"{"status":"completed","output":[{"type":"image_generation_call","result":"iVBO"}]}"#
                .into(),
            O::Image,
        ),
        (
            r#"{"status":"completed","output":[{"type":"function_call","result":"iVBO"}]}"#.into(),
            O::NoImage,
        ),
        (
            r#"{"outputs":[{"type":"image","url":"https://h/x.png"}],"status":"completed"}"#.into(),
            O::Image,
        ),
        (
            r#"{"result":{"data":{"candidates":[{"finishReason":"IMAGE_SAFETY"}]}}}"#.into(),
            O::ContentBlocked,
        ),
        (r#"{"finishReason":"IMAGE_SAFETY"}"#.into(), O::ContentBlocked),
        (
            choice(r#""finish_reason":"stop","native_finish_reason":"IMAGE_SAFETY""#),
            O::ContentBlocked,
        ),
        (
            choice(r#""native_finish_reason":"IMAGE_SAFETY","finish_reason":"stop""#),
            O::ContentBlocked,
        ),
        (
            choice(
                r#""finish_reason":"stop","provider_specific_fields":{"native_finish_reason":"MAX_TOKENS"}"#,
            ),
            O::OutOfTokens,
        ),
        (
            choice(r#""finish_reason":"error","error":{"code":503,"message":"overloaded"}"#),
            O::StreamError,
        ),
        (
            r#"{"choices":[{"message":{"content":null,"refusal":"No."},"finish_reason":"stop"}]}"#
                .into(),
            O::NoImage,
        ),
        (r#"{"error":{},"candidates":[{"finishReason":"NO_IMAGE"}]}"#.into(), O::NoImage),
        (
            r#"{"status":"failed","errors":[{"code":"image_safety","message":"x"}]}"#.into(),
            O::ContentBlocked,
        ),
    ] {
        let mut scanner = Scanner::judging(Framing::Whole);
        scanner.feed(body.as_bytes()).unwrap();
        let scanned = classify_answer(&image_call(), &scanner.finish().unwrap());
        let whole = judged(200, &body);
        assert_eq!(whole.outcome(), outcome, "{body}");
        assert_eq!(whole, scanned, "{body}");
    }
}

#[test]
fn finish_numbers_belong_to_their_api() {
    let body = br#"{"candidates":[{"finishReason":9}]}"#;
    let mut call = image_call();
    call.dialect = Dialect::GeminiApi;
    let of = |call: &Call| classify(call, StatusCode::OK, &HeaderMap::new(), body).outcome();
    assert_eq!(of(&call), Outcome::ContentBlocked, "SPII");
    call.dialect = Dialect::VertexAi;
    assert_eq!(of(&call), Outcome::NoImage, "MALFORMED_FUNCTION_CALL");
}

#[test]
fn details_that_were_printed_are_read() {
    use Outcome as O;
    let go = |value: &str| {
        format!(
            "Error 429, Message: Quota exceeded., Status: RESOURCE_EXHAUSTED, Details: [map[@type:x/google.rpc.QuotaFailure \
             violations:[map[quotaDimensions:map[model:m] quotaId:GenerateRequestsPerMinutePerProjectPerModel quotaMetric:h/m \
             quotaValue:{value}]]] map[@type:x/google.rpc.RetryInfo retryDelay:34s]]"
        )
    };
    let protobuf = |value: &str| {
        format!(
            "google.api_core.exceptions.ResourceExhausted: 429 You exceeded your current quota. [violations {{\n  quota_id: \
             \"GenerateRequestsPerMinutePerProjectPerModel\"\n  quota_value: {value}\n}}\n, retry_delay {{\n  seconds: 41\n  \
             nanos: 500000000\n}}\n]"
        )
    };
    for (body, outcome, wait) in [
        (go("10"), O::RateLimitedMinute, Some(Duration::from_secs(34))),
        (go("0"), O::QuotaZeroOrBilling, None),
        (go("10").replace("PerMinute", "PerDay"), O::RateLimitedDay, None),
        (protobuf("15"), O::RateLimitedMinute, Some(Duration::from_millis(41_500))),
        (protobuf("0"), O::QuotaZeroOrBilling, None),
        ("<_Rendezvous of RPC that ended with:\n\tstatus = StatusCode.RESOURCE_EXHAUSTED\n>".into(), O::RateLimited, None),
        ("<_InactiveRpcError of RPC with:\n\tstatus = StatusCode.UNAVAILABLE\n\tdetails = \"x\"\n\tdebug = {grpc_status:14}\n>".into(), O::Overloaded, None),
        ("<Response [503 Service Unavailable]>".into(), O::Overloaded, None),
    ] {
        let verdict = judged(0, &body);
        assert_eq!((verdict.outcome(), verdict.wait().map(|wait| wait.stated())), (outcome, wait), "{body}");
    }
}

#[test]
fn the_model_of_a_zero_quota_is_found_in_printed_details() {
    for (body, elsewhere) in [
        (
            "429 Too Many Requests: map[quotaDimensions:map[model:gemini-9-image] quotaId:PaidTierPerMinute quotaValue:0]",
            true,
        ),
        (
            "429 x [violations { quota_dimensions { key: \"model\" value: \"gemini-9-flash\" } quota_value: 0 }]",
            true,
        ),
        (
            "429 Quota exceeded for metric: h/free_tier_requests, limit: 0, model: gemini-9-image",
            false,
        ),
        ("429 Quota exceeded, limit: 0. This model: unknown", false),
    ] {
        let verdict = judged(0, body);
        assert_eq!(verdict.outcome(), Outcome::QuotaZeroOrBilling, "{body}");
        assert_eq!(
            (verdict.is_retryable(), verdict.another_model_helps()),
            (false, elsewhere),
            "{body}"
        );
    }
}

#[test]
fn causes_are_found_in_textual_details() {
    use Outcome as O;
    let quota =
        serde_json::to_string(&google(429, "RESOURCE_EXHAUSTED", "Quota exceeded, limit: 0"))
            .unwrap();
    check(&[
        (500, r#"{"error":"Failed","details":"[403 Forbidden] Your API key was reported as leaked. Please use another API key."}"#.into(), O::Auth, false, false),
        (500, r#"{"error":"Failed","details":"Your API key was reported as leaked."}"#.into(), O::Auth, false, false),
        (500, format!(r#"{{"error":"Failed","details":{quota}}}"#), O::QuotaZeroOrBilling, false, false),
        (500, format!(r#"{{"error":"Failed","details":[{quota}]}}"#), O::QuotaZeroOrBilling, false, false),
        (500, r#"{"error":"Failed","details":"503 Service Unavailable"}"#.into(), O::Overloaded, true, true),
    ]);
}

#[test]
fn gateways_refuse_in_their_own_words() {
    use Outcome as O;
    check(&[
        (
            403,
            r#"{"error":{"message":"该令牌额度已用尽","type":"new_api_error"}}"#.into(),
            O::QuotaZeroOrBilling,
            false,
            false,
        ),
        (
            403,
            r#"{"error":{"message":"账户余额不足","type":"new_api_error"}}"#.into(),
            O::QuotaZeroOrBilling,
            false,
            false,
        ),
        (
            403,
            r#"{"error":{"message":"m requires moderation. Your input was flagged","code":403}}"#
                .into(),
            O::PromptBlocked,
            false,
            false,
        ),
        (
            400,
            r#"{"error":{"message":"blocked: PROHIBITED_CONTENT","code":"prompt_blocked"}}"#.into(),
            O::PromptBlocked,
            false,
            false,
        ),
        (
            500,
            r#"{"error":"Blocked: promptFeedback.blockReason=PROHIBITED_CONTENT"}"#.into(),
            O::PromptBlocked,
            false,
            false,
        ),
        (
            502,
            r#"{"detail":"Gemini returned no image (finishReason: MAX_TOKENS)"}"#.into(),
            O::OutOfTokens,
            false,
            false,
        ),
        (
            500,
            r#"{"error":"No image, finish reason is SAFETY"}"#.into(),
            O::ContentBlocked,
            false,
            false,
        ),
        (
            0,
            "finish_reason=<FinishReason.SPII: 'SPII'> content=None".into(),
            O::ContentBlocked,
            false,
            false,
        ),
        (
            500,
            r#"{"error":"did not finish; the reason: a safety belt"}"#.into(),
            O::Internal,
            true,
            true,
        ),
        (
            404,
            r#"{"error":{"message":"No endpoints found that support image output.","code":404}}"#
                .into(),
            O::NotFound,
            false,
            true,
        ),
    ]);
}

#[test]
fn events_of_interactions_bring_the_image() {
    let event = r#"data: {"event_type":"content.delta","delta":{"type":"image","mime_type":"image/png","data":"iVBO"}}"#;
    let end = r#"data: {"event_type":"interaction.complete","interaction":{"id":"v1","status":"completed"}}"#;
    let verdict = judged(200, &format!("{event}\n\n{end}\n\n"));
    assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::Image, Charge::Charged));
    // Without its end it is cut off, and paid for all the same.
    let verdict = judged(200, &format!("{event}\n\n"));
    assert!(!verdict.is_retryable() && verdict.charge() == Charge::Charged);
}

/// Every status of an interaction, whole: (what else it says, outcome, charge, whether it is worth
/// sending again).
#[test]
fn an_interaction_is_judged_by_its_status() {
    use {Charge as C, Outcome as O};
    const USAGE: &str = r#","usage":{"total_output_tokens":9}"#;
    const SAFE: &str = r#","errors":[{"code":"image_safety","message":"no"}]"#;
    const BUSY: &str = r#","errors":[{"code":"service_unavailable","message":"later"}]"#;
    const IMAGE: &str = r#","steps":[{"type":"model_output","content":[{"type":"image","mime_type":"image/png","data":"iVBO"}]}]"#;
    const BY_URI: &str = r#","steps":[{"type":"model_output","content":[{"type":"image","mime_type":"image/png","uri":"https://files.example/a"}]}]"#;
    let table = [
        ("queued", "", O::Answered, C::Maybe, false),
        ("in_progress", "", O::Answered, C::Maybe, false),
        ("in_progress", USAGE, O::Answered, C::Maybe, false),
        ("incomplete", "", O::OutOfTokens, C::Maybe, false),
        ("incomplete", USAGE, O::OutOfTokens, C::Charged, false),
        ("completed", "", O::NoImage, C::Maybe, true),
        ("completed", USAGE, O::NoImage, C::Charged, false),
        ("completed", IMAGE, O::Image, C::Charged, false),
        ("completed", BY_URI, O::Image, C::Charged, false),
        ("failed", SAFE, O::ContentBlocked, C::Maybe, false),
        ("failed", BUSY, O::StreamError, C::Maybe, true),
        ("failed", "", O::NoImage, C::Maybe, true),
        ("cancelled", "", O::Cancelled, C::Maybe, false),
        ("cancelled", USAGE, O::Cancelled, C::Charged, false),
        ("requires_action", "", O::Answered, C::Maybe, false),
        ("requires_action", USAGE, O::Answered, C::Charged, false),
        ("budget_exceeded", "", O::OutOfTokens, C::Maybe, false),
        ("budget_exceeded", USAGE, O::OutOfTokens, C::Charged, false),
    ];
    let call = |method: &Method, path: &str| {
        let mut call = Call::parse(method, &path.parse().unwrap(), &HeaderMap::new(), None);
        call.wants_image = *method == Method::POST;
        call
    };
    let made = call(&Method::POST, "/v1beta/interactions");
    let fetched = call(&Method::GET, "/v1beta/interactions/v1_abc");
    for (status, rest, outcome, charge, again) in table {
        let document = format!(r#"{{"id":"v1_abc","status":"{status}"{rest}}}"#);
        let judge =
            |call: &Call| classify(call, StatusCode::OK, &HeaderMap::new(), document.as_bytes());
        let verdict = judge(&made);
        let found = (verdict.outcome(), verdict.charge());
        assert_eq!(found, (outcome, charge), "{document}");
        assert_eq!(verdict.is_retryable(), again && charge != C::Charged, "{document}");
        let verdict = judge(&fetched);
        assert_eq!(verdict.charge(), C::None, "fetching costs nothing: {document}");
        // A log need not say which API it is of, nor which status it came with.
        let logged = document.replace("\"id\"", "\"object\":\"interaction\",\"id\"");
        let verdict = classify_without_status(&image_call(), &HeaderMap::new(), logged.as_bytes());
        assert_eq!(verdict.outcome(), outcome, "{logged}");
        // Cut off, it says nothing, and its connection is not what it was charged for.
        let cut = &document.as_bytes()[..document.len() - 1];
        let verdict = classify(&made, StatusCode::OK, &HeaderMap::new(), cut);
        assert!(!verdict.charge().is_surely_free(), "{document}: {verdict}");
    }
}

#[test]
fn calls_that_want_no_image_are_answered_by_text() {
    let text =
        br#"{"candidates":[{"content":{"parts":[{"text":"hello"}]},"finishReason":"STOP"}]}"#;
    let of = |body: &[u8]| {
        classify(&Call::unrecognised(), StatusCode::OK, &HeaderMap::new(), body).outcome()
    };
    assert_eq!(of(text), Outcome::Answered);
    assert_eq!(of(br#"{"totalTokens":7}"#), Outcome::Answered);
    assert_eq!(of(b""), Outcome::Answered);
    assert_eq!(of(b"ok"), Outcome::Answered);
}

#[test]
fn verdicts_tell_what_was_stated() {
    let retired = judged(
        404,
        &google(
            404,
            "NOT_FOUND",
            "This model models/old is no longer available to new users. Please update your code to use models/new-image.",
        ),
    );
    assert_eq!(retired.detail().unwrap().successor.as_deref(), Some("new-image"));
    let wrapped = judged(500, &google(503, "UNAVAILABLE", "The model is overloaded."));
    assert_eq!(wrapped.detail().unwrap().inner_status, Some(503));
    assert_eq!(judged(503, "").detail(), None);
    let bare = judged(0, &google(503, "UNAVAILABLE", "x"));
    assert_eq!(bare.detail().unwrap().inner_status, Some(503));
    assert_eq!(judged(0, "429 Too Many Requests").detail().unwrap().inner_status, Some(429));
    assert_eq!(wrapped.quota(), QuotaCharge::Counted);
    assert_eq!(judged(500, "x").quota(), QuotaCharge::Maybe);
    let long = judged(400, &google(400, "INVALID_ARGUMENT", &"é".repeat(2000)));
    assert_eq!(long.message().unwrap().chars().count(), 512);
    let debug = judged(
        400,
        r#"{"error":{"code":400,"message":"$grpcMessage","status":"X","details":[{"detail":"the truth"}]}}"#,
    );
    assert_eq!(debug.message(), Some("the truth"));
}

#[test]
fn gateways_that_lost_patience_know_nothing_of_the_charge() {
    for (status, body) in [
        (504, "<html><title>504 Gateway Time-out</title></html>"),
        (408, ""),
        (524, "error code: 524"),
        (504, "upstream request timeout"),
    ] {
        let verdict = judged(status, body);
        assert_eq!(
            (verdict.outcome(), verdict.charge()),
            (Outcome::Deadline, Charge::Maybe),
            "{status}"
        );
    }
    let expired = "Deadline expired before operation could complete.";
    assert_eq!(judged(504, &google(504, "DEADLINE_EXCEEDED", expired)).charge(), Charge::None);
    assert_eq!(judged(503, &google(503, "UNAVAILABLE", expired)).charge(), Charge::None);
    let gateway = judged(
        500,
        r#"{"error":{"message":"do request failed: context deadline exceeded","code":"do_request_failed"}}"#,
    );
    assert_eq!((gateway.outcome(), gateway.charge()), (Outcome::Deadline, Charge::Maybe));
}

/// A 200 of countTokens, of a file listing and of a URL that is not Gemini's was called "charged".
#[test]
fn only_calls_that_generate_are_charged() {
    let (get, post) = (Method::GET, Method::POST);
    let call = |method: &Method, path: &str| {
        Call::parse(method, &path.parse().unwrap(), &HeaderMap::new(), Some(b"{}"))
    };
    let text = r#"{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}"#;
    for (method, path, body, want) in [
        (&post, "/v1beta/models/m:countTokens", r#"{"totalTokens":7}"#, Charge::None),
        (&post, "/v1beta/models/m:countTokens", "", Charge::None),
        (&get, "/v1beta/files", r#"{"files":[{"name":"files/1"}]}"#, Charge::None),
        (&get, "/v1beta/models", r#"{"models":[]}"#, Charge::None),
        (&post, "/upload/v1beta/files", r#"{"file":{"name":"files/1"}}"#, Charge::Maybe),
        (&post, "/orders", "ok", Charge::Maybe),
        (&post, "/v1beta/models/m:inventedVerb", text, Charge::Maybe),
        (&post, "/v1beta/models/m:generateContent", text, Charge::Charged),
        (
            &post,
            "/v1beta/models/m:batchGenerateContent",
            r#"{"name":"batches/1"}"#,
            Charge::Charged,
        ),
    ] {
        let call = call(method, path);
        let verdict = classify(&call, StatusCode::OK, &HeaderMap::new(), body.as_bytes());
        assert_eq!(verdict.charge(), want, "{method} {path}");
    }
    let count = call(&post, "/v1beta/models/m:countTokens");
    assert_eq!(limit_charge(&count, Verdict::answering()).charge(), Charge::None);
    assert_eq!(limit_charge(&count, Verdict::interrupted()).charge(), Charge::None);
}

#[test]
fn a_call_that_is_idempotent_may_be_resent_wherever_it_goes() {
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
        let call = Call::parse(&method, &"/orders/1".parse().unwrap(), &HeaderMap::new(), None);
        for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_GATEWAY] {
            let verdict = classify(&call, status, &HeaderMap::new(), b"");
            assert!(verdict.is_retryable() && verdict.charge().is_surely_free(), "{method}");
        }
    }
}

fn fixtures() -> Vec<(u16, String)> {
    vec![
        (429, limited("generate_content_free_tier_requests", "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "50", "2s")),
        (429, limited("generate_content_requests", "GenerateRequestsPerMinutePerProjectPerModel", "5", "31s")),
        (429, google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")),
        (503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")),
        (400, google(400, "INVALID_ARGUMENT", "Request contains an invalid argument.")),
        (404, google(404, "NOT_FOUND", "models/x is not found for API version v1beta")),
        (403, google(403, "PERMISSION_DENIED", "The caller does not have permission")),
        (400, google(400, "FAILED_PRECONDITION", "User location is not supported for the API use.")),
        (429, google(429, "RESOURCE_EXHAUSTED", "Quota exceeded for metric: x, limit: 0\nPlease retry in 5s.")),
        (200, r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"iVBO"}}]},"finishReason":"STOP"}]}"#.to_owned()),
    ]
}

/// Wraps a body once more, as gateways do.
fn wrap(body: &str, how: u8) -> String {
    let quoted = serde_json::to_string(body).unwrap();
    let is_json = serde_json::from_str::<serde_json::Value>(body).is_ok();
    match if is_json { how % 6 } else { how % 2 } {
        0 => format!(
            r#"{{"error":{{"message":{quoted},"code":500,"status":"Internal Server Error"}}}}"#
        ),
        1 => format!("litellm.APIError: geminiException - {body}"),
        2 => format!(r#"{{"error":{{"message":{body}}}}}"#),
        3 => format!("[{body}]"),
        4 => format!(
            r#"{{"error":{{"message":"Provider returned error","code":502,"metadata":{{"raw":{quoted}}}}}}}"#
        ),
        _ => format!("Last error: {body}\n. Received Model Group=m"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// A POST to an unknown service was sent again after a 500 or 502, since its verdict said that
    /// nothing was charged.
    #[test]
    fn a_call_that_is_not_recognised_is_never_resent(status in 100u16..1000, which in 0usize..10, from_google in any::<bool>()) {
        let status = StatusCode::from_u16(status).unwrap();
        let body = if from_google { fixtures().swap_remove(which).1 } else { String::new() };
        let uri = "/orders".parse().unwrap();
        let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
        let verdict = classify(&call, status, &HeaderMap::new(), body.as_bytes());
        let would_be_resent = verdict.is_retryable() || verdict.another_model_helps();
        prop_assert!(!would_be_resent || !verdict.charge().is_surely_free(), "{:?}", verdict);
        if matches!(status.as_u16(), 500 | 502 | 503) && !from_google {
            prop_assert_eq!(verdict.charge(), Charge::Maybe);
        }
    }

    #[test]
    fn any_bytes_are_judged(status in 100u16..1000, body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let status = StatusCode::from_u16(status).unwrap();
        let verdict = classify(&image_call(), status, &HeaderMap::new(), &body);
        let _ = classify_without_status(&image_call(), &HeaderMap::new(), &body);
        prop_assert!(!status.is_success() || !verdict.charge().is_surely_free());
    }

    #[test]
    fn mutated_answers_are_judged(which in 0usize..10, cut in 0usize..600, at in 0usize..600, with in "[\\[\\]{}\"',:\\\\x0-9]{0,4}", status in 100u16..600) {
        let (_, mut body) = fixtures().swap_remove(which);
        body.truncate(cut.min(body.len()));
        body.insert_str(at.min(body.len()), &with);
        let _ = classify(&image_call(), StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes());
        let _ = classify_without_status(&image_call(), &HeaderMap::new(), body.as_bytes());
    }

    #[test]
    fn a_day_is_never_a_minute(prefix in "[A-Za-z]{0,20}", suffix in "(-FreeTier|-PaidTier2|PerModel)?", delay in "[0-9]{1,5}(\\.[0-9]{1,9})?s", status in prop_oneof![Just(429u16), Just(500), Just(503)]) {
        let body = limited("generate_content_requests", &format!("{prefix}PerDay{suffix}"), "7", &delay);
        let verdict = judged(status, &body);
        prop_assert_eq!(verdict.outcome(), Outcome::RateLimitedDay);
        prop_assert!(!verdict.is_retryable());
    }

    #[test]
    fn limit_zero_is_never_retryable(before in "[a-zA-Z /_.,*]{0,60}", blanks in "[ ]{0,3}", delay in "[0-9]{1,4}(\\.[0-9]{1,9})?s", how in 0u8..6, layers in 0usize..4) {
        let mut body = google_with(429, "RESOURCE_EXHAUSTED", &format!("{before} limit:{blanks}0, x"), &retry_info(&delay));
        for _ in 0..layers {
            body = wrap(&body, how);
        }
        let verdict = judged(429, &body);
        prop_assert!(!verdict.is_retryable(), "{:?}", verdict);
    }

    #[test]
    fn no_wait_is_shorter_than_stated(seconds in 0u64..100_000, nanos in 0u32..1_000_000_000, whole in any::<bool>()) {
        let stated = Duration::new(seconds, if whole { 0 } else { nanos });
        let delay = if whole { format!("{seconds}s") } else { format!("{seconds}.{nanos:09}s") };
        let body = google_with(429, "RESOURCE_EXHAUSTED", "Please slow down", &retry_info(&delay));
        if let Some(wait) = judged(429, &body).wait() {
            prop_assert!(wait.stated() >= stated);
            prop_assert!(wait.not_before() >= stated);
        }
    }

    #[test]
    fn a_success_that_made_an_image_is_never_resent(
        reason in "(STOP|NO_IMAGE|IMAGE_OTHER|IMAGE_SAFETY|OTHER|NEW_ONE|)",
        message in "(You will not be charged for this request\\.|)",
        tokens in 1u64..5000,
        has_part in any::<bool>(),
        tail in "(|x|\\n\\{\"error\":\\{\"code\":503\\}\\}|\\n\\{\"error\":\\{\"code\":429,\"status\":\"RESOURCE_EXHAUSTED\")",
        status in prop_oneof![Just(200u16), Just(201), Just(206)],
    ) {
        let part = if has_part { r#"{"inlineData":{"mimeType":"image/png","data":"iVBO"}}"# } else { "" };
        let body = format!(
            r#"{{"candidates":[{{"content":{{"parts":[{part}]}},"finishReason":"{reason}","finishMessage":"{message}"}}],"usageMetadata":{{"candidatesTokenCount":{tokens},"candidatesTokensDetails":[{{"modality":"IMAGE","tokenCount":{tokens}}}]}}}}{tail}"#
        );
        let verdict = judged(status, &body);
        prop_assert!(!verdict.charge().is_surely_free(), "{:?}", verdict);
    }

    #[test]
    fn wrapping_keeps_the_meaning(which in 0usize..9, hows in proptest::collection::vec(0u8..6, 1..4)) {
        let (status, body) = fixtures().swap_remove(which);
        let bare = judged(status, &body);
        let mut wrapped = body;
        for how in &hows {
            wrapped = wrap(&wrapped, *how);
        }
        let verdict = judged(500, &wrapped);
        prop_assert_eq!(verdict.outcome(), bare.outcome(), "{}", wrapped);
        prop_assert_eq!(verdict.wait(), bare.wait());
        prop_assert_eq!(judged(0, &wrapped).outcome(), bare.outcome(), "{}", wrapped);
    }
}
