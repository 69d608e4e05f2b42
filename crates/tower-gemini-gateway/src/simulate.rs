//! `gemini-gateway simulate`: a scenario of the simulator over HTTP, for any client.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;
use tokio::sync::mpsc;
use tower_gemini_sim::{Observations, Scenario, ServeHandle, Sim, Totals};

use crate::cli::SimulateArgs;
use crate::running::Signal;

/// A scenario that is served.
pub(crate) struct Simulation {
    sim: Sim,
    server: ServeHandle,
    about: String,
    as_json: bool,
}

/// Why it is not.
#[derive(Debug)]
pub(crate) enum SimulationError {
    NoScenario(String),
    Unreadable(String, std::io::Error),
    Wrong(String, tower_gemini_sim::ScenarioError),
    Listen(SocketAddr, std::io::Error),
}

impl fmt::Display for SimulationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoScenario(name) => {
                let known: Vec<_> = Scenario::built_in().iter().map(|(name, _)| *name).collect();
                let known = known.join(", ");
                write!(f, "{name} is neither a file nor one of the scenarios {known}")
            }
            Self::Unreadable(name, error) => write!(f, "{name} cannot be read: {error}"),
            Self::Wrong(name, error) => write!(f, "the scenario {name} cannot be used: {error}"),
            Self::Listen(addr, error) => {
                write!(f, "cannot listen on {addr}: {error}; name another address with --listen")
            }
        }
    }
}

/// The scenario that fits a file of observations.
pub(crate) fn fitted(file: &Path) -> Result<String, SimulationError> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|error| SimulationError::Unreadable(name.clone(), error))?;
    let seen = Observations::parse(&text).map_err(|error| SimulationError::Wrong(name, error))?;
    Ok(seen.fit().to_string())
}

impl Simulation {
    pub(crate) async fn start(args: &SimulateArgs) -> Result<Self, SimulationError> {
        let name = &args.scenario;
        let known = Scenario::built_in().iter().find(|(known, _)| known == name);
        let text = match (std::fs::read_to_string(Path::new(name)), known) {
            (Ok(text), _) => text,
            (Err(_), Some((_, text))) => (*text).to_owned(),
            (Err(_), None) => return Err(SimulationError::NoScenario(name.clone())),
        };
        let scenario = match name.ends_with(".csv") {
            true => Observations::parse(&text).map(Scenario::replaying),
            false => Scenario::parse(&text),
        };
        let scenario = scenario.map_err(|error| SimulationError::Wrong(name.clone(), error))?;
        let sim = scenario.builder().seed(args.seed).build();
        let server = tower_gemini_sim::serve(sim.clone(), args.listen)
            .await
            .map_err(|error| SimulationError::Listen(args.listen, error))?;
        Ok(Self { sim, server, about: scenario.about, as_json: args.json })
    }

    pub(crate) fn welcome(&self) -> String {
        if self.as_json {
            return format!("{}\n", json!({ "url": self.server.url(), "about": self.about }));
        }
        format!(
            "{}.\nA simulated Gemini at {url}: base URL of any client, with any key.\n\
             OpenAI clients: {url}/v1beta/openai/. Ctrl-C prints what was charged.\n",
            self.about,
            url = self.server.url(),
        )
    }

    /// Serves until it is stopped, and says what came of it.
    pub(crate) async fn run(self, mut signals: mpsc::Receiver<Signal>) -> String {
        while signals.recv().await == Some(Signal::Reload) {}
        let Totals {
            requests,
            charged,
            images_delivered,
            charged_but_undelivered,
            cost_microusd,
            ..
        } = self.sim.totals();
        self.server.shutdown().await;
        if self.as_json {
            let totals = json!({
                "requests": requests,
                "images_delivered": images_delivered,
                "charged": charged,
                "charged_but_undelivered": charged_but_undelivered,
                "cost_microusd": cost_microusd,
            });
            return format!("{totals}\n");
        }
        format!(
            "{requests} requests, {images_delivered} images delivered; {charged} requests charged, \
             of which {charged_but_undelivered} did not arrive.\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenario_of_the_readme_is_one() {
        let readme = include_str!("../README.md");
        let example = readme.split("```toml\n").find(|block| block.starts_with("about")).unwrap();
        Scenario::parse(example.split("```").next().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_scenario_is_served_and_what_was_charged_is_told() {
        let args = SimulateArgs {
            scenario: "calm".to_owned(),
            seed: 1,
            fit: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            json: false,
        };
        let stopped = || {
            let (sender, signals) = mpsc::channel(1);
            sender.try_send(Signal::Stop).unwrap();
            signals
        };
        let simulation = Simulation::start(&args).await.unwrap();
        assert!(simulation.welcome().contains(&simulation.server.url()));
        assert!(simulation.run(stopped()).await.starts_with("0 requests"));
        let for_scripts = SimulateArgs { json: true, ..args.clone() };
        let simulation = Simulation::start(&for_scripts).await.unwrap();
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&simulation.welcome())["url"], simulation.server.url());
        let totals = read(&simulation.run(stopped()).await);
        assert_eq!((&totals["charged"], &totals["cost_microusd"]), (&json!(0), &json!(0)));
        let wrong = SimulateArgs { scenario: "nope".to_owned(), ..args };
        let error = Simulation::start(&wrong).await.err().unwrap().to_string();
        assert!(error.contains("day-correlated"), "{error}");
    }
}
