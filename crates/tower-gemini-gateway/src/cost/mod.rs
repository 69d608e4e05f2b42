//! `gemini-gateway cost`: what a volume of images costs, by model, size, tier and platform.

mod mix;
mod prices;

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tower_gemini::catalog::Catalog;

use self::mix::{Extras, Mix, PerImage, shown};
use self::prices::Prices;
use crate::today::current_models;

/// What is counted.
#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = include_str!("help.txt"))]
pub(crate) struct CostArgs {
    /// How many images, in a month or as --per says; several with commas between
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    images: Vec<u64>,
    /// What --images are counted per; costs are always those of a month (30 days)
    #[arg(long, value_enum, default_value_t = Per::Month)]
    per: Per,
    /// Which models; may be given several times, and the others are compared with the first.
    /// Without it every current model at 1K
    #[arg(long, value_name = "MIX")]
    mix: Vec<String>,
    /// A file with your own prices, such as a relay's
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// How many drafts an image may be paid for, in place of those that the catalogue knows of
    #[arg(long, value_name = "N")]
    drafts: Option<u32>,
    /// How many of a hundred calls are refused
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    refusals: f64,
    /// Which price the volumes are counted at
    #[arg(long, value_enum, default_value_t = Basis::List)]
    at: Basis,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Per {
    Month,
    Day,
}

impl Per {
    fn in_a_month(self) -> f64 {
        match self {
            Self::Month => 1.0,
            Self::Day => 30.0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Basis {
    /// Final images at list price
    List,
    /// With thoughts and input
    Expected,
    /// With drafts and refusals
    AtMost,
}

/// Runs the subcommand by the prices of a catalogue. The result is the exit code: 0, or 2 where the
/// arguments make no sense.
pub(crate) fn run(
    args: &CostArgs,
    catalog: &Catalog,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    match mixes(args, catalog) {
        Ok(mixes) => {
            let text = if args.json { as_json(args, &mixes) } else { as_text(args, &mixes) };
            // Where nobody reads the output any more there is nobody to report it to.
            let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
            0
        }
        Err(error) => {
            let _ = writeln!(errors, "gemini-gateway: {error}");
            2
        }
    }
}

fn mixes(args: &CostArgs, catalog: &Catalog) -> Result<Vec<Mix>, String> {
    if !(0.0..100.0).contains(&args.refusals) {
        return Err(format!("--refusals {}: write 0 to below 100", args.refusals));
    }
    let read = |path| Prices::read(path, catalog);
    let prices = args.prices.as_deref().map(read).transpose()?.unwrap_or_default();
    let extras = Extras { drafts: args.drafts, refusals: args.refusals / 100.0 };
    let parse = |text: &str| Mix::parse(text, catalog, &prices, extras);
    match args.mix.is_empty() {
        true => current_models(catalog).map(|model| parse(&model.id)).collect(),
        false => args.mix.iter().map(|text| parse(text)).collect(),
    }
}

/// How much dearer than the first, in percent.
fn beside_first(price: &PerImage, first: &PerImage) -> f64 {
    if first.list > 0.0 { 100.0 * (price.list / first.list - 1.0) } else { 0.0 }
}

fn at(price: &PerImage, at: Basis) -> Option<f64> {
    match at {
        Basis::List => Some(price.list),
        Basis::Expected => Some(price.expected),
        Basis::AtMost => price.at_most,
    }
}

/// Dollars of a month.
#[allow(clippy::cast_precision_loss, reason = "for people, and as JSON has it")]
fn volume(price: Option<f64>, images: u64, per: Per) -> Option<f64> {
    Some(price? * images as f64 * per.in_a_month() / 1e6)
}

fn as_text(args: &CostArgs, mixes: &[Mix]) -> String {
    let prices: Vec<_> = mixes.iter().map(Mix::per_image).collect();
    let per = if args.per == Per::Day { " a day" } else { "" };
    let heads = ["mix", "list", "expected", "at most", "to the first"].map(str::to_owned);
    let volumes = args.images.iter().map(|images| format!("{}{per}", grouped(*images)));
    let mut table = vec![heads.into_iter().chain(volumes).collect::<Vec<_>>()];
    for (mix, price) in mixes.iter().zip(&prices) {
        let per_image = [Some(price.list), Some(price.expected), price.at_most].map(shown);
        let more = prices.first().map_or(0.0, |first| beside_first(price, first));
        let mut row = vec![mix.name.clone()];
        row.extend(per_image);
        row.push(if more == 0.0 { String::new() } else { format!("{more:+.1} %") });
        let volumes = args.images.iter();
        row.extend(volumes.map(|images| money(volume(at(price, args.at), *images, args.per))));
        table.push(row);
    }
    let basis = match args.at {
        Basis::List => "list price of the final images",
        Basis::Expected => "list price with thoughts and input",
        Basis::AtMost => "the most that may be charged, with drafts and refusals",
    };
    let mut text = lines(&table);
    let _ = writeln!(text, "\nUS dollars: an image, and a month of so many images at {basis}.");
    let mut sources: Vec<_> = mixes.iter().flat_map(|mix| &mix.parts).collect();
    sources.sort_by_key(|part| part.label());
    sources.dedup_by_key(|part| part.label());
    for part in sources {
        let _ = writeln!(text, "{}: {}", part.label(), part.source);
    }
    text
}

/// A table, its first column to the left and all others to the right.
fn lines(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn money(usd: Option<f64>) -> String {
    let Some(usd) = usd else { return "unbounded".to_owned() };
    let text = format!("{usd:.2}");
    let (whole, cents) = text.split_once('.').unwrap_or((&text, "00"));
    match whole.parse() {
        Ok(whole) => format!("${}.{cents}", grouped(whole)),
        Err(_) => format!("${text}"),
    }
}

/// `10,000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn as_json(args: &CostArgs, mixes: &[Mix]) -> String {
    let prices: Vec<_> = mixes.iter().map(Mix::per_image).collect();
    let rows = mixes.iter().zip(&prices).map(|(mix, price)| {
        let volumes: Vec<Value> = args
            .images
            .iter()
            .map(|images| {
                let usd = |price| volume(price, *images, args.per);
                json!({
                    "images": images,
                    "list_usd": usd(Some(price.list)),
                    "expected_usd": usd(Some(price.expected)),
                    "at_most_usd": usd(price.at_most),
                })
            })
            .collect();
        json!({
            "mix": mix.name,
            "parts": mix.parts,
            "image_list_usd": price.list / 1e6,
            "image_expected_usd": price.expected / 1e6,
            "image_at_most_usd": price.at_most.map(|price| price / 1e6),
            "percent_beside_first": prices.first().map(|first| beside_first(price, first)),
            "month": volumes,
        })
    });
    let per = if args.per == Per::Day { "day" } else { "month" };
    format!("{:#}\n", json!({ "images_per": per, "mixes": rows.collect::<Vec<_>>() }))
}
