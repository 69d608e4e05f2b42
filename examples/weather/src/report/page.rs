//! The page: first the answer, then the pictures, then the tables and the method.

use std::fmt::Write as _;

use super::{Report, Row, number};
use crate::headline::NOT_SIMULATED;
use crate::score::{Score, share};
use crate::zoo::{ALL, Policy};

/// The whole page as Markdown.
pub(super) fn page(report: &Report, pictures: &[(&str, String)]) -> String {
    let mut page = String::from("# What retrying gains, and what it costs\n\n");
    page += &answer(report);
    page += &beside(report);
    page += "\n## Pictures\n\n";
    for (name, caption) in pictures {
        let _ = writeln!(page, "![{caption}]({name}.svg)\n");
    }
    page += "## Scoreboards\n\n";
    page += COLUMNS;
    let mut last = "";
    for row in &report.rows {
        if row.scenario.name != last {
            last = &row.scenario.name;
            page += &scoreboard(report, row);
        }
    }
    page += &figures(report);
    page += &method(report);
    page
}

/// The findings in sentences, as far as there are rows for them.
fn answer(report: &Report) -> String {
    let mut text = String::new();
    let score = |scenario, policy| report.row(scenario, policy).map(|row| &row.score);
    let percent = |score: &Score| format!("{:.1} %", 100.0 * score.success());
    if let (Some(none), Some(retries), Some(sdk), Some(chain), Some(ours), Some(oracle)) = (
        score("peak", "no-retry"),
        score("peak", "guide-503-loop"),
        score("peak", "google-genai"),
        score("peak", "guide-503-chain"),
        score("peak", "ours-chain"),
        score("peak", "oracle-chain"),
    ) {
        let _ = writeln!(
            text,
            "- **Retrying the same model does not help in an outage; another model does.** At the \
             peak of the published figures (45 % of the time in outages of 50 minutes) one attempt \
             delivers {}. Half a minute of resends makes that {} (the guides' loop) or {} \
             (google-genai) and takes {:.1} requests for each image. Going on to the other model \
             delivers {} (the guides' chain) or {} (ours). A client that knew of every outage would \
             deliver {}.",
            percent(none),
            percent(retries),
            percent(sdk),
            retries.per_image(retries.quota),
            percent(chain),
            percent(ours),
            percent(oracle),
        );
    }
    let theirs = report.of("lossy").filter(|row| !row.policy.is_ours());
    if let Some(worst) = theirs.max_by_key(|row| row.score.duplicates) {
        let ours: usize = report
            .rows
            .iter()
            .filter(|row| row.policy.is_ours())
            .map(|row| row.score.duplicates)
            .sum();
        let _ = writeln!(
            text,
            "- **Blind resends are paid twice.** Where 8 % of the responses get lost, `{}` is charged \
             twice for {:.1} % of its calls. Over all scenarios our layers are charged twice {ours} \
             times.",
            worst.policy.name,
            100.0 * share(worst.score.duplicates, worst.score.calls),
        );
    }
    let stated = report.rows.iter().map(|row| row.score.stated);
    let (stated, right) = stated.fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
    if stated > 0 {
        let width = |of: &str| {
            let ours = report.of(of).filter(|row| row.policy.is_ours());
            let sums = ours.map(|row| (row.score.at_most.0, row.score.cost));
            let (most, truth) = sums.fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
            (truth > 0).then_some(100.0 * (most as f64 / truth as f64 - 1.0))
        };
        let _ = write!(
            text,
            "- **What our layers say a call cost is true:** the interval holds the ledger's sum for \
             {right} of {stated} calls.",
        );
        if let (Some(calm), Some(lossy)) = (width("calm"), width("lossy")) {
            let _ = write!(
                text,
                " Its upper ends together are {calm:.0} % above the truth on a calm day, and \
                 {lossy:.0} % where responses get lost: of an attempt that broke off nobody can know.",
            );
        }
        text.push('\n');
    }
    let together = ["ours", "ours-alone", "ours-alone-patient", "no-retry", "oracle"];
    if let [Some(ours), Some(alone), Some(patient), Some(none), Some(oracle)] =
        together.map(|policy| score("day", policy))
    {
        let with =
            |score: &Score| format!("{} with {:.2}", percent(score), score.per_image(score.quota));
        let _ = writeln!(
            text,
            "- **Calls that wait for the end of an outage together deliver nearly what an oracle does**, so \
             ours do. While a model is overloaded, one attempt a minute of all calls finds out whether it \
             is back, and the others wait. Over `day` and without another model that delivers, with \
             so many requests against the quota for each image, {}. Each call by itself: {}; with \
             more patience (a 503 from 30 s up, eight attempts): {}. One attempt: {}. The oracle: {}.",
            with(ours),
            with(alone),
            with(patient),
            with(none),
            with(oracle),
        );
    }
    let budget = ["batch", "lossy"].map(|name| {
        let [alone, budget] = ["ours-alone", "ours-alone-budget"].map(|of| score(name, of));
        budget.zip(alone).map(|(budget, alone)| {
            format!("in `{name}` {} in place of {}", percent(budget), percent(alone))
        })
    });
    if let [Some(batch), Some(lossy)] = budget {
        let _ = writeln!(
            text,
            "- **A retry budget costs images**, so our defaults have none. With 100 tokens, 10 a resend \
             and 1 back for a success it is empty after ten failures, and from then on a batch runs \
             through an outage at full speed and fails. Where each call finds out by itself, it \
             delivers {batch}; where requests fail one by one, {lossy}.",
        );
    }
    if let (Some(long), Some(short), Some(oracle)) = (
        score("day", "ours-long-circuits"),
        score("day", "ours-chain"),
        score("day", "oracle-chain"),
    ) {
        let asked = |score: &Score| format!("{:.1} %", 100.0 * share(score.as_asked, score.calls));
        let _ = writeln!(
            text,
            "- **A circuit that stays open long costs more than it saves**, so ours close within minutes. A probe costs one request of quota, and a circuit that \
             is open when the outage is over sends calls to a dearer model. Over the day, 5 to 120 \
             minutes give the model asked for to {} of the calls at ${:.4} an image; 1 to 5 minutes \
             to {} at ${:.4} (with an oracle {} at ${:.4}).",
            asked(long),
            long.dollars_per_image(),
            asked(short),
            short.dollars_per_image(),
            asked(oracle),
            oracle.dollars_per_image(),
        );
    }
    let resends = ["bursts", "batch"].map(|name| {
        let [whole, apart] = ["sdk-on-ours", "sdk-on-ours-apart"].map(|of| score(name, of));
        whole.zip(apart).map(|(whole, apart)| {
            let with = |score: &Score| {
                format!("{} with {:.1}", percent(score), score.per_image(score.attempts))
            };
            format!("in `{name}` {}, and {}", with(whole), with(apart))
        })
    });
    if let [Some(bursts), Some(batch)] = resends {
        let _ = writeln!(
            text,
            "- **An SDK's own resends, continued or not** (`continue_resends`): google-genai over our \
             gateway delivers, with so many requests for each image, first continued and then each a \
             call of its own: {bursts}; {batch}.",
        );
    }
    text
}

/// Ours beside whoever delivers most of the others, by what they may do.
fn beside(report: &Report) -> String {
    let mut text = String::new();
    for (title, ours, oracle, is_free) in [
        ("with the model and the size asked for", "ours", "oracle", false),
        ("with another model or size", "ours-chain", "oracle-chain", true),
    ] {
        let (mut table, mut notes) = (String::new(), String::new());
        let (mut dearer, mut thriftier) = (0.0_f64, 0.0_f64);
        let mut names: Vec<_> = report.rows.iter().map(|row| &row.scenario).collect();
        names.dedup_by_key(|scenario| &scenario.name);
        for scenario in names.into_iter().filter(|one| one.of.has_lasting_outages()) {
            let others = report.of(&scenario.name).filter(|row| {
                !row.policy.is_ours() && (row.score.as_asked < row.score.delivered) == is_free
            });
            let success = |row: &&Row| row.score.success();
            let best = others.max_by(|a, b| success(a).total_cmp(&success(b)));
            let [ours, none, oracle] =
                [ours, "no-retry", oracle].map(|policy| report.row(&scenario.name, policy));
            let (Some(best), Some(ours), Some(none), Some(oracle)) = (best, ours, none, oracle)
            else {
                continue;
            };
            let cells = |row: &Row| {
                format!(
                    "{:.1} % | {:.2} | {}",
                    100.0 * row.score.success(),
                    row.score.per_image(row.score.quota),
                    number(row.score.dollars_per_image(), 4),
                )
            };
            let more = |a: f64, b: f64| 100.0 * (a / b - 1.0);
            let (own, others) = (&ours.score, &best.score);
            dearer = dearer.max(more(own.dollars_per_image(), others.dollars_per_image()));
            let quota = [others, own].map(|score| score.per_image(score.quota));
            thriftier = thriftier.max(-more(quota[1], quota[0]));
            if others.success() > own.success() && others.duplicates > 0 {
                let _ = writeln!(
                    notes,
                    "- `{}`: `{}` delivers more because it sends again what may have been paid for. It \
                     is charged twice for {} of {} calls, and ours for {}.",
                    scenario.name,
                    best.policy.name,
                    others.duplicates,
                    others.calls,
                    own.duplicates,
                );
            }
            let [ours_at, none, oracle] = [&ours, &none, &oracle].map(success);
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {:.0} % |",
                scenario.name,
                best.policy.name,
                cells(best),
                cells(ours),
                (100.0 * (oracle - ours_at) / (oracle - none)).max(0.0),
            );
        }
        if !table.is_empty() {
            let _ = writeln!(
                notes,
                "- An image of `{ours}` takes up to {thriftier:.0} % less quota, and up to {dearer:.0} % more \
                 money.{}",
                match is_free && dearer >= 1.0 {
                    true =>
                        " While its circuit is open, nothing is sent to the model asked for, and the \
                             other one draws, which may be the dearer one.",
                    false => "",
                }
            );
            let _ = write!(
                text,
                "\nWho delivers most {title}, and `{ours}`. *Quota* and *$* are those of each image; \
                 *missed* is what is missing to `{oracle}`, as a share of what it gains over one \
                 attempt.\n\n| scenario | best of the others | images | quota | $ | ours: images | \
                 quota | $ | missed |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n{table}\n{notes}",
            );
        }
    }
    if text.is_empty() { text } else { format!("\n## Beside the best of the others\n{text}") }
}

const COLUMNS: &str = "\
*images*: calls that gave one · *as asked*: of the model and the size asked for · *p50, p95, p99*: \
seconds to the image · *$*: all charges for each delivered image · *nothing*: charges without a \
delivered image · *twice*: charges of a call after its first · *quota*, *sent*: requests counted \
and sent for each image · *late*: calls whose time was up · *regret*: images that the oracle of the \
same freedom delivers and this does not, in points.\n";

fn scoreboard(report: &Report, first: &Row) -> String {
    let name = first.scenario.name.as_str();
    let mut table = format!(
        "\n### {name}\n\n{}\n\n| policy | images | as asked | p50 | p95 | p99 | $ | nothing | twice | quota | sent | late | regret |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        first.scenario.of.about
    );
    let success = |policy| report.row(name, policy).map(|row| row.score.success());
    for Row { policy, score, .. } in report.of(name) {
        // Who may take another model or size is compared to the oracle that may.
        let is_free = score.as_asked < score.delivered;
        let oracle = success(if is_free { "oracle-chain" } else { "oracle" })
            .filter(|_| first.scenario.of.has_lasting_outages());
        let regret = oracle.map(|oracle| format!("{:.1}", 100.0 * (oracle - score.success())));
        let emphasis = if policy.is_ours() { "**" } else { "" };
        let _ = writeln!(
            table,
            "| {emphasis}{}{emphasis} | {:.1} % | {:.1} % | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            policy.name,
            100.0 * score.success(),
            100.0 * share(score.as_asked, score.calls),
            number(score.seconds(0.50), 0),
            number(score.seconds(0.95), 0),
            number(score.seconds(0.99), 0),
            number(score.dollars_per_image(), 4),
            score.for_nothing,
            score.duplicates,
            number(score.per_image(score.quota), 2),
            number(score.per_image(score.attempts), 2),
            score.out_of_time,
            regret.unwrap_or_default(),
        );
    }
    table
}

fn figures(report: &Report) -> String {
    if report.figures.is_empty() {
        return String::new();
    }
    let mut table = String::from(
        "\n## The articles' figures\n\nEach claim is run again under the assumption beside it. The \
         range is what counts as the same figure.\n\n| | claim | assuming | range | found | |\n|---|---|---|--:|--:|---|\n",
    );
    for figure in &report.figures {
        let holds = if figure.holds() { "holds" } else { "**does not hold**" };
        let (from, to) = figure.claimed;
        let _ = writeln!(
            table,
            "| {} | {} | {} | {from:.3} to {to:.3} | {:.4} | {holds} |",
            figure.id, figure.claim, figure.assuming, figure.found,
        );
    }
    table += "\nNot simulated:\n\n";
    for (id, why) in NOT_SIMULATED {
        let _ = writeln!(table, "- {id}: {why}");
    }
    table
}

fn method(report: &Report) -> String {
    let mut waits: Vec<_> = report.rows.iter().map(|row| &row.scenario).collect();
    waits.dedup_by_key(|scenario| &scenario.name);
    let waits: Vec<_> = waits
        .into_iter()
        .map(|one| format!("`{}` {}", one.name, one.patience().as_secs() / 60))
        .collect();
    let waits = waits.join(", ");
    let mut text = format!(
        "\n## Method\n\nEvery policy meets the same {} skies in each scenario: a seed fixes outages, \
         faults, latencies, arrivals and jitter. Time is virtual, so a day takes a fraction of a second. The \
         layers are the real ones; the Gemini API is `tower-gemini-sim`, whose ledger is the truth \
         for everything in these tables. How many minutes a caller \
         waits: {waits}.\n\n\
         Other people's clients are written from their documentation and from measurements; each has \
         its source in `src/zoo`, and a test of its delays. They are sent straight to the simulator, \
         so that what they resend after a charge shows. Two things are simpler than in \
         reality: the outages of one model are all of one kind (in the built-in days with a mean of 50 \
         minutes, in `relay` of 20), and the simulator's 429s always name the wait. *Regret* needs the \
         policies `oracle` and `oracle-chain`.\n\n| policy | what it is |\n|---|---|\n",
        report.seeds
    );
    let took_part = |policy: &&Policy| report.rows.iter().any(|row| row.policy.name == policy.name);
    for policy in ALL.iter().filter(took_part) {
        let _ = writeln!(text, "| {} | {} |", policy.name, policy.what);
    }
    let _ = write!(text, "\nThis directory is written by `{}`.\n", report.command);
    text
}
