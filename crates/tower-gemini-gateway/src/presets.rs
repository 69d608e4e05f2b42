//! Lists what others publish and the configuration may name: `gemini-gateway presets`.

use serde::Serialize;
use tower_gemini::jittered_retry::presets as retries;
use tower_gemini::model_fallback::presets as chains;
use tower_gemini::peak_hour_router::presets as hours;
use tower_gemini::quota_guard::QuotaDimension;
use tower_gemini::quota_guard::tiers::{self, PublishedTier, Tier};
use tower_gemini::resolution_fallback::presets as ladders;

/// Everything that a key of the configuration may name.
#[derive(Debug, Serialize)]
struct Group {
    /// The key.
    key: &'static str,
    presets: Vec<Preset>,
}

#[derive(Debug, Serialize)]
struct Preset {
    name: String,
    /// What it does.
    what: String,
    source: String,
}

impl Preset {
    fn new(name: impl Into<String>, what: impl Into<String>, source: impl Into<String>) -> Self {
        Self { name: name.into(), what: what.into(), source: source.into() }
    }
}

/// The list, as text or as JSON.
pub(crate) fn list(as_json: bool) -> String {
    let groups = groups();
    if as_json {
        return serde_json::to_string_pretty(&groups).unwrap_or_default() + "\n";
    }
    let mut text = "None of these is a default: their sources contradict each other.\n".to_owned();
    for group in groups {
        text += &format!("\n{}\n", group.key);
        let width = group.presets.iter().map(|preset| preset.name.len()).max().unwrap_or(0);
        for Preset { name, what, source } in group.presets {
            text += &format!("  {name:width$}  {what}\n");
            if !source.is_empty() {
                text += &format!("  {:width$}  ({source})\n", "");
            }
        }
    }
    text
}

fn groups() -> [Group; 5] {
    let chains = chains::ALL.iter().map(|chain| {
        let link = |(model, attempts): &(&str, u32)| format!("{model} {attempts}x");
        let links: Vec<_> = chain.links.iter().map(link).collect();
        let wraps = if chain.wraps { ", and from its beginning" } else { "" };
        Preset::new(chain.name, links.join(" -> ") + wraps, chain.source)
    });
    let ladders = ladders::ALL.iter().map(|ladder| {
        let sizes: Vec<_> = ladder.sizes.iter().map(|size| size.as_str()).collect();
        Preset::new(ladder.name, sizes.join(" -> "), ladder.source)
    });
    let hours = hours::ALL.iter().map(|hours| {
        let window = |(from, to): &(&str, &str)| format!("{from}-{to}");
        let windows: Vec<_> = hours.windows.iter().map(window).collect();
        let what = format!("{} (UTC{:+})", windows.join(", "), hours.utc_offset);
        Preset::new(hours.name, what, hours.source)
    });
    // A sentence that begins with its source.
    let retries = retries::described().into_iter().map(|(name, what)| Preset::new(name, what, ""));
    [
        Group { key: "[fallback] preset", presets: chains.collect() },
        Group { key: "[fallback] ladder", presets: ladders.collect() },
        Group { key: "[peak] preset", presets: hours.collect() },
        Group { key: "[retry] policy, [[fallback.target]] retry", presets: retries.collect() },
        Group { key: "[quota] tier", presets: tiers::all().map(tier).collect() },
    ]
}

fn tier(row: PublishedTier) -> Preset {
    let name = match row.tier {
        Tier::Free => "free",
        Tier::Tier1 => "tier1",
        Tier::Tier2 => "tier2",
        Tier::Tier3 => "tier3",
    };
    let limits: Vec<_> = QuotaDimension::ALL
        .into_iter()
        .filter_map(|of| Some(format!("{} {}", row.limits.get(of)?, of.as_str())))
        .collect();
    let source = format!("{}, {}", row.source, row.as_of);
    Preset::new(name, format!("{}: {}", row.model, limits.join(", ")), source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    // A list that names what the reader of the configuration refuses would be worse than none.
    #[test]
    fn every_preset_that_is_listed_can_be_written_and_names_its_source() {
        for group in groups() {
            assert!(!group.presets.is_empty(), "{}", group.key);
            for preset in group.presets {
                let (section, key) = group.key.split(',').next().unwrap().split_once(' ').unwrap();
                let models = match section {
                    "[peak]" => "[fallback]\nmodels = [\"gemini-3-pro-image\"]\n",
                    _ => "",
                };
                let text = format!("{models}{section}\n{key} = \"{}\"\n", preset.name);
                Config::parse(&text, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
                assert!(preset.source.contains("20") || preset.what.len() > 20, "{}", preset.name);
            }
        }
    }

    #[test]
    fn the_list_is_text_for_people_and_json_for_scripts() {
        let text = list(false);
        for says in [
            "gemini-3.1-flash-image 3x -> gemini-3-pro-image 2x, and from its beginning",
            "4K -> 1K",
            "10:00-14:00 (UTC+0)",
            "openai_python",
            "10 rpm, 10 ipm, 1000 rpd",
        ] {
            assert!(text.contains(says), "{says}\n{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&list(true)).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 5);
    }
}
