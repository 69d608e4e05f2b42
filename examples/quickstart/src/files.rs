//! Names and files of images.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Long enough to tell prompts apart, short enough for a table and every file system.
const SLUG_CHARS: usize = 32;

/// A prompt as a file name: lower-case words and dashes.
pub(crate) fn slug(prompt: &str) -> String {
    let words: Vec<_> = prompt.split(|char: char| !char.is_alphanumeric()).collect();
    let words = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-");
    let slug: String = words.to_lowercase().chars().take(SLUG_CHARS).collect();
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "image".to_owned() } else { slug.to_owned() }
}

/// Makes the directory and tries it, before anything is paid for that could not be kept.
pub(crate) fn prepare(dir: &Path) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| {
        let dir = dir.display();
        format!(
            "cannot {what} the output directory `{dir}`: {error}. Choose another with --out DIR."
        )
    };
    fs::create_dir_all(dir).map_err(|error| failed("make", error))?;
    let trial = dir.join(format!(".quickstart-{}", std::process::id()));
    let tried = File::create(&trial).and_then(|_| fs::remove_file(&trial));
    tried.map_err(|error| failed("write into", error))
}

/// Writes an image. Without `replace` a file that exists is left alone, and the new one gets a
/// number.
pub(crate) fn write(
    dir: &Path,
    file: &str,
    bytes: &[u8],
    replace: bool,
) -> Result<PathBuf, String> {
    let mut path = dir.join(file);
    let (name, extension) = file.rsplit_once('.').unwrap_or((file, "img"));
    let mut options = OpenOptions::new();
    options.write(true).create(replace).truncate(replace).create_new(!replace);
    for number in 2..10_000 {
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                path = dir.join(format!("{name}-{number}.{extension}"));
            }
            opened => {
                let written = opened.and_then(|mut file| file.write_all(bytes));
                return match written {
                    Ok(()) => Ok(path),
                    Err(error) => Err(format!("cannot write `{}`: {error}", path.display())),
                };
            }
        }
    }
    Err(format!("there are too many files like `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_words_and_dashes() {
        assert_eq!(slug("A red panda, reading!"), "a-red-panda-reading");
        assert_eq!(slug("  ../../etc/passwd "), "etc-passwd");
        assert_eq!(slug("…"), "image");
        assert_eq!(slug("Дом у моря"), "дом-у-моря");
        assert!(slug(&"long ".repeat(50)).chars().count() <= SLUG_CHARS);
    }
}
