//! The days that are simulated: scenarios of the simulator, by name or from a file.

use std::time::Duration;

use fastrand::Rng;
use tower_gemini::catalog::Catalog;
use tower_gemini_sim::{Arrivals, ScenarioError, Sim};

use crate::zoo::secs;

/// What a call asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// The model.
    pub model: &'static str,
    /// The size.
    pub size: &'static str,
    /// Whether it is in the flex tier.
    pub flex: bool,
}

/// A scenario and its name.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// For the command line and tables.
    pub name: String,
    /// The weather, and who asks for what.
    pub of: tower_gemini_sim::Scenario,
    /// How far into it the first call comes.
    pub skip: Duration,
}

impl Scenario {
    /// A scenario from its text.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let of = tower_gemini_sim::Scenario::parse(text)?;
        Ok(Self { name: name.to_owned(), of, skip: Duration::ZERO })
    }

    /// Its simulator, whose clock starts now.
    pub fn sim(&self, seed: u64) -> Sim {
        self.of.builder().seed(seed).tiny_images(true).build()
    }

    /// Who asks when.
    pub fn arrivals(&self) -> &Arrivals {
        &self.of.arrivals
    }

    /// How long calls come in.
    pub fn lasts(&self) -> Duration {
        secs(u64::from(self.of.hours) * 3600) - self.skip
    }

    /// How long a caller waits for one image.
    pub fn patience(&self) -> Duration {
        secs(self.arrivals().deadline_minutes * 60)
    }

    /// The hour of the UTC day in which the first call may come.
    pub fn first_hour(&self) -> u64 {
        u64::from(self.of.starts_at_utc) + self.skip.as_secs() / 3600
    }

    /// What a call asks for.
    pub fn asks(&self, seed: u64, number: usize) -> Wanted {
        let mix = &self.arrivals().mix;
        let mut point = 0.0;
        if mix.len() > 1 {
            let all: f64 = mix.iter().map(|wanted| wanted.share).sum();
            point = Rng::with_seed(seed ^ number as u64).f64() * all;
        }
        let drawn = mix.iter().find(|wanted| {
            point -= wanted.share;
            point < 0.0
        });
        let Some(wanted) = drawn.or(mix.last()) else { return Wanted::default() };
        let known = Catalog::builtin().lookup(&wanted.model);
        let model = known.map_or("", |model| &model.id);
        Wanted { model, size: wanted.size.as_str(), flex: wanted.flex }
    }
}

/// Every scenario of the simulator.
pub fn all() -> Vec<Scenario> {
    let built_in = tower_gemini_sim::Scenario::built_in();
    built_in.iter().filter_map(|(name, text)| Scenario::parse(name, text).ok()).collect()
}

/// One of them.
pub fn find(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_calls_ask_for_the_flex_tier_as_the_mix_says() {
        let scenario = find("flex").unwrap();
        let flex = (0..1_000).filter(|number| scenario.asks(1, *number).flex).count();
        assert!((700..800).contains(&flex), "{flex}");
    }
}
