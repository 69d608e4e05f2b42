//! Names and files of images.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Long enough to tell prompts apart, short enough for a table and every file system.
const SLUG_CHARS: usize = 32;

/// A prompt as a file name: lower-case words and dashes.
pub(crate) fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    let mut chars = 0;
    for char in prompt.chars() {
        if chars >= SLUG_CHARS {
            break;
        }
        if char.is_alphanumeric() {
            slug.extend(char.to_lowercase());
            chars += 1;
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
            chars += 1;
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "image".to_owned() } else { slug.to_owned() }
}

/// By the bytes; where they say nothing, by the media type, which gateways get wrong more often.
pub(crate) fn extension(bytes: &[u8], mime: &str) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [0xff, 0xd8, 0xff, ..] => "jpg",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
        _ => match mime {
            "image/png" => "png",
            "image/jpeg" | "image/jpg" => "jpg",
            "image/gif" => "gif",
            "image/webp" => "webp",
            _ => "img",
        },
    }
}

/// Makes the directory and tries it, before anything is paid for that could not be kept.
pub(crate) fn prepare(dir: &Path) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| {
        format!(
            "cannot {what} the output directory `{}`: {error}. Choose another with --out DIR.",
            dir.display()
        )
    };
    fs::create_dir_all(dir).map_err(|error| failed("make", error))?;
    let trial = dir.join(format!(".quickstart-{}", std::process::id()));
    File::create(&trial).map_err(|error| failed("write into", error))?;
    fs::remove_file(&trial).map_err(|error| failed("write into", error))
}

/// Writes an image. Without `replace` a file that exists is left alone, and the new one gets a
/// number.
pub(crate) fn write(
    dir: &Path,
    name: &str,
    extension: &str,
    bytes: &[u8],
    replace: bool,
) -> Result<PathBuf, String> {
    let mut number = 1u32;
    loop {
        let path = dir.join(if number == 1 {
            format!("{name}.{extension}")
        } else {
            format!("{name}-{number}.{extension}")
        });
        let failed = |error: io::Error| format!("cannot write `{}`: {error}", path.display());
        let opened = if replace {
            File::create(&path)
        } else {
            OpenOptions::new().write(true).create_new(true).open(&path)
        };
        let mut file = match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 10_000 => {
                number += 1;
                continue;
            }
            opened => opened.map_err(failed)?,
        };
        if let Err(error) = file.write_all(bytes) {
            // Half an image helps nobody. Where it cannot be removed either, the error says what
            // happened all the same.
            let _ = fs::remove_file(&path);
            return Err(failed(error));
        }
        return Ok(path);
    }
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

    #[test]
    fn the_bytes_decide_the_extension() {
        assert_eq!(extension(b"\x89PNG\r\n", "image/jpeg"), "png");
        assert_eq!(extension(b"\xff\xd8\xff\xe0", "image/png"), "jpg");
        assert_eq!(extension(b"?", "image/webp"), "webp");
        assert_eq!(extension(b"?", "text/html"), "img");
    }
}
