//! The cards of the page, each a string of HTML.

use std::fmt::Write as _;

use tower_gemini::observe::{Diagnosis, Health, Report, Window};

use super::html::{
    bar, bytes, cost, esc, number, percent, seconds, sentence, short_cost, span, usd,
};
use super::view::{KeptView, QuotaView, SpendingView, StatusView, TargetView};

/// From here on a quota is worth a look (article 004 warns at 70 %).
const MARK: f64 = 0.7;

/// How calls fare now, in a word and a sign: colour is not all that tells.
fn badge(health: Health) -> String {
    let (sign, word) = match health {
        Health::Good => ("✓", "good"),
        Health::Strained => ("!", "strained"),
        Health::Failing => ("✕", "failing"),
        _ => ("?", "too little data"),
    };
    format!(
        "<span class=\"badge {}\"><span aria-hidden=\"true\">{sign}</span> {word}</span>",
        health.as_str()
    )
}

pub(super) fn head(view: &StatusView) -> String {
    let mut html = format!(
        "<span>v{}</span><span>up {}</span>",
        esc(&view.version),
        span(view.uptime_seconds)
    );
    if !view.upstream.is_empty() {
        let _ = write!(html, "<span>to {}</span>", esc(&view.upstream));
    }
    let _ = write!(html, "<span>{} in flight</span>", number(view.report.in_flight));
    html
}

pub(super) fn diagnoses(report: &Report) -> String {
    let mut html = one_diagnosis("Last hour", "advice-hour", &report.hour);
    html.push_str(&one_diagnosis("Last 24 hours", "advice-day", &report.day));
    html
}

fn one_diagnosis(title: &str, advice: &str, diagnosis: &Diagnosis) -> String {
    let health = diagnosis.health;
    let mut html = format!(
        "<article class=\"card diagnosis {}\"><h2>{title} {}</h2><p class=\"short\">{}</p><p>{}</p>",
        health.as_str(),
        badge(health),
        esc(&capital(diagnosis.short())),
        sentence(&diagnosis.summary),
    );
    if !diagnosis.advice.is_empty() {
        let _ = write!(html, "<details id=\"{advice}\" open><summary>What to do</summary><ul>");
        for advice in &diagnosis.advice {
            let _ = write!(html, "<li>{}</li>", sentence(advice));
        }
        html.push_str("</ul>");
        if !diagnosis.useless.is_empty() {
            let _ = write!(
                html,
                "<p class=\"useless\"><b>Does not help:</b> {}.</p>",
                esc(&diagnosis.useless.join("; "))
            );
        }
        html.push_str("</details>");
    }
    html.push_str("</article>");
    html
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

pub(super) fn tiles(report: &Report) -> String {
    let (hour, day) = (&report.last_hour, &report.last_day);
    let success = |window: &Window| {
        window.failure_rate.map_or_else(|| "–".to_owned(), |rate| percent(1.0 - rate))
    };
    let time = |s: Option<f64>| s.map_or_else(|| "–".to_owned(), seconds);
    let each = |window: &Window| window.cost_per_image.map_or_else(|| "–".to_owned(), short_cost);
    let mut html = String::new();
    let mut tile = |name: &str, value: &str, below: &str| {
        let _ = write!(
            html,
            "<div class=\"tile\"><dt>{name}</dt><dd>{value}</dd><dd class=\"below\">{below}</dd></div>"
        );
    };
    tile("Success, last hour", &success(hour), &format!("{} calls", number(hour.calls)));
    tile("Success, last day", &success(day), &format!("{} calls", number(day.calls)));
    tile(
        "Half take at most",
        &time(hour.call_seconds.p50.or(day.call_seconds.p50)),
        &format!("95\u{a0}% at most {}", time(hour.call_seconds.p95.or(day.call_seconds.p95))),
    );
    tile(
        "Images, last day",
        &number(day.images),
        &format!("{} drafts left out", number(day.drafts)),
    );
    tile("Each image, last day", &each(day), "failed attempts included");
    tile(
        "Spent, last day",
        &short_cost(day.cost),
        &format!("{} since the start", short_cost(report.total.cost)),
    );
    html
}

pub(super) fn outcomes(report: &Report) -> String {
    let (hour, day) = (&report.last_hour, &report.last_day);
    let mut html = String::new();
    let ratio = match (day.rate_limited, day.overloaded) {
        (0, 0) => "No 429s and no 503s in the last 24 hours.".to_owned(),
        (limited, 0) => format!(
            "{} 429s (your limits) and no 503s (no capacity) in the last 24 hours.",
            number(limited)
        ),
        (limited, overloaded) => format!(
            "<b>429 : 503 = {} : {}</b> in the last 24 hours ({:.2} : 1): your limits against the service's capacity.",
            number(limited),
            number(overloaded),
            day.ratio_429_to_503.unwrap_or_default()
        ),
    };
    let _ = write!(html, "<p>{ratio}</p>");
    if day.calls + day.attempts == 0 {
        return html;
    }
    html.push_str("<div class=\"two\">");
    let most = day.outcomes.values().copied().max().unwrap_or(1).max(1);
    html.push_str(
        "<table class=\"bars\"><caption>Calls by what they came to</caption><thead><tr><th scope=\"col\">Outcome</th>\
         <th scope=\"col\" class=\"n\">Hour</th><th scope=\"col\" class=\"n\">Day</th><th scope=\"col\"><span class=\"unseen\">Share</span></th></tr></thead><tbody>",
    );
    for (outcome, count) in
        sorted(day.outcomes.iter().map(|(word, count)| (*word, *count)).collect())
    {
        let class = match outcome {
            "success" | "answered" | "redeemed" => "good",
            "caller_left" => "left",
            _ => "failing",
        };
        row(
            &mut html,
            outcome,
            hour.outcomes.get(outcome).copied().unwrap_or(0),
            count,
            most,
            class,
        );
    }
    html.push_str("</tbody></table>");
    let kinds = day.failure_kinds();
    if !kinds.is_empty() {
        let of_hour = hour.failure_kinds();
        let most = kinds.first().map_or(1, |(_, count)| *count);
        html.push_str(
            "<table class=\"bars\"><caption>Failed attempts by kind</caption><thead><tr><th scope=\"col\">Kind</th>\
             <th scope=\"col\" class=\"n\">Hour</th><th scope=\"col\" class=\"n\">Day</th><th scope=\"col\"><span class=\"unseen\">Share</span></th></tr></thead><tbody>",
        );
        for (kind, count) in kinds {
            let before =
                of_hour.iter().find(|(one, _)| *one == kind).map_or(0, |(_, count)| *count);
            row(&mut html, kind.as_str(), before, count, most, "plain");
        }
        html.push_str("</tbody></table>");
    }
    html.push_str("</div>");
    let _ = write!(
        html,
        "<p class=\"quiet\">{} attempts: {} sent again, {} sent elsewhere, {} answers with something given up, {} targets passed over. Waited {}.</p>",
        number(day.attempts),
        number(day.resends),
        number(day.fallbacks),
        number(day.degraded),
        number(day.skipped_targets),
        waits(day)
    );
    html
}

fn row(html: &mut String, name: &str, hour: u64, day: u64, most: u64, class: &str) {
    #[allow(clippy::cast_precision_loss, reason = "a bar's width")]
    let share = day as f64 / most.max(1) as f64;
    let _ = write!(
        html,
        "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
        esc(&name.replace('_', " ")),
        number(hour),
        number(day),
        bar(class, share, 0.0, None, &format!("{} {}", number(day), name.replace('_', " ")))
    );
}

fn sorted(mut counts: Vec<(&'static str, u64)>) -> Vec<(&'static str, u64)> {
    counts.sort_by_key(|(word, count)| (std::cmp::Reverse(*count), *word));
    counts
}

fn waits(window: &Window) -> String {
    if window.waits.is_empty() {
        return "never".to_owned();
    }
    let one = |(why, wait): (&&str, &tower_gemini::observe::Wait)| {
        format!(
            "{} times for {} in all ({})",
            number(wait.count),
            seconds(wait.seconds),
            why.replace('_', " ")
        )
    };
    window.waits.iter().map(one).collect::<Vec<_>>().join(", ")
}

pub(super) fn quotas(quotas: &[QuotaView]) -> String {
    let mut html = String::new();
    for quota in quotas.iter().filter(|quota| !quota.entries.is_empty()) {
        let waiting = match quota.waiting {
            0 => String::new(),
            n => format!(" <span class=\"quiet\">{n} waiting</span>"),
        };
        let _ = write!(
            html,
            "<h3>{} <span class=\"quiet\">{}</span>{waiting}</h3><table class=\"meters\"><tbody>",
            esc(&quota.model),
            esc(&short(&quota.project))
        );
        for entry in &quota.entries {
            #[allow(clippy::cast_precision_loss, reason = "a bar's width")]
            let share = |n: u64| if entry.limit == 0 { 1.0 } else { n as f64 / entry.limit as f64 };
            let taken = share(entry.used.saturating_add(entry.reserved));
            let class = match taken {
                taken if taken >= 1.0 => "failing",
                taken if taken >= MARK => "strained",
                _ => "good",
            };
            let warning = if taken >= MARK { "⚠ " } else { "" };
            let name = name_of(entry.dimension);
            let reserved = if entry.reserved > 0 {
                format!(" + {} held", number(entry.reserved))
            } else {
                String::new()
            };
            let label = format!("{name}: {} taken, marked at {}", percent(taken), percent(MARK));
            let _ = write!(
                html,
                "<tr><th scope=\"row\"><abbr title=\"{name}\">{}</abbr></th><td>{}</td><td class=\"n\">{warning}{}</td>\
                 <td class=\"n quiet\">{}{reserved} of {}{}</td></tr>",
                entry.dimension.to_uppercase(),
                bar(class, share(entry.used), share(entry.reserved), Some(MARK), &label),
                percent(taken),
                number(entry.used),
                number(entry.limit),
                match entry.resets_in_seconds {
                    0 => String::new(),
                    left => format!(", back in {}", span(left)),
                }
            );
        }
        html.push_str("</tbody></table>");
    }
    if html.is_empty() {
        return "<p class=\"quiet\">No quota is set, or nothing has been counted yet.</p>"
            .to_owned();
    }
    html.push_str("<p class=\"quiet\">The line marks 70 %.</p>");
    html
}

/// Fingerprints are long, and their beginnings tell them apart.
fn short(project: &str) -> String {
    let mut shown: String = project.chars().take(18).collect();
    if project.chars().nth(18).is_some() {
        shown.push('…');
    }
    shown
}

fn name_of(dimension: &str) -> &'static str {
    match dimension {
        "rpm" => "requests per minute",
        "tpm" => "tokens per minute",
        "ipm" => "images per minute",
        "rpd" => "requests per day",
        _ => "limit",
    }
}

pub(super) fn targets(targets: &[TargetView], report: &Report) -> String {
    let mut html = String::new();
    if targets.is_empty() {
        html.push_str(
            "<p><span class=\"mark good\" aria-hidden=\"true\">✓</span> All targets are well: none rests after failures.</p>",
        );
    } else {
        html.push_str("<ul class=\"targets\">");
        for target in targets {
            let (class, mark) =
                if target.condition == "failing" { ("strained", "!") } else { ("failing", "✕") };
            let cause = target
                .cause
                .map_or(String::new(), |cause| format!(" after {}", cause.replace('_', " ")));
            let left =
                target.left_seconds.map_or(String::new(), |left| format!(", {} left", span(left)));
            let times = match (target.condition, target.in_a_row) {
                ("failing", n) => format!(", {n} in a row"),
                (_, n) if n > 1 => format!(", time {n}"),
                _ => String::new(),
            };
            let word =
                if target.condition == "half_open" { "being tried" } else { target.condition };
            let _ = write!(
                html,
                "<li><span class=\"mark {class}\" aria-hidden=\"true\">{mark}</span><span><b>{}</b> {word}{}{left}{times}</span></li>",
                esc(&target.what),
                esc(&cause)
            );
        }
        html.push_str("</ul>");
    }
    let day = &report.last_day;
    if !day.models.is_empty() {
        html.push_str(
            "<table class=\"bars\"><caption>Models in the last 24 hours</caption><thead><tr><th scope=\"col\">Model</th>\
             <th scope=\"col\" class=\"n\">Attempts</th><th scope=\"col\" class=\"n\">Succeeded</th><th scope=\"col\" class=\"n\">5xx</th></tr></thead><tbody>",
        );
        for (name, model) in &day.models {
            #[allow(clippy::cast_precision_loss, reason = "a share")]
            let share = model.successes as f64 / model.attempts.max(1) as f64;
            let _ = write!(
                html,
                "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                esc(name),
                number(model.attempts),
                percent(share),
                number(model.service_failures)
            );
        }
        html.push_str("</tbody></table>");
    }
    html
}

pub(super) fn money(spending: &[SpendingView], report: &Report) -> String {
    let mut html = String::from(
        "<table class=\"bars\"><thead><tr><th scope=\"col\">Window</th><th scope=\"col\" class=\"n\">Cost</th>\
         <th scope=\"col\" class=\"n\">Images</th><th scope=\"col\" class=\"n\">Each</th></tr></thead><tbody>",
    );
    for (name, window) in
        [("Hour", &report.last_hour), ("24 hours", &report.last_day), ("In all", &report.total)]
    {
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{name}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            short_cost(window.cost),
            number(window.images),
            window.cost_per_image.map_or_else(|| "–".to_owned(), short_cost)
        );
    }
    html.push_str("</tbody></table>");
    let day = &report.last_day;
    let _ = write!(
        html,
        "<p class=\"quiet\">From at least to at most. Of {} attempts {} were paid for, {} may have been.{}</p>",
        number(day.attempts),
        number(day.charged_attempts),
        number(day.maybe_charged_attempts),
        match day.unpriced_attempts {
            0 => String::new(),
            n => format!(" The price of {} is not known: no upper end holds for them.", number(n)),
        }
    );
    for one in spending {
        let spent = one.spent.at_most_microusd.unwrap_or(one.spent.at_least_microusd);
        let Some(cap) = one.cap_microusd else { continue };
        #[allow(clippy::cast_precision_loss, reason = "a bar's width")]
        let share = |n: u64| if cap == 0 { 1.0 } else { n as f64 / cap as f64 };
        let reserved = one.reserved_at_most_microusd.unwrap_or(0);
        let class = if share(spent) >= 1.0 {
            "failing"
        } else if share(spent) >= MARK {
            "strained"
        } else {
            "good"
        };
        let label = format!("{} of the {} spent", percent(share(spent)), one.period);
        let _ = write!(
            html,
            "<h3>Cap of the {} <span class=\"quiet\">{} of {}{}</span></h3>{}",
            esc(&one.period),
            cost(one.spent),
            usd(cap),
            if one.refused > 0 {
                format!("; {} attempts were not sent", number(one.refused))
            } else {
                String::new()
            },
            bar(class, share(spent), share(reserved), Some(MARK), &label)
        );
    }
    html
}

pub(super) fn kept(kept: Option<&KeptView>, report: &Report) -> String {
    let Some(kept) = kept else {
        return "<p class=\"quiet\">Off: what callers leave is not finished and not kept.</p>"
            .to_owned();
    };
    let total = &report.total;
    let mut html = String::from("<dl class=\"list\">");
    let mut line = |name: &str, value: String| {
        let _ = write!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    line("Callers who left a call that was out", number(total.finished_without_caller));
    line("Being finished without them now", number(kept.detached));
    line(
        "Waiting for their callers",
        format!("{} ({})", number(kept.kept), bytes(kept.kept_bytes)),
    );
    line("Given to a later request, paid for once", number(kept.redeemed));
    line("Came to cost nothing", number(kept.free));
    line("Paid for, or maybe, and lost", number(kept.lost));
    html.push_str("</dl>");
    html
}
