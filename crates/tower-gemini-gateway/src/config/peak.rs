//! `[peak]`: in which hours another model is preferred.

use std::collections::BTreeMap;

use serde::Deserialize;
use tower_gemini::PeakHourRouterLayer;
use tower_gemini::peak_hour_router::presets;
use tower_gemini::peak_hour_router::{Day, Schedule, Window, Zone};

use super::{Check, ConfigError, ensure, nearest_name, wrong};

section! { pub(crate) Peak {
    preset: Option<String> = None,
    windows: Vec<String> = Vec::new(),
    zone: String = "UTC".to_owned(),
    prefer: BTreeMap<String, String> = BTreeMap::new(),
    prefer_off_peak: BTreeMap<String, String> = BTreeMap::new(),
}}

const REMEDY: &str = "write windows of the form \"10:00-14:00\" or \"Mon-Fri 10:00-14:00\"";

impl Peak {
    /// Whether any hour is a peak.
    pub(crate) fn is_on(&self) -> bool {
        !self.windows.is_empty() || self.preset.is_some()
    }

    /// Every model that it names.
    pub(super) fn named_models(&self) -> impl Iterator<Item = &str> {
        let asked = self.prefer.keys().chain(self.prefer_off_peak.keys()).map(String::as_str);
        asked.chain(self.preferred())
    }

    /// Every model that is preferred.
    pub(super) fn preferred(&self) -> impl Iterator<Item = &str> {
        self.prefer.values().chain(self.prefer_off_peak.values()).map(String::as_str)
    }

    /// The layer; off where no hour is a peak.
    pub(crate) fn layer(&self) -> Check<PeakHourRouterLayer> {
        let Some(schedule) = self.schedule()? else { return Ok(PeakHourRouterLayer::off()) };
        let layer = PeakHourRouterLayer::new(schedule);
        let layer =
            self.prefer.iter().fold(layer, |layer, (asked, lead)| layer.in_peak(asked, lead));
        let off_peak = self.prefer_off_peak.iter();
        Ok(off_peak.fold(layer, |layer, (asked, lead)| layer.off_peak(asked, lead)))
    }

    /// The hours that are peak hours.
    pub(crate) fn schedule(&self) -> Check<Option<Schedule>> {
        if let Some(name) = &self.preset {
            let what = "[peak] states its hours twice";
            ensure(self.windows.is_empty(), "peak.preset", what, "write preset or windows")?;
            let what = "peak.zone is not read with a preset, which has its own";
            let is_default = self.zone == Self::default().zone;
            ensure(
                is_default,
                "peak.zone",
                what,
                "remove it, or write windows in place of preset",
            )?;
            let Some(preset) = presets::ALL.iter().find(|one| one.name == name.as_str()) else {
                let nearest = nearest_name(name, presets::ALL.iter().map(|one| one.name));
                return wrong("peak.preset", format!("there are no hours \"{name}\""), nearest);
            };
            return Ok(Some(preset.schedule()));
        }
        if self.windows.is_empty() {
            return Ok(None);
        }
        let windows = self.windows.iter().map(|text| window(text)).collect::<Check<Vec<_>>>()?;
        Schedule::new(zone(&self.zone)?, windows)
            .map(Some)
            .or_else(|error| wrong("peak.windows", format!("peak.windows: {error}"), REMEDY))
    }

    /// Every setting that cannot work.
    pub(super) fn check(&self, has_models: bool, check: &mut impl FnMut(Check<()>)) {
        check(self.schedule().map(drop));
        // Hours alone say when to defer calls and which target of failures holds.
        let names_models = self.named_models().next().is_some();
        check(ensure(
            !names_models || has_models,
            "peak.prefer",
            "[peak] has no other model to prefer",
            "list the models in [fallback] models",
        ));
        let what = "[peak] names models, and no hour is a peak";
        let remedy = "write windows, or a preset that `gemini-gateway presets` lists";
        let is_used = self.is_on() || !names_models;
        check(ensure(is_used, "peak.windows", what, remedy));
    }
}

/// `10:00-14:00`, or `Mon-Fri 10:00-14:00`, or `Sat,Sun 08:00-12:00`.
fn window(text: &str) -> Check<Window> {
    let malformed = || ConfigError::at("peak.windows", format!("peak.windows: \"{text}\""), REMEDY);
    let text = text.trim();
    let (on, hours) = text.rsplit_once(' ').unwrap_or(("", text));
    let (start, end) = hours.split_once('-').ok_or_else(malformed)?;
    if on.trim().is_empty() {
        return Ok(Window::daily(start, end));
    }
    let mut days = Vec::new();
    for part in on.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first), day(last));
        let (first, last) = first.zip(last).ok_or_else(malformed)?;
        // A span may go over Sunday.
        let from = Day::WEEK.into_iter().cycle().skip_while(|day| *day != first);
        for day in from.take(Day::WEEK.len()) {
            days.push(day);
            if day == last {
                break;
            }
        }
    }
    Ok(Window::on(&days, start, end))
}

/// A day by its first three letters.
fn day(name: &str) -> Option<Day> {
    let name = name.trim().to_ascii_lowercase();
    Day::WEEK.into_iter().find(|day| {
        let full = format!("{day:?}").to_ascii_lowercase();
        full == name || full.get(..3) == Some(name.as_str())
    })
}

fn zone(name: &str) -> Check<Zone> {
    let offset = || {
        // The sign is the first number's: `parse` reads it, and no second one.
        let (hours, minutes) = name.split_once(':').unwrap_or((name, "0"));
        let is_signed = hours.starts_with(['+', '-']);
        let (hours, minutes): (i8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
        // Zero has no sign: half an hour west of UTC cannot be said, and no place is there.
        let is_said = is_signed && (hours != 0 || minutes == 0 || name.starts_with('+'));
        is_said.then(|| Zone::fixed(hours, minutes).ok()).flatten()
    };
    let zone = match name.to_ascii_lowercase().as_str() {
        "utc" => Some(Zone::utc()),
        "pacific" => Some(Zone::pacific()),
        _ => offset().or_else(|| Zone::named(name).ok()),
    };
    let what = || format!("peak.zone = \"{name}\" is not known");
    let remedy = "write \"UTC\", \"Pacific\", a name such as \"Asia/Shanghai\" or an offset such as \
                  \"+08:00\"";
    zone.ok_or_else(|| ConfigError::at("peak.zone", what(), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_an_offset_with_one_sign_and_never_a_panic() {
        for name in ["+08:00", "-3:30", "+5", "-12", "+00:30", "UTC", "Pacific", "Asia/Shanghai"] {
            assert!(zone(name).is_ok(), "{name}");
        }
        for name in ["--128", "-128", "+-5", "+26", "+08:60", "+08:-1", "-00:30", "8", "+", "+:"] {
            assert!(zone(name).unwrap_err().to_string().contains("+08:00"), "{name}");
        }
    }

    #[test]
    fn what_would_change_nothing_is_refused() {
        let peak = |toml: &str| {
            let config = format!("[fallback]\nmodels = [\"gemini-3-pro-image\"]\n[peak]\n{toml}\n");
            crate::Config::parse(&config, "gateway.toml").map(drop).map_err(|e| e.to_string())
        };
        for (toml, says) in [
            ("preset = \"ten_to_fourteen_utc\"\nzone = \"Asia/Shanghai\"", "has its own"),
            ("prefer = { \"gemini-3-pro-image\" = \"gemini-3.1-flash-image\" }", "no hour"),
        ] {
            let error = peak(toml).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        peak("preset = \"ten_to_fourteen_utc\"").unwrap();
    }

    #[test]
    fn windows_are_daily_or_on_days_and_spans_may_go_over_sunday() {
        for (text, means) in [
            ("10:00-14:00", "daily 10:00-14:00"),
            ("Mon-Fri 10:00-14:00", "Mon,Tue,Wed,Thu,Fri 10:00-14:00"),
            ("saturday,sun 8:00-12:00", "Sat,Sun 8:00-12:00"),
            ("Fri-Mon 22:00-02:00", "Mon,Fri,Sat,Sun 22:00-02:00"),
        ] {
            assert_eq!(window(text).unwrap().to_string(), means, "{text}");
        }
        for text in ["ten to two", "Mon 10:00", "Someday 10:00-11:00"] {
            assert!(window(text).unwrap_err().to_string().contains("Mon-Fri"), "{text}");
        }
    }
}
