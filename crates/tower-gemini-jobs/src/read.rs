//! Reads the items of a job from JSONL or CSV, a line at a time.

use std::fmt;
use std::io::{BufRead, Read};

use serde_json::{Map, Value};

use crate::item::Item;

/// How the items of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// A header with the names of the fields, then a row an item. `inputs` are separated by `;`.
    Csv,
}

impl Format {
    /// By the extension: `.csv` is CSV, everything else JSONL.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        match name.rsplit_once('.') {
            Some((_, extension)) if extension.eq_ignore_ascii_case("csv") => Self::Csv,
            _ => Self::Jsonl,
        }
    }
}

/// A line that is no item.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LineFault {
    /// The number of the line, from 1.
    pub line: u64,
    /// What is wrong with it, and what to write.
    pub what: String,
}

impl LineFault {
    pub(crate) fn new(line: u64, what: impl fmt::Display) -> Self {
        Self { line, what: what.to_string() }
    }
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// The longest line, in bytes: a prompt of the longest length, escaped.
const LONGEST_LINE: u64 = 2 * 1024 * 1024;

/// Reads items. Lines that are empty are skipped; memory is bounded by the longest line (2 MiB).
///
/// ```
/// use tower_gemini_jobs::read::{Format, items};
///
/// let file = "prompt,size,inputs\na red apple,2K,\nthe same in green,,item:1;table.png\n";
/// let read: Vec<_> = items(file.as_bytes(), Format::Csv).collect();
/// let (line, item) = read[1].as_ref().unwrap();
/// assert_eq!((*line, item.inputs.len()), (3, 2));
///
/// let read: Vec<_> = items(&b"{\"prompt\": \"a\"}\nnot json\n"[..], Format::Jsonl).collect();
/// assert_eq!(read[1].as_ref().unwrap_err().line, 2);
/// ```
pub fn items<'r>(
    reader: impl BufRead + Send + 'r,
    format: Format,
) -> Box<dyn Iterator<Item = Result<(u64, Item), LineFault>> + Send + 'r> {
    match format {
        Format::Jsonl => Box::new(Jsonl { reader, line: 0, is_over: false }),
        Format::Csv => {
            let mut builder = csv::ReaderBuilder::new();
            let reader = builder.trim(csv::Trim::All).flexible(true).from_reader(reader);
            Box::new(csv_items(reader))
        }
    }
}

struct Jsonl<R> {
    reader: R,
    line: u64,
    is_over: bool,
}

impl<R: BufRead> Iterator for Jsonl<R> {
    type Item = Result<(u64, Item), LineFault>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            self.line += 1;
            let mut line = Vec::new();
            match self.reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(read) if read as u64 == LONGEST_LINE && line.last() != Some(&b'\n') => {
                    self.is_over = true;
                    let what = format!(
                        "longer than {LONGEST_LINE} bytes, so nothing behind it was read; give \
                         images as paths or URLs"
                    );
                    return Some(Err(LineFault::new(self.line, what)));
                }
                Ok(_) => {}
                Err(error) => {
                    self.is_over = true;
                    let what = format!("cannot be read, nor what is behind it: {error}");
                    return Some(Err(LineFault::new(self.line, what)));
                }
            }
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line).trim_ascii();
            if !line.is_empty() {
                let item = serde_json::from_slice(line);
                return Some(match item {
                    Ok(item) => Ok((self.line, item)),
                    Err(error) => Err(LineFault::new(self.line, without_place(&error))),
                });
            }
        }
        None
    }
}

/// An error of serde_json without its own line, which is always 1.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} (column {})", error.column())
}

fn csv_items<R: Read>(
    mut reader: csv::Reader<R>,
) -> impl Iterator<Item = Result<(u64, Item), LineFault>> {
    let headers = reader.headers().cloned();
    let mut records = reader.into_records();
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let headers = match &headers {
            Ok(headers) => headers,
            Err(error) => {
                is_over = true;
                return Some(Err(LineFault::new(1, error)));
            }
        };
        Some(match records.next()? {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                item_of(headers, &record)
                    .map(|item| (line, item))
                    .map_err(|what| LineFault::new(line, what))
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                // A file that cannot be read gives the same error for ever.
                is_over = matches!(error.kind(), csv::ErrorKind::Io(_));
                Err(LineFault::new(line, error))
            }
        })
    })
}

fn item_of(headers: &csv::StringRecord, record: &csv::StringRecord) -> Result<Item, String> {
    if record.len() > headers.len() {
        return Err(format!(
            "has {} fields and the header {}; put a text with commas in quotes",
            record.len(),
            headers.len()
        ));
    }
    let mut fields = Map::new();
    for (name, text) in headers.iter().zip(record).filter(|(_, text)| !text.is_empty()) {
        let value = match name {
            "inputs" => text.split(';').map(|input| Value::from(input.trim())).collect(),
            "max_usd" | "max_requests" => serde_json::from_str(text)
                .ok()
                .filter(Value::is_number)
                .ok_or_else(|| format!("`{name}` is {text:?} and no number"))?,
            _ => Value::from(text),
        };
        fields.insert(name.trim_start_matches('\u{feff}').to_owned(), value);
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8], format: Format) -> Vec<Result<(u64, Item), LineFault>> {
        items(text, format).collect()
    }

    #[test]
    fn every_bad_line_is_reported_with_its_number_and_the_others_are_read() {
        let text = "\u{feff}{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\",\"sise\":\"1K\"}\n{}\n{\"prompt\":\"c\"}";
        let read = read(text.as_bytes(), Format::Jsonl);
        let lines: Vec<_> = read
            .iter()
            .map(|one| match one {
                Ok((line, item)) => format!("{line} {}", item.prompt),
                Err(fault) => fault.to_string(),
            })
            .collect();
        assert_eq!(lines[0], "1 a");
        assert!(lines[1].starts_with("line 3: unknown field `sise`"), "{}", lines[1]);
        assert!(lines[2].starts_with("line 4: missing field `prompt`"), "{}", lines[2]);
        assert_eq!((lines[3].as_str(), lines.len()), ("5 c", 4));
    }

    #[test]
    fn a_row_with_too_many_fields_is_a_fault_and_not_another_prompt() {
        let read = read(b"prompt,size\na red apple, on a table,1K,x\n\"b, c\",1K\n", Format::Csv);
        assert!(read[0].as_ref().unwrap_err().to_string().contains("line 2: has 4 fields"));
        assert_eq!(read[1].as_ref().unwrap().1.prompt, "b, c");
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let endless = std::io::BufReader::new(std::io::repeat(b'a'));
        let read: Vec<_> = items(endless, Format::Jsonl).collect();
        assert_eq!(read.len(), 1);
        assert!(read[0].as_ref().unwrap_err().what.contains("longer than"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_bytes_panic_and_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for format in [Format::Jsonl, Format::Csv] {
                prop_assert!(read(&bytes, format).len() <= bytes.len() + 1);
            }
        }

        #[test]
        fn what_is_written_as_jsonl_is_read_back(
            prompt in ".{1,40}",
            output in proptest::option::of("[a-z]{1,8}"),
        ) {
            let item = Item { prompt, output, ..Item::default() };
            let line = serde_json::to_string(&item).unwrap();
            prop_assert_eq!(read(line.as_bytes(), Format::Jsonl), vec![Ok((1, item))]);
        }
    }
}
