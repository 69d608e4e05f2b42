//! Images within texts: data URIs, Markdown around them, and the two alphabets of base64.

use std::borrow::Cow;

use super::json::{Json, object};

/// An image as it stands in a request of Gemini's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blob<'a> {
    pub(super) mime: Cow<'a, str>,
    /// Base64 of the standard alphabet, padded.
    pub(super) data: Cow<'a, str>,
}

impl<'a> Blob<'a> {
    pub(super) fn into_part(self, signature: Option<&'a str>) -> Json<'a> {
        let inline = object([("mimeType", self.mime.into()), ("data", self.data.into())]);
        match signature {
            Some(signature) => {
                object([("inlineData", inline), ("thoughtSignature", signature.into())])
            }
            None => object([("inlineData", inline)]),
        }
    }
}

/// Why a text is not an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// An address elsewhere.
    Remote,
    /// No data URI, or one without base64.
    NotData,
    /// Not base64, or nothing at all.
    Base64,
    /// Neither its type is stated, nor do its first bytes tell.
    Type,
}

impl Fault {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Remote => {
                "is an address, and this gateway fetches nothing; send the image itself as a data URI (`data:image/png;base64,…`)"
            }
            Self::NotData => "is not a data URI of base64 (`data:image/png;base64,…`)",
            Self::Base64 => "is not valid base64",
            Self::Type => {
                "does not say what type of image it is; begin it with `data:image/png;base64,`"
            }
        }
    }
}

/// The image in a data URI.
pub(super) fn of_uri(text: &str) -> Result<Blob<'_>, Fault> {
    let text = text.trim();
    let scheme = text.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:"));
    if scheme.is_none() {
        let is_address = text.split_once("://").is_some_and(|(scheme, _)| scheme.len() <= 8)
            || text.starts_with("//");
        return Err(if is_address { Fault::Remote } else { Fault::NotData });
    }
    let (head, data) = text[5..].split_once(',').ok_or(Fault::NotData)?;
    let mut parameters = head.split(';').map(str::trim);
    let mime = parameters.next().unwrap_or_default();
    if !parameters.any(|parameter| parameter.eq_ignore_ascii_case("base64")) {
        return Err(Fault::NotData);
    }
    typed(mime, standard(data).ok_or(Fault::Base64)?)
}

/// The image in a data URI, or in base64 without one.
pub(super) fn of_text(text: &str) -> Result<Blob<'_>, Fault> {
    match of_uri(text) {
        Err(Fault::NotData) if !text.trim_start().starts_with("data:") => {
            typed("", standard(text).ok_or(Fault::NotData)?)
        }
        other => other,
    }
}

fn typed<'a>(mime: &'a str, data: Cow<'a, str>) -> Result<Blob<'a>, Fault> {
    if data.is_empty() {
        return Err(Fault::Base64);
    }
    let mime = match mime_of(mime) {
        Some(mime) => mime,
        None => Cow::Borrowed(sniffed(&data).ok_or(Fault::Type)?),
    };
    Ok(Blob { mime, data })
}

/// A type as Gemini spells it. `None` for one that says nothing.
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

/// What base64's first symbols say an image is.
pub(super) fn sniffed(data: &str) -> Option<&'static str> {
    const STARTS: [(&str, &str); 4] = [
        ("iVBORw0KGgo", "image/png"),
        ("/9j/", "image/jpeg"),
        ("R0lGOD", "image/gif"),
        ("UklGR", "image/webp"),
    ];
    STARTS.iter().find(|(start, _)| data.starts_with(start)).map(|(_, mime)| *mime)
}

/// Base64 in the standard alphabet with its padding; borrowed where it is so already. Blanks, line
/// breaks and percent-encoding are undone. `None` for what is no base64.
pub(super) fn standard(data: &str) -> Option<Cow<'_, str>> {
    let data = data.trim();
    let bytes = data.as_bytes();
    let pads = bytes.iter().rev().take_while(|b| **b == b'=').count();
    let is_symbol = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    if pads <= 2
        && bytes.len().is_multiple_of(4)
        && bytes[..bytes.len() - pads].iter().all(is_symbol)
    {
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

/// A piece of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    Image(Blob<'a>),
}

/// A text with the images that proxies write into it as Markdown (`![…](data:image/png;base64,…)`),
/// or that is nothing but a data URI. What only looks like an image stays text.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    if text.trim_start().get(..11).is_some_and(|start| start.eq_ignore_ascii_case("data:image/"))
        && let Ok(blob) = of_uri(text)
    {
        return vec![Piece::Image(blob)];
    }
    let mut pieces = Vec::new();
    // Where the text begins that has not been handed on, and where the search goes on.
    let (mut from, mut at) = (0, 0);
    while let Some(found) = text[at..].find("](data:image/") {
        let close = at + found;
        at = close + 2;
        let Some(open) = text[from..close].rfind("![").map(|open| from + open) else { continue };
        // Neither alphabet has a parenthesis. A title may stand behind the address.
        let Some(end) = text[at..].find(')').map(|end| at + end) else { break };
        let uri = text[at..end].split([' ', '"']).next().unwrap_or_default();
        let Ok(blob) = of_uri(uri) else { continue };
        if !text[from..open].trim().is_empty() {
            pieces.push(Piece::Text(&text[from..open]));
        }
        pieces.push(Piece::Image(blob));
        from = end + 1;
        at = from;
    }
    if !text[from..].trim().is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(&text[from..]));
    }
    pieces
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
        assert!(matches!(standard("QUJD"), Some(Cow::Borrowed(_))), "what is right is not copied");
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
            assert_eq!(of_uri(uri).unwrap().mime, mime, "{uri}");
        }
        for (uri, fault) in [
            ("https://host/cat.png", Fault::Remote),
            ("gs://bucket/cat.png", Fault::Remote),
            ("//host/cat.png", Fault::Remote),
            ("cat.png", Fault::NotData),
            ("data:image/svg+xml,<svg/>", Fault::NotData),
            ("data:image/png;base64", Fault::NotData),
            ("data:image/png;base64,", Fault::Base64),
            ("data:image/png;base64,Q", Fault::Base64),
            ("data:image/png;base64,Q*==", Fault::Base64),
            ("data:;base64,QUJD", Fault::Type),
        ] {
            assert_eq!(of_uri(uri), Err(fault), "{uri}");
        }
        assert_eq!(of_text("iVBORw0KGgo=").unwrap().mime, "image/png");
    }

    #[test]
    fn markdown_is_taken_apart() {
        let image =
            |data: &'static str| Piece::Image(Blob { mime: "image/png".into(), data: data.into() });
        assert_eq!(pieces("just text"), [Piece::Text("just text")]);
        assert_eq!(pieces(""), [Piece::Text("")]);
        assert_eq!(pieces("data:image/png;base64,QUJD"), [image("QUJD")]);
        assert_eq!(
            pieces(
                "a ![b](data:image/png;base64,QUJD) c ![](data:image/png;base64,REVG \"title\")"
            ),
            [Piece::Text("a "), image("QUJD"), Piece::Text(" c "), image("REVG")]
        );
        for text in [
            "![a](data:image/png;base64,Q*)",
            "![a](data:image/png;base64,QUJD",
            "](data:image/png;base64,QUJD)",
            "![a](http://b)",
        ] {
            assert_eq!(pieces(text), [Piece::Text(text)]);
        }
    }
}
