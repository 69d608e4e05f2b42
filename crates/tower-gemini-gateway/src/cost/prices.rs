//! A user's own prices, from a file.

use std::path::Path;

use serde::Deserialize;
use tower_gemini::call::ImageSize;
use tower_gemini::catalog::{Catalog, Platform};

/// Prices an image.
#[derive(Debug, Default)]
pub(super) struct Prices {
    rows: Vec<Row>,
    /// What the file is called.
    pub(super) file: String,
}

#[derive(Debug)]
struct Row {
    platform: Platform,
    model: String,
    size: Option<ImageSize>,
    microusd: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    price: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    platform: String,
    model: String,
    size: Option<String>,
    usd: f64,
}

impl Prices {
    /// Reads a file: CSV where its name ends so, else TOML.
    ///
    /// # Errors
    ///
    /// A sentence with the file, and the line where there is one.
    pub(super) fn read(path: &Path, catalog: &Catalog) -> Result<Self, String> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))?;
        let is_csv = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
        let rows = if is_csv { from_csv(&text, catalog) } else { from_toml(&text, catalog) };
        Ok(Self { rows: rows.map_err(|error| format!("{file}: {error}"))?, file })
    }

    /// Whether the file has prices of that platform.
    pub(super) fn know(&self, platform: &Platform) -> bool {
        self.rows.iter().any(|row| row.platform == *platform)
    }

    /// An image of a model by its [`canonical`] id, in millionths of a dollar; a price of the size
    /// goes before one of every size.
    pub(super) fn image(&self, platform: &Platform, model: &str, size: ImageSize) -> Option<u64> {
        let of = |wanted: Option<ImageSize>| {
            let is_meant =
                |row: &&Row| row.platform == *platform && row.model == model && row.size == wanted;
            self.rows.iter().find(is_meant).map(|row| row.microusd)
        };
        of(Some(size)).or_else(|| of(None))
    }
}

/// The id of a model that the catalogue knows, else its name.
pub(super) fn canonical<'a>(catalog: &'a Catalog, model: &'a str) -> &'a str {
    catalog.lookup(model).map_or(model, |model| &model.id)
}

/// Reads a size as the API spells it.
pub(super) fn size(text: &str) -> Result<ImageSize, String> {
    let known = ImageSize::ALL.into_iter().find(|size| size.as_str() == text);
    known.ok_or_else(|| format!("\"{text}\" is not a size; the sizes are 512, 1K, 2K and 4K"))
}

fn from_toml(text: &str, catalog: &Catalog) -> Result<Vec<Row>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    file.price.into_iter().map(|written| row(written, catalog)).collect()
}

fn from_csv(text: &str, catalog: &Catalog) -> Result<Vec<Row>, String> {
    const HEAD: &str = "platform,model,size,usd";
    let is_row = |line: &str| !line.is_empty() && !line.starts_with('#');
    let mut lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| is_row(line));
    if lines.next().map(|(_, head)| head.replace(' ', "")).as_deref() != Some(HEAD) {
        return Err(format!("the first line is not {HEAD}"));
    }
    let read = |line: &str| {
        let fields: Vec<_> = line.split(',').map(|field| field.trim().to_owned()).collect();
        let [platform, model, size, usd] = <[String; 4]>::try_from(fields)
            .map_err(|fields| format!("{} fields in place of 4", fields.len()))?;
        let usd = usd.parse().map_err(|_| format!("\"{usd}\" is not an amount of dollars"))?;
        let size = Some(size).filter(|size| !size.is_empty());
        row(Written { platform, model, size, usd }, catalog)
    };
    let rows =
        lines.map(|(at, line)| read(line).map_err(|error| format!("line {}: {error}", at + 1)));
    rows.collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be at least zero; a cast of a float saturates"
)]
fn row(written: Written, catalog: &Catalog) -> Result<Row, String> {
    let Written { platform, model, size: stated, usd } = written;
    if !(usd.is_finite() && usd >= 0.0) {
        return Err(format!("{usd} is not an amount of dollars"));
    }
    let size = stated.as_deref().map(size).transpose()?;
    let microusd = (usd * 1e6).round() as u64;
    Ok(Row {
        platform: platform.into(),
        model: canonical(catalog, &model).to_owned(),
        size,
        microusd,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "platform,model,size,usd\n# a relay\napiyi,nano-banana-2,,0.035\n\
                       apiyi, nano-banana-2, 4K, 0.08\n";

    #[test]
    fn a_price_of_the_size_goes_before_one_of_every_size() {
        let toml = "[[price]]\nplatform = \"apiyi\"\nmodel = \"gemini-3.1-flash-image\"\nusd = 0.035\n\
                    [[price]]\nplatform = \"apiyi\"\nmodel = \"nano-banana-2\"\nsize = \"4K\"\nusd = 0.08\n";
        let catalog = Catalog::builtin();
        for rows in [from_csv(CSV, catalog).unwrap(), from_toml(toml, catalog).unwrap()] {
            let prices = Prices { rows, file: String::new() };
            let apiyi = Platform::other("apiyi");
            let flash = "gemini-3.1-flash-image";
            let price = |size| prices.image(&apiyi, flash, size);
            assert_eq!(price(ImageSize::K1), Some(35_000));
            assert_eq!(price(ImageSize::K4), Some(80_000));
            assert_eq!(prices.image(&Platform::GeminiApi, flash, ImageSize::K1), None);
        }
    }

    #[test]
    fn a_line_that_cannot_be_a_price_is_named() {
        for (text, says) in [
            ("", "the first line is not platform,model,size,usd"),
            ("platform,model,size,usd\na,b,1K\n", "line 2: 3 fields in place of 4"),
            ("platform,model,size,usd\n\na,b,1k,1\n", "line 3: \"1k\" is not a size"),
            ("platform,model,size,usd\na,b,1K,free\n", "\"free\" is not an amount"),
            ("platform,model,size,usd\na,b,1K,-1\n", "-1 is not an amount"),
            ("platform,model,size,usd\na,b,1K,nan\n", "NaN is not an amount"),
        ] {
            let error = from_csv(text, Catalog::builtin()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
