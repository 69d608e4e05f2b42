//! What holds at present, read from the state of the gateway.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tower_gemini::catalog::Date;
use tower_gemini::quota_guard::{QuotaDimension, QuotaUsage};
use tower_gemini::redact::redact;
use tower_gemini::spending::Spent;

use super::decide::{Condition, Severity};
use super::feed::Incident;
use crate::config::AlertKind;
use crate::snapshot::Snapshot;
use crate::stats::{Outage, title};
use crate::status::nearest_cap;

/// From here on a cap is reported (APIYI, guide to 429s, 2026-02, says so of quotas).
const CAP_SHARE: f64 = 0.7;

/// How many days before a model's end it is reported.
const RETIRES_WITHIN_DAYS: i32 = 30;

/// Names that callers choose are cut after so many characters.
const LONGEST_NAME: usize = 100;

/// Reads conditions. It remembers how many attempts caps had refused, so that further ones are seen.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    refused: HashMap<String, u64>,
}

impl Conditions {
    /// Everything that holds on this day.
    pub(super) fn look(&mut self, gateway: &Snapshot, today: Date) -> Vec<Condition> {
        let (layers, config) = (gateway.layers(), gateway.config());
        let mut all = Vec::new();
        all.extend(gateway.state().problem().map(|what| {
            let what = format!("State cannot be written, and paid work is refused: {what}");
            condition(AlertKind::Store, "", Severity::Critical, what)
        }));
        all.extend(gateway.auth().problem().map(|what| {
            let what = format!("Nobody is admitted, for the list of tokens: {what}");
            condition(AlertKind::NobodyAdmitted, "", Severity::Critical, what)
        }));
        all.extend(layers.stats.outages().iter().map(outage));
        let caps = layers.spending.spent().into_iter().map(|spent| (None, spent));
        let budgets = layers.budgets.spent().flat_map(|(upstream, spent)| {
            spent.into_iter().map(move |spent| (Some(upstream), spent))
        });
        for (upstream, spent) in caps.chain(budgets) {
            let key = format!("{} {}", upstream.unwrap_or_default(), spent.period);
            let seen = self.refused.insert(key, spent.refused).unwrap_or(0);
            all.extend(cap(upstream, &spent, spent.refused > seen));
        }
        let warn_at = config.quota.warn_at_percent;
        all.extend(gateway.quota_usages().iter().flat_map(|usage| quota(usage, warn_at)));
        let asked = layers.stats.asked_models();
        let models: BTreeSet<&str> = config.models().chain(asked.iter().map(Arc::as_ref)).collect();
        let dated = models.into_iter().filter_map(|name| {
            let model = gateway.catalog().lookup(name)?;
            retirement(name, model.retired?, model.successor.as_deref(), today)
        });
        all.extend(dated);
        all
    }
}

/// A condition with nothing to do beside what its kind always asks for.
fn condition(
    kind: AlertKind,
    subject: impl Into<String>,
    severity: Severity,
    what: String,
) -> Condition {
    Condition { kind, subject: subject.into(), severity, what, advice: String::new() }
}

fn outage(outage: &Outage) -> Condition {
    let Outage { model, failures, outcome } = outage;
    let what = format!(
        "The last {failures} attempts of {model} failed by the service's fault ({}).",
        title(*outcome)
    );
    condition(AlertKind::Outage, model, Severity::Critical, what)
}

/// A cap of which much is spent or reserved, and one that has just refused an attempt: of an
/// upstream's budget, or of all.
fn cap(upstream: Option<&str>, spent: &Spent, has_refused: bool) -> Vec<Condition> {
    let (period, share) = nearest_cap(spent).unwrap_or_else(|| (spent.period.clone(), 0.0));
    let name = match period.as_str() {
        "total" => "total".to_owned(),
        period => format!("per_{period}"),
    };
    let (name, key) = match upstream {
        Some(upstream) => {
            (format!("{name} of {upstream}"), format!("budget.{name} of upstream {upstream}"))
        }
        None => (name.clone(), format!("spending.{name}")),
    };
    let mut conditions = Vec::new();
    if has_refused || share >= 1.0 {
        let what = format!("The cap {key} is reached: it keeps calls from being sent.");
        let subject = format!("{name} reached");
        conditions.push(condition(AlertKind::Cap, subject, Severity::Critical, what));
    }
    if share >= CAP_SHARE {
        let percent = share * 100.0;
        let what = format!("{percent:.0} % of the cap {key} is spent or reserved.");
        conditions.push(condition(AlertKind::Cap, name, Severity::Warning, what));
    }
    conditions
}

fn quota(usage: &QuotaUsage, warn_at_percent: u8) -> Vec<Condition> {
    let name = |name: &str| redact(name).chars().take(LONGEST_NAME).collect::<String>();
    let at = usage.key.upstream.as_ref().map_or(String::new(), |at| format!(" at {}", at.name));
    let (model, project) = (name(usage.key.model.as_str()), name(usage.key.project.as_str()));
    let whose = format!("{model} of project {project}{at}");
    let mut conditions = Vec::new();
    let day = usage.entries.iter().find(|one| one.dimension == QuotaDimension::RequestsPerDay);
    // A limit of nothing is no day that was spent: the project may not use the model.
    let is_counted_out = day.is_some_and(|day| day.limit > Some(0) && day.remaining == Some(0));
    let is_day_spent = usage.day_closed || is_counted_out;
    if is_day_spent {
        let by = if usage.day_closed { "as the service says" } else { "by our own count" };
        let what =
            format!("The day's requests of {whose} are spent, {by}, until midnight Pacific.");
        conditions.push(condition(AlertKind::DaySpent, &whose, Severity::Critical, what));
    }
    for entry in &usage.entries {
        let Some(limit) = entry.limit else { continue };
        let is_day = entry.dimension == QuotaDimension::RequestsPerDay;
        let taken = entry.used.saturating_add(entry.reserved);
        let is_crossed = u128::from(taken) * 100 >= u128::from(limit) * u128::from(warn_at_percent);
        if taken == 0 || !is_crossed || (is_day && is_day_spent) {
            continue;
        }
        let dimension = entry.dimension.as_str();
        let what = format!("{taken} of {limit} {dimension} are used, of {whose}.");
        let subject = format!("{whose}, {dimension}");
        conditions.push(condition(AlertKind::Quota, subject, Severity::Warning, what));
    }
    conditions
}

/// A model that answers for a few more days only, or may no longer.
fn retirement(name: &str, ends: Date, successor: Option<&str>, today: Date) -> Option<Condition> {
    let days = ends.since(today).ok()?.get_days();
    if days > RETIRES_WITHIN_DAYS {
        return None;
    }
    let when = match days {
        1 => format!("is to answer no longer from tomorrow on ({ends})"),
        2.. => format!("is to answer no longer from {ends} on, in {days} days"),
        _ => format!("was to answer until {ends}"),
    };
    let what = format!("The model {name}, which the configuration names or callers use, {when}.");
    let advice = successor.map(|successor| format!("Its successor is {successor}."));
    let condition = condition(AlertKind::Retirement, name, Severity::Warning, what);
    Some(Condition { advice: advice.unwrap_or_default(), ..condition })
}

/// What a status feed reports.
pub(super) fn incident(incident: &Incident) -> Condition {
    let Incident { id, what, link } = incident;
    let what = format!("The status feed reports an incident: {what}");
    let condition = condition(AlertKind::Incident, id, Severity::Warning, what);
    Condition { advice: link.clone(), ..condition }
}

#[cfg(test)]
mod tests {
    use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, QuotaKey};

    use super::*;

    #[tokio::test]
    async fn a_quota_is_reported_from_its_percentage_on_and_a_days_end_in_its_place() {
        let limits = Limits::unlimited().rpm(10).rpd(8).ipm(0);
        let layer = QuotaGuardLayer::new(limits);
        let key = QuotaKey::new("p", "m");
        let handle = layer.handle(&key).unwrap();
        let mut held = Vec::new();
        let mut told = Vec::new();
        for _ in 0..8 {
            held.push(handle.reserve(1, 0, None).await.unwrap());
            let found = quota(&layer.usage(&key).unwrap(), 70);
            told.push(found.iter().map(|one| one.subject.clone()).collect::<Vec<_>>().join("; "));
        }
        let (minute, day, spent) = ("m of project p, rpm", "m of project p, rpd", "m of project p");
        assert_eq!(
            told,
            ["", "", "", "", "", day, &format!("{minute}; {day}"), &format!("{spent}; {minute}"),]
        );
    }

    #[test]
    fn a_model_is_reported_from_thirty_days_before_its_end() {
        let ends = jiff::civil::date(2026, 12, 31);
        for (today, says) in [
            ((2026, 11, 30), None),
            ((2026, 12, 1), Some("in 30 days")),
            ((2026, 12, 30), Some("from tomorrow on")),
            ((2026, 12, 31), Some("was to answer until 2026-12-31")),
            ((2027, 3, 1), Some("was to answer until")),
        ] {
            let today = jiff::civil::date(today.0, today.1, today.2);
            let found = retirement("m", ends, Some("n"), today);
            assert_eq!(found.is_some(), says.is_some(), "{today}");
            if let (Some(found), Some(says)) = (found, says) {
                assert!(found.what.contains(says), "{}", found.what);
                assert_eq!(found.advice, "Its successor is n.");
            }
        }
    }
}
