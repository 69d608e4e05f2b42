//! The status page and its data.
//!
//! | path | content |
//! | --- | --- |
//! | `/status.json` | [`Status::to_json`], `application/json` |
//! | `/status` | [`page`] with `Content-Security-Policy:` [`csp`], `text/html; charset=utf-8` |
//!
//! The page is one constant string that loads nothing but `status.json`, every five seconds, and
//! draws it. Its policy allows the browser exactly the page's own script and style, by their hashes,
//! and requests to this server. The script makes elements and text only, so no value in the JSON can
//! become markup. `status.json` is requested next to the page, so a path prefix in front of both
//! does no harm.
//!
//! # Schema
//!
//! Times are in UTC, money is in micro-dollars, rates are from 0 to 1. Fields may be added; a field
//! that is removed or changes its meaning raises `schema_version`. `null` is a value that is not
//! known or not configured.
//!
//! ## Status
//!
//! | field | value |
//! | --- | --- |
//! | `schema_version` | 1 |
//! | `version` | of the gateway |
//! | `uptime_seconds` | since the gateway started |
//! | `upstream` | host that calls go to |
//! | `at_unix_seconds` | when this was written |
//! | `since_unix_seconds` | when counting began |
//! | `calls_in_flight` | calls that have not ended |
//! | `diagnosis` | `hour`, `day`: [Diagnosis](#diagnosis) |
//! | `last_hour` | [Window](#window) of the last 60 to 65 minutes |
//! | `last_day` | [Window](#window) of the last 24 hours on the clock, the current one included |
//! | `total` | [Window](#window) since counting began |
//! | `hours` | [Hour](#hour) for each of the last 48 with calls, oldest first |
//! | `days` | [Window](#window) for each of the last 30 with calls, oldest first |
//! | `failure_rate_targets` | `off_peak`, `peak`, `peak_hours_known` |
//! | `recent_calls` | [Call](#call) for each of the latest 50, newest first |
//! | `load` | [Load](#load) of this moment |
//! | `quotas` | [Quota](#quota) for each project and model |
//! | `circuits` | [Circuit](#circuit) for each target that has failed |
//! | `spending` | [Spending](#spending) for each period |
//! | `budgets` | [Budget](#budget) for each upstream that has one |
//! | `callers` | [Caller](#caller) for each token that has called |
//! | `stored` | [Stored](#stored), `null` if storing is off |
//! | `alerts` | [Alerts](#alerts), `null` without `alerts.webhook` |
//!
//! ## Diagnosis
//!
//! | field | value |
//! | --- | --- |
//! | `health` | `unknown`, `good`, `strained`, `failing` |
//! | `cause` | of most failures: a [`Cause`](crate::stats::Cause) in snake case |
//! | `limit` | `minute`, `day`, `zero`, `spend`, `unnamed` for the cause `rate_limited` |
//! | `title` | the cause in a few words |
//! | `summary` | one or two sentences |
//! | `advice` | what to do, the most useful first |
//! | `unhelpful` | common reactions that do not help |
//!
//! ## Window
//!
//! Calls that generate nothing count as `other_calls` and towards cost and quota only.
//!
//! | field | value |
//! | --- | --- |
//! | `start_unix_seconds` | when it began |
//! | `calls` | ended calls |
//! | `successes` | calls whose clients got what they requested |
//! | `failures` | calls whose clients were connected and did not |
//! | `client_disconnects` | calls whose clients disconnected |
//! | `failure_rate` | failures of successes and failures |
//! | `outcomes` | calls by [`CallOutcome`](tower_gemini::observe::CallOutcome) |
//! | `other_calls` | token counts, lists of models … |
//! | `degraded` | successes with another model or a smaller image |
//! | `call_seconds_p50`, `call_seconds_p95` | durations of calls, up to 19 % too high |
//! | `attempts` | ended attempts |
//! | `failed_attempts` | those that failed |
//! | `attempt_outcomes` | attempts by [`Outcome`](tower_gemini::verdict::Outcome) |
//! | `failure_kinds` | failed attempts by the [`Cause`](crate::stats::Cause) that they point to: `rate_limited` (429), `overloaded` (503), `server_fault` (500, 502, 504) … |
//! | `attempt_seconds_p50`, `attempt_seconds_p95` | durations of attempts, up to 19 % too high |
//! | `retries` | attempts at the same target as before |
//! | `fallback_attempts` | attempts at another target |
//! | `skipped_targets` | targets that a fallback skipped |
//! | `waits` | `count` and `seconds` by reason |
//! | `completed_without_client` | calls that continued after their clients disconnected |
//! | `stored_responses`, `not_stored_responses` | what became of their responses |
//! | `replayed_responses` | stored responses sent to a later, identical request |
//! | `images` | calls that delivered an image, replays included |
//! | `drafts` | drafts in their responses |
//! | `cost` | [Cost](#cost) of all attempts |
//! | `cost_per_image` | [Cost](#cost) per delivered image |
//! | `unpriced_attempts` | attempts without an upper cost bound |
//! | `charged_attempts`, `maybe_charged_attempts` | certainly or possibly charged |
//! | `quota_requests_at_least`, `quota_requests_at_most` | requests that the service counted |
//! | `models` | `attempts`, `successes` and `service_faults` (5xx) by model of the catalogue, `other` or `none` |
//!
//! ## Hour
//!
//! A [Window](#window) with:
//!
//! | field | value |
//! | --- | --- |
//! | `is_peak` | whether it is a peak hour |
//! | `health` | as in [Diagnosis](#diagnosis) |
//!
//! ## Cost
//!
//! | field | value |
//! | --- | --- |
//! | `at_least_microusd` | lower bound |
//! | `at_most_microusd` | upper bound, `null` if a price is not known |
//!
//! ## Call
//!
//! | field | value |
//! | --- | --- |
//! | `id` | the `call` of its log lines |
//! | `ended_unix_seconds` | when it ended |
//! | `outcome` | a [`CallOutcome`](tower_gemini::observe::CallOutcome) |
//! | `sentence` | the sentence that was logged |
//! | `took_ms` | from start to end |
//! | `cost` | [Cost](#cost) of its attempts |
//! | `under_way` | whether an attempt continues without the client |
//! | `steps` | the first 100 steps of its [`Trail`](tower_gemini::Trail) |
//! | `omitted_steps` | how many more there were |
//! | `trail` | the same as text |
//!
//! ## Load
//!
//! | field | value |
//! | --- | --- |
//! | `requests`, `requests_limit` | requests whose responses have not ended, and `server.max_in_flight` |
//! | `calls` | calls of requests, with their clients or without |
//! | `callers` | callers that have a place or wait for one |
//! | `memory_bytes`, `memory_limit_bytes` | what requests and their responses take, and `server.memory` without stored responses |
//! | `waiting_for_place`, `waiting_for_memory`, `waiting_limit` | requests in the queue, and `server.queue` |
//! | `responses_waiting_for_memory` | responses that are not read on until there is memory |
//!
//! ## Quota
//!
//! | field | value |
//! | --- | --- |
//! | `project` | a name, or a fingerprint of the key |
//! | `model` | whose quota it is |
//! | `upstream` | its name; `null` where there is but one way |
//! | `waiting_calls` | calls in the FIFO wait queue |
//! | `limits` | [Limit](#limit) |
//!
//! ## Limit
//!
//! | field | value |
//! | --- | --- |
//! | `dimension` | `rpm`, `tpm`, `ipm`, `rpd` |
//! | `limit` | as known now |
//! | `used`, `reserved` | by ended and by running calls |
//! | `resets_in_seconds` | until all of it is available |
//!
//! ## Circuit
//!
//! | field | value |
//! | --- | --- |
//! | `name` | of a model, perhaps at a size, a model's quota, or an account |
//! | `state` | `failing` (closed), `open`, `half_open` |
//! | `cause` | the outcome that opened it |
//! | `cooldown_seconds` | until a call may probe it |
//! | `consecutive` | failures in a row, or times in a row that it opened |
//!
//! ## Caller
//!
//! | field | value |
//! | --- | --- |
//! | `name` | of the token |
//! | `requests_in_flight` | that have not ended |
//! | `limits` | [Limit](#limit) for each of its `rpm` and `rpd` |
//! | `spending` | [Spending](#spending) for each of its periods |
//!
//! ## Spending
//!
//! | field | value |
//! | --- | --- |
//! | `period` | `hour`, `day` … |
//! | `began_unix_seconds` | when it began |
//! | `spent` | [Cost](#cost) |
//! | `reserved_at_most_microusd` | what running attempts may add |
//! | `cap_microusd` | the cap |
//! | `images` | delivered images |
//! | `rejected_attempts` | attempts that were not sent because of the cap |
//!
//! ## Budget
//!
//! | field | value |
//! | --- | --- |
//! | `upstream` | its name |
//! | `spending` | [Spending](#spending) for each of its periods |
//!
//! ## Stored
//!
//! | field | value |
//! | --- | --- |
//! | `in_progress` | calls being completed without their clients |
//! | `stored` | stored responses |
//! | `stored_bytes` | their size |
//! | `replayed` | replayed responses |
//! | `free` | calls of disconnected clients that cost nothing |
//! | `lost` | responses that were or may have been charged and reached nobody |
//!
//! ## Alerts
//!
//! | field | value |
//! | --- | --- |
//! | `sent` | alerts that the webhook took |
//! | `failed` | alerts that it did not take after several attempts |
//! | `problem` | why the latest was not delivered |

mod data;
mod page;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use data::nearest_cap;
pub use data::{
    Alerts, Budget, Caller, Circuit, Load, Quota, QuotaLimit, Spending, Status, Stored,
};
#[cfg(feature = "jobs")]
pub(crate) use page::policy;
pub use page::{csp, page};
