//! Finds images in text: data URIs, Markdown around them, and both alphabets of base64.

use std::borrow::Cow;

use super::json::{Json, object};

/// An image as Gemini takes it in a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct InlineImage<'a> {
    pub(super) mime: Cow<'a, str>,
    /// Base64 of the standard alphabet, padded.
    pub(super) data: Cow<'a, str>,
}

impl<'a> InlineImage<'a> {
    pub(super) fn into_part(self, signature: Option<&'a str>) -> Json<'a> {
        let inline = object([("mimeType", self.mime.into()), ("data", self.data.into())]);
        let signature = signature.map(|signature| ("thoughtSignature", signature.into()));
        object([("inlineData", inline)].into_iter().chain(signature))
    }
}

/// Why a text cannot be read as an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageError {
    /// It is an address, and nothing is fetched.
    Remote,
    /// It is a file of Google's whose type is neither stated nor in its name.
    FileType,
    /// It is not a data URI of base64.
    NotData,
    /// Its data is empty or not base64.
    Base64,
    /// Its type is neither stated nor recognised by its first bytes.
    Type,
}

impl ImageError {
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Remote => {
                "is an address, and addresses are not fetched; send the image itself as a data URI (`data:image/png;base64,…`), or a file of Google's (`files/…`, `gs://…`)"
            }
            Self::FileType => "has a name without a type; state it as `format` (`image/png`)",
            Self::NotData => "is not a data URI of base64 (`data:image/png;base64,…`)",
            Self::Base64 => "is not valid base64",
            Self::Type => "has no image type; start it with `data:image/png;base64,`",
        }
    }
}

/// Makes a part of what a client sends as an image: a file of Google's, which Gemini reads itself,
/// or what `read` takes.
pub(super) fn part_of<'a>(
    text: &'a str,
    stated_mime: Option<&'a str>,
    signature: Option<&'a str>,
    read: impl FnOnce(&'a str) -> Result<InlineImage<'a>, ImageError>,
) -> Result<Json<'a>, ImageError> {
    let Some(uri) = file_uri(text.trim()) else { return Ok(read(text)?.into_part(signature)) };
    let named = || Some(Cow::Borrowed(mime_of_name(&uri)?));
    let mime = stated_mime.and_then(mime_of).or_else(named);
    // Google knows what type a file has that was uploaded to it, and asks for that of any other.
    if mime.is_none() && uri.starts_with(BUCKET) {
        return Err(ImageError::FileType);
    }
    let mime = mime.map(|mime| ("mimeType", mime.into()));
    let file = object([("fileUri", uri.into())].into_iter().chain(mime));
    let signature = signature.map(|signature| ("thoughtSignature", signature.into()));
    Ok(object([("fileData", file)].into_iter().chain(signature)))
}

const BUCKET: &str = "gs://";

/// The URI of a file in Google's storage: in a bucket, or uploaded with the Files API, whose names
/// (`files/abc`) are short for their URIs.
fn file_uri(text: &str) -> Option<Cow<'_, str>> {
    const HOST: &str = "https://generativelanguage.googleapis.com/";
    let path = text.strip_prefix(HOST);
    let is_named = |path: &str| path.strip_prefix("files/").is_some_and(|name| !name.is_empty());
    if text.len() > BUCKET.len() && text.starts_with(BUCKET)
        || path.and_then(|path| path.split_once('/')).is_some_and(|(_, path)| is_named(path))
    {
        return Some(Cow::Borrowed(text));
    }
    is_named(text).then(|| Cow::Owned(format!("{HOST}v1beta/{text}")))
}

/// The type that a file's name ends with, of those that the image models read.
fn mime_of_name(uri: &str) -> Option<&'static str> {
    const TYPES: [(&str, &str); 8] = [
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("jpeg", "image/jpeg"),
        ("webp", "image/webp"),
        ("heic", "image/heic"),
        ("heif", "image/heif"),
        ("gif", "image/gif"),
        ("pdf", "application/pdf"),
    ];
    let (_, name) = uri.split(['?', '#']).next()?.rsplit_once('.')?;
    TYPES.iter().find(|(end, _)| name.eq_ignore_ascii_case(end)).map(|(_, mime)| *mime)
}

/// Parses a data URI.
pub(super) fn from_uri(text: &str) -> Result<InlineImage<'_>, ImageError> {
    let text = text.trim();
    let scheme = text.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:"));
    if scheme.is_none() {
        let is_address = text.split_once("://").is_some_and(|(scheme, _)| scheme.len() <= 8)
            || text.starts_with("//");
        return Err(if is_address { ImageError::Remote } else { ImageError::NotData });
    }
    let (head, data) = text[5..].split_once(',').ok_or(ImageError::NotData)?;
    let mut parameters = head.split(';').map(str::trim);
    let mime = parameters.next().unwrap_or_default();
    if !parameters.any(|parameter| parameter.eq_ignore_ascii_case("base64")) {
        return Err(ImageError::NotData);
    }
    typed(mime, standard(data).ok_or(ImageError::Base64)?)
}

/// Parses a data URI, or bare base64.
pub(super) fn from_text(text: &str) -> Result<InlineImage<'_>, ImageError> {
    match from_uri(text) {
        Err(ImageError::NotData) if !text.trim_start().starts_with("data:") => {
            typed("", standard(text).ok_or(ImageError::NotData)?)
        }
        other => other,
    }
}

fn typed<'a>(mime: &'a str, data: Cow<'a, str>) -> Result<InlineImage<'a>, ImageError> {
    if data.is_empty() {
        return Err(ImageError::Base64);
    }
    let mime = match mime_of(mime) {
        Some(mime) => mime,
        None => Cow::Borrowed(sniffed(&data).ok_or(ImageError::Type)?),
    };
    Ok(InlineImage { mime, data })
}

/// Spells a media type as Gemini does. `None` where it says nothing.
pub(super) fn mime_of(mime: &str) -> Option<Cow<'_, str>> {
    let mime = mime.split(';').next().unwrap_or_default().trim();
    if mime.is_empty() || mime.eq_ignore_ascii_case("application/octet-stream") {
        return None;
    }
    // A common misspelling, which Gemini refuses.
    if mime.eq_ignore_ascii_case("image/jpg") {
        return Some(Cow::Borrowed("image/jpeg"));
    }
    let is_lower = !mime.bytes().any(|b| b.is_ascii_uppercase());
    Some(if is_lower { Cow::Borrowed(mime) } else { Cow::Owned(mime.to_ascii_lowercase()) })
}

/// Recognises an image by its first base64 symbols.
pub(super) fn sniffed(data: &str) -> Option<&'static str> {
    const STARTS: [(&str, &str); 4] = [
        ("iVBORw0KGgo", "image/png"),
        ("/9j/", "image/jpeg"),
        ("R0lGOD", "image/gif"),
        ("UklGR", "image/webp"),
    ];
    STARTS.iter().find(|(start, _)| data.starts_with(start)).map(|(_, mime)| *mime)
}

/// Converts base64 to the standard alphabet with padding; borrows what is so already. Removes white
/// space and percent-encoding. `None` where it is not base64.
pub(super) fn standard(data: &str) -> Option<Cow<'_, str>> {
    let data = data.trim();
    let bytes = data.as_bytes();
    let pads = bytes.iter().rev().take_while(|b| **b == b'=').count();
    let is_symbol = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    if pads <= 2 && bytes.len() % 4 == 0 && bytes[..bytes.len() - pads].iter().all(is_symbol) {
        return Some(Cow::Borrowed(data));
    }
    let mut symbols = String::with_capacity(data.len() + 2);
    let (mut at, mut pads) = (0, 0);
    while let Some(&b) = bytes.get(at) {
        at += 1;
        let b = match b {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'-' => b'+',
            b'_' => b'/',
            b'%' => {
                let code =
                    data.get(at..at + 2).and_then(|code| u8::from_str_radix(code, 16).ok())?;
                at += 2;
                code
            }
            other => other,
        };
        if b == b'=' {
            pads += 1;
        } else if pads > 0 || !is_symbol(&b) {
            return None;
        } else {
            symbols.push(char::from(b));
        }
    }
    match (symbols.len() % 4, pads) {
        (1, _) | (_, 3..) => return None,
        (2, _) => symbols.push_str("=="),
        (3, _) => symbols.push('='),
        _ => {}
    }
    Some(Cow::Owned(symbols))
}

/// A segment of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Segment<'a> {
    Text(&'a str),
    Image(InlineImage<'a>),
}

/// Splits a text at the images that proxies write into it as Markdown
/// (`![…](data:image/png;base64,…)`); a text may also be one data URI. What only looks like an image
/// stays text.
pub(super) fn segments(text: &str) -> Vec<Segment<'_>> {
    let start = text.trim_start().get(..11).unwrap_or_default();
    if start.eq_ignore_ascii_case("data:image/") {
        if let Ok(image) = from_uri(text) {
            return vec![Segment::Image(image)];
        }
    }
    let mut segments = Vec::new();
    // Where the text begins that is in no segment yet, and where the search continues.
    let (mut from, mut at) = (0, 0);
    while let Some(found) = text[at..].find("](data:image/") {
        let close = at + found;
        at = close + 2;
        let Some(open) = text[from..close].rfind("![").map(|open| from + open) else { continue };
        // Neither alphabet has a parenthesis. A title may follow the address.
        let Some(end) = text[at..].find(')').map(|end| at + end) else { break };
        let uri = text[at..end].split([' ', '"']).next().unwrap_or_default();
        let Ok(image) = from_uri(uri) else { continue };
        if !text[from..open].trim().is_empty() {
            segments.push(Segment::Text(&text[from..open]));
        }
        segments.push(Segment::Image(image));
        from = end + 1;
        at = from;
    }
    if !text[from..].trim().is_empty() || segments.is_empty() {
        segments.push(Segment::Text(&text[from..]));
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_alphabets_become_the_standard_one() {
        for (given, expected) in [
            ("aGk=", "aGk="),
            ("aGk", "aGk="),
            ("-_-_", "+/+/"),
            ("-_8=", "+/8="),
            (" aG\nk= ", "aGk="),
            ("aGk%3D", "aGk="),
            ("%2B%2f8", "+/8="),
            ("", ""),
        ] {
            assert_eq!(standard(given).as_deref(), Some(expected), "{given}");
        }
        for bad in ["a", "aGk=a", "aGk*", "aGk===", "a%", "a%zz", "a\u{e4}"] {
            assert_eq!(standard(bad), None, "{bad}");
        }
        assert!(
            matches!(standard("QUJD"), Some(Cow::Borrowed(_))),
            "standard base64 is not copied"
        );
    }

    #[test]
    fn data_uris_in_every_spelling() {
        for (uri, mime) in [
            ("data:image/png;base64,QUJD", "image/png"),
            ("DATA:IMAGE/PNG;BASE64,QUJD", "image/png"),
            ("data:image/jpg;base64,QUJD", "image/jpeg"),
            ("data:image/webp;charset=utf-8;base64,QUJD", "image/webp"),
            ("data:;base64,/9j/4AAQ", "image/jpeg"),
            ("data:application/octet-stream;base64,iVBORw0KGgo=", "image/png"),
            ("data:;base64,UklGRggA", "image/webp"),
            ("data:;base64,R0lGODlh", "image/gif"),
        ] {
            assert_eq!(from_uri(uri).unwrap().mime, mime, "{uri}");
        }
        for (uri, fault) in [
            ("https://host/cat.png", ImageError::Remote),
            ("gs://bucket/cat.png", ImageError::Remote),
            ("//host/cat.png", ImageError::Remote),
            ("cat.png", ImageError::NotData),
            ("data:image/svg+xml,<svg/>", ImageError::NotData),
            ("data:image/png;base64", ImageError::NotData),
            ("data:image/png;base64,", ImageError::Base64),
            ("data:image/png;base64,Q", ImageError::Base64),
            ("data:image/png;base64,Q*==", ImageError::Base64),
            ("data:;base64,QUJD", ImageError::Type),
        ] {
            assert_eq!(from_uri(uri), Err(fault), "{uri}");
        }
        assert_eq!(from_text("iVBORw0KGgo=").unwrap().mime, "image/png");
    }

    #[test]
    fn markdown_is_split_at_its_images() {
        let image = |data: &'static str| {
            Segment::Image(InlineImage { mime: "image/png".into(), data: data.into() })
        };
        assert_eq!(segments("just text"), [Segment::Text("just text")]);
        assert_eq!(segments(""), [Segment::Text("")]);
        assert_eq!(segments("data:image/png;base64,QUJD"), [image("QUJD")]);
        assert_eq!(
            segments(
                "a ![b](data:image/png;base64,QUJD) c ![](data:image/png;base64,REVG \"title\")"
            ),
            [Segment::Text("a "), image("QUJD"), Segment::Text(" c "), image("REVG")]
        );
        for text in [
            "![a](data:image/png;base64,Q*)",
            "![a](data:image/png;base64,QUJD",
            "](data:image/png;base64,QUJD)",
            "![a](http://b)",
        ] {
            assert_eq!(segments(text), [Segment::Text(text)]);
        }
    }
}
