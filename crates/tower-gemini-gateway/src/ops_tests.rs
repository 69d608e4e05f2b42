//! The files of `ops/` fit the program.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::config::Config;
use crate::pages;

const ALERTS: &str = include_str!("../ops/alerts.yml");
const DASHBOARD: &str = include_str!("../ops/grafana.json");
const UNIT: &str = include_str!("../ops/gemini-gateway.service");
const DOCKERFILE: &str = include_str!("../ops/Dockerfile");
const OPERATIONS: &str = include_str!("../OPERATIONS.md");

/// Collects the names of what is described.
#[derive(Default)]
struct Names {
    plain: Mutex<BTreeSet<String>>,
    histograms: Mutex<BTreeSet<String>>,
}

impl Recorder for Names {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.plain.lock().unwrap().insert(name.as_str().to_owned());
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.plain.lock().unwrap().insert(name.as_str().to_owned());
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        self.histograms.lock().unwrap().insert(name.as_str().to_owned());
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// The words of a text that look like one of our metrics.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("gemini_") || word.starts_with("gateway_"))
        .collect()
}

#[test]
fn every_metric_of_the_dashboard_and_the_alerts_is_one_that_we_export() {
    let names = Names::default();
    metrics::with_local_recorder(&names, pages::describe_metrics);
    let (plain, histograms) =
        (names.plain.into_inner().unwrap(), names.histograms.into_inner().unwrap());
    let is_exported = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].into_iter();
        let mut of_histogram = of_histogram.filter_map(|part| name.strip_suffix(part));
        plain.contains(name) || of_histogram.any(|name| histograms.contains(name))
    };
    for (file, text) in [("alerts.yml", ALERTS), ("grafana.json", DASHBOARD)] {
        let used = metrics_in(text);
        assert!(used.len() > 8, "{file}: {used:?}");
        for name in used {
            assert!(is_exported(name), "{file} uses {name}");
        }
    }
    assert!(!is_exported("gemini_made_up_total"));
    serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
}

fn setting<'a>(file: &'a str, name: &str) -> &'a str {
    let line = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("{name} is missing"))
}

#[test]
fn the_unit_and_the_image_leave_time_to_finish_and_files_enough() {
    let server = Config::default().server;
    let stop: u64 = setting(UNIT, "TimeoutStopSec").parse().unwrap();
    // What is written after the grace: stored responses, signatures, settlements.
    let least = server.shutdown_grace.0 + Duration::from_secs(15);
    assert!(Duration::from_secs(stop) >= least, "{stop} s");
    let (_, docker) = DOCKERFILE.split_once("--stop-timeout ").unwrap();
    let docker: u64 = docker.split_whitespace().next().unwrap().parse().unwrap();
    assert!(Duration::from_secs(docker) >= least, "{docker} s");
    let files: usize = setting(UNIT, "LimitNOFILE").parse().unwrap();
    assert!(files >= 2 * (server.max_connections + 4 * Config::default().most_calls()));
}

#[test]
fn alerts_that_name_a_limit_name_the_default() {
    let config = Config::default();
    assert!(ALERTS.contains(&format!("> 0.9 * {}\n", config.server.max_in_flight)));
    assert!(ALERTS.contains(&format!("> 0.9 * {}\n", config.kept_bytes())));
}

#[test]
fn every_alert_is_explained_on_the_operations_page() {
    let alerts: Vec<_> =
        ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 8);
    for alert in alerts {
        assert!(OPERATIONS.contains(&format!("`{alert}`")), "{alert}");
    }
}

#[test]
fn the_configuration_of_the_image_keeps_its_state_where_the_volume_is() {
    let config = include_str!("../ops/gateway.container.toml");
    let config = Config::parse(config, "gateway.container.toml").unwrap();
    let dir = config.server.state_dir.unwrap();
    assert!(DOCKERFILE.contains(&format!("VOLUME {}\n", dir.display())));
    let (_, unit_dir) = UNIT.split_once("\nStateDirectory=").unwrap();
    assert!(dir.ends_with(unit_dir.lines().next().unwrap()));
}
