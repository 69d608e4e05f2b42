//! `gemini-gateway cost`: the tables that operators publish, from the catalogue's prices and a file
//! of a relay's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::path::PathBuf;

use serde_json::Value;
use tokio::sync::mpsc;
use tower_gemini_gateway::app;

/// A relay's price list, removed at the end.
struct RelayPrices(PathBuf);

impl RelayPrices {
    /// APIYI, 503s on Nano Banana 2, 2026-03: $0.035 and $0.05 an image.
    fn new(name: &str) -> Self {
        let file = format!("gemini-cost-{name}-{}.csv", std::process::id());
        let file = std::env::temp_dir().join(file);
        let prices = "platform,model,size,usd\napiyi,nano-banana-2,,0.035\n\
                      apiyi,nano-banana-pro,,0.05\n";
        std::fs::write(&file, prices).unwrap();
        Self(file)
    }
}

impl Drop for RelayPrices {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn run(args: &[&str]) -> (u8, String, String) {
    let args = [&["cost"], args].concat();
    let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (_sender, signals) = mpsc::channel(1);
    let code = app(&args, &mut out, &mut err, signals).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

/// The rows of the table, by words.
async fn rows(args: &[&str]) -> Vec<String> {
    let (code, out, err) = run(args).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let rows = out.lines().skip(1).take_while(|line| !line.is_empty());
    rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

async fn json(args: &[&str]) -> Value {
    let (code, out, err) = run(&[args, &["--json"]].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""));
    serde_json::from_str(&out).unwrap()
}

/// "Operators' guide to RESOURCE_EXHAUSTED", 2026-02: 100, 1,000 and 10,000 images a month.
#[tokio::test]
async fn the_table_by_model_of_the_guide_to_resource_exhausted_is_reproduced() {
    let prices = RelayPrices::new("guide");
    let found = rows(&[
        "--prices",
        prices.0.to_str().unwrap(),
        "--mix=gemini-3-pro-image",
        "--mix=gemini-2.5-flash-image",
        "--mix=imagen-4-fast",
        "--mix=apiyi/nano-banana-pro",
    ])
    .await;
    for (row, (model, month)) in found.iter().zip([
        ("gemini-3-pro-image $0.134 ", " $13.40 $134.00 $1,340.00"),
        ("gemini-2.5-flash-image $0.039 ", " $3.90 $39.00 $390.00"),
        ("imagen-4-fast $0.020 ", " $2.00 $20.00 $200.00"),
        ("apiyi/nano-banana-pro $0.050 ", " $5.00 $50.00 $500.00"),
    ]) {
        assert!(row.starts_with(model) && row.ends_with(month), "{row}");
    }
    assert_eq!(found.len(), 4);
}

/// "503s on Nano Banana 2", 2026-03: 10,000 and 100,000 images a month. It says that the mix costs
/// about 11 % more; by its own table it is 12.9 %.
#[tokio::test]
async fn a_mix_of_seven_tenths_costs_twelve_point_nine_percent_more_than_the_cheaper_model() {
    let prices = RelayPrices::new("mix");
    let prices = prices.0.to_str().unwrap();
    let mixes = [
        "--mix=apiyi/nano-banana-2",
        "--mix=apiyi/nano-banana-pro",
        "--mix=apiyi/nano-banana-2=70,apiyi/nano-banana-pro=30",
    ];
    let args = [&["--images=10000,100000", "--prices", prices][..], &mixes].concat();
    let found = rows(&args).await;
    assert_eq!(
        found,
        [
            "apiyi/nano-banana-2 $0.035 $0.035 $0.035 $350.00 $3,500.00",
            "apiyi/nano-banana-pro $0.050 $0.050 $0.050 +42.9 % $500.00 $5,000.00",
            "apiyi/nano-banana-2=70,apiyi/nano-banana-pro=30 $0.0395 $0.0395 $0.0395 +12.9 % \
             $395.00 $3,950.00",
        ]
    );
    let mix = &json(&args).await["mixes"][2];
    let more = mix["percent_beside_first"].as_f64().unwrap();
    assert!((more - 12.857).abs() < 0.001, "{more}");
    assert!((mix["month"][1]["list_usd"].as_f64().unwrap() - 3950.0).abs() < 1e-6);
}

#[tokio::test]
async fn tiers_and_sizes_are_priced_as_the_price_lists_say() {
    let found = rows(&[
        "--images=1000",
        "--mix=gemini-3-pro-image@2K",
        // A batch costs half, and nothing of it is dearer.
        "--mix=gemini-3-pro-image@2K:batch",
        "--mix=gemini-3-pro-image@2K:flex",
        "--mix=gemini-3-pro-image@2K:priority",
        "--mix=gemini-3-pro-image@4K",
        // Two drafts at 1K for each image at 4K, and all of them at 4K: 37 % less.
        "--mix=nano-banana-2@1K=2,nano-banana-2@4K=1",
        "--mix=nano-banana-2@4K",
        // 5 % Pro, 25 % batches, 70 % Flash: 62 % less than Pro alone.
        "--mix=gemini-3-pro-image=5,gemini-3-pro-image:batch=25,gemini-2.5-flash-image=70",
    ])
    .await;
    let months: Vec<_> = found.iter().map(|row| row.rsplit(' ').next().unwrap()).collect();
    assert_eq!(
        months,
        ["$134.00", "$67.00", "$67.00", "$268.00", "$240.00", "$95.00", "$151.00", "$50.75"]
    );
    assert!(found[7].contains(" -62.1 % "), "{}", found[7]);
    let at_most = |row: &str| row.split(' ').nth(3).unwrap().trim_start_matches('$').to_owned();
    let at_most = |row: &str| at_most(row).parse::<f64>().unwrap();
    assert!((at_most(&found[1]) * 2.0 - at_most(&found[0])).abs() < 1e-3, "{found:#?}");
    // What was asked for as flex may be served at the standard price.
    assert!((at_most(&found[2]) - at_most(&found[0])).abs() < 1e-9, "{found:#?}");
}

#[tokio::test]
async fn thoughts_drafts_and_refusals_raise_what_may_be_charged_and_not_the_list_price() {
    let of = async |args: &[&str]| {
        let args = [&["--images=30", "--mix=gemini-3-pro-image"], args].concat();
        let row = json(&args).await["mixes"][0].clone();
        ["image_list_usd", "image_expected_usd", "image_at_most_usd"]
            .map(|price| row[price].as_f64().unwrap())
    };
    let plain = of(&["--drafts=0"]).await;
    let drafts = of(&["--drafts=2"]).await;
    let refusals = of(&["--drafts=0", "--refusals=10"]).await;
    assert!(plain[0] < plain[1] && plain[1] < plain[2], "{plain:?}");
    assert_eq!((plain[0], plain[1]), (drafts[0], drafts[1]));
    assert!((drafts[2] - plain[2] - 2.0 * 0.1344).abs() < 1e-9, "{drafts:?}");
    assert!(refusals[2] > plain[2] && refusals[2] < plain[2] + 0.1344 / 9.0, "{refusals:?}");
    // 30 a day are 900 a month, here at the price with thoughts.
    let args = ["--images=30", "--per=day", "--at=expected", "--mix=gemini-3-pro-image"];
    assert!(rows(&args).await[0].ends_with(" $126.67"), "{:?}", rows(&args).await);
}

#[tokio::test]
async fn without_a_mix_every_current_model_is_priced_and_its_source_is_named() {
    let (code, out, _) = run(&[]).await;
    assert_eq!(code, 0);
    assert!(out.contains("\ngemini-3-pro-image ") && !out.contains("preview"), "{out}");
    assert!(out.contains("gemini-api/gemini-3-pro-image: Gemini API pricing page"), "{out}");
}

#[tokio::test]
async fn what_cannot_be_priced_is_refused_with_what_to_write() {
    for (args, says) in [
        (&["--mix=gpt-image"][..], "the catalogue has gemini-nano-banana-2.1"),
        (&["--mix=apiyi/nano-banana-2"], "name a file with --prices"),
        (&["--mix=gemini-3-pro-image@512"], "no list price at 512"),
        (&["--mix=gemini-3-pro-image@2k"], "the sizes are 512, 1K, 2K and 4K"),
        (&["--mix=gemini-3-pro-image:cheap"], "write standard, batch, flex or priority"),
        (&["--mix=gemini-3-pro-image=0"], "write a number above 0"),
        (&["--mix="], "no model \"\""),
        (&["--refusals=100"], "write 0 to below 100"),
        (&["--prices=no-such-file.csv"], "no-such-file.csv"),
        (&["--images=many"], "--images"),
    ] {
        let (code, out, err) = run(args).await;
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(err.contains(says), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn the_models_of_the_configurations_catalogue_are_priced() {
    let dir = std::env::temp_dir().join(format!("gemini-cost-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (models, config) = (dir.join("models.toml"), dir.join("gateway.toml"));
    let text = "[[model]]\nid = \"house-banana\"\naliases = [\"hb\"]\nfamily = \"flash\"\n\
                images = true\nsizes = [\"1K\"]\n[[model.price]]\nplatform = \"gemini-api\"\n\
                source = \"our list\"\nas_of = \"2026-11-01\"\n\
                per_image_microusd = { \"1K\" = 21_000 }\n";
    std::fs::write(&models, text).unwrap();
    std::fs::write(&config, format!("[catalog]\nfile = {models:?}\n")).unwrap();
    let config = format!("--config={}", config.display());
    let rows = rows(&[&config, "--mix=hb", "--images=1000"]).await;
    assert_eq!(rows, ["hb $0.021 $0.021 $0.021 $21.00"]);
    let (code, out, _) = run(&[&config]).await;
    assert!(code == 0 && out.contains("house-banana") && out.contains("our list"), "{out}");
    let (code, _, err) = run(&["--mix=hb"]).await;
    assert!(code == 2 && err.contains("no model \"hb\""), "{err}");
    std::fs::write(&models, "[[model]]\nid = 1\n").unwrap();
    let (code, _, err) = run(&[&config]).await;
    assert!(code == 2 && err.contains("line 2 of the model catalogue"), "{err}");
    std::fs::remove_dir_all(&dir).unwrap();
}
