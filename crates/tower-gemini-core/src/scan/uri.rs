//! Images within strings: data URIs, and Markdown that shows one.
//!
//! Both are read as they pass, so that a picture of megabytes in a chat message is decoded and not
//! collected.

use super::answer::Image;
use super::base64::Decoder;
use super::error::ScanError;

const DATA: &[u8] = b"data:";
/// A URL longer than this is not a link to an image (browsers stop at 2 KiB or 8 KiB).
const MAX_URL: usize = 8 * 1024;
/// Alternative text longer than this means that the bracket was just a bracket.
const MAX_ALT: usize = 1024;

/// What a string holds, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    /// Plain text.
    Text(&'a [u8]),
    /// The alternative text of an image.
    Alt(&'a [u8]),
    /// The head of a data URI of this type: base64 follows.
    Begin(String),
    /// Base64.
    Base64(&'a [u8]),
    /// The base64 is complete.
    End,
    /// The address of an image elsewhere.
    Url(String),
}

/// Reads one string.
#[derive(Debug)]
pub(super) struct UriReader {
    state: UriState,
    head: Vec<u8>,
    /// Whether the string is Markdown; else all of it is one address.
    markdown: bool,
    /// Whether what turns out not to be an address is text.
    is_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UriState {
    Text,
    Bang,
    Alt(usize),
    Bracket,
    Address,
    /// Base64; `true` within Markdown's parentheses.
    Data(bool),
    /// A Markdown title, or an address too long.
    Rest,
}

impl UriReader {
    /// A string that is one address.
    pub(super) fn address() -> Self {
        Self { state: UriState::Address, head: Vec::new(), markdown: false, is_text: false }
    }

    /// An address whose `data:` has been read.
    pub(super) fn data_address() -> Self {
        Self { head: b"data:".to_vec(), ..Self::address() }
    }

    /// A string of Markdown, or with nothing but a data URI in it.
    pub(super) fn markdown() -> Self {
        Self { state: UriState::Address, head: Vec::new(), markdown: false, is_text: true }
    }

    /// Whether it is within what may be an image, so that it matters where the string ends.
    pub(super) fn is_open(&self) -> bool {
        match self.state {
            UriState::Text => false,
            UriState::Address => self.markdown || !self.head.is_empty(),
            UriState::Rest => self.markdown,
            _ => true,
        }
    }

    /// Reads the next bytes of the string, and says with what it met.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        found: &mut impl FnMut(Piece<'_>) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        while !bytes.is_empty() {
            let mut taken = 1;
            let b = bytes[0];
            match self.state {
                UriState::Text => {
                    let end = memchr::memchr(b'!', bytes);
                    taken = end.map_or(bytes.len(), |i| i + 1);
                    found(Piece::Text(&bytes[..end.unwrap_or(bytes.len())]))?;
                    if end.is_some() {
                        self.state = UriState::Bang;
                    }
                }
                UriState::Bang => {
                    if b == b'[' {
                        self.state = UriState::Alt(0);
                    } else {
                        found(Piece::Text(b"!"))?;
                        self.state = UriState::Text;
                        taken = 0;
                    }
                }
                UriState::Alt(n) => match b {
                    b']' => self.state = UriState::Bracket,
                    _ if n == MAX_ALT => {
                        self.state = UriState::Text;
                        taken = 0;
                    }
                    _ => {
                        found(Piece::Alt(&bytes[..1]))?;
                        self.state = UriState::Alt(n + 1);
                    }
                },
                UriState::Bracket => {
                    if b == b'(' {
                        self.head.clear();
                        self.state = UriState::Address;
                    } else {
                        self.state = UriState::Text;
                        taken = 0;
                    }
                }
                UriState::Address => {
                    let at = self.head.len();
                    // A text is one address only if it is a data URI.
                    let is_data = DATA.get(at).is_none_or(|expected| *expected == b);
                    if self.markdown && matches!(b, b')' | b' ' | b'\n' | b'"') {
                        self.hosted(found)?;
                        self.state = if b == b')' { UriState::Text } else { UriState::Rest };
                    } else if self.is_text && !self.markdown && (at == MAX_URL || !is_data) {
                        found(Piece::Text(&std::mem::take(&mut self.head)))?;
                        self.markdown = true;
                        self.state = UriState::Text;
                        taken = 0;
                    } else if at == MAX_URL {
                        self.state = UriState::Rest;
                    } else {
                        self.head.push(b);
                        let mime = if b == b',' { data_uri(&self.head) } else { None };
                        if let Some(mime) = mime {
                            self.state = UriState::Data(self.markdown);
                            found(Piece::Begin(mime))?;
                            self.head.clear();
                        }
                    }
                }
                UriState::Data(false) => {
                    found(Piece::Base64(bytes))?;
                    taken = bytes.len();
                }
                UriState::Data(true) => {
                    // The end can only be one of these: neither alphabet has them.
                    let end = memchr::memchr3(b')', b'"', b' ', bytes);
                    taken = end.map_or(bytes.len(), |i| i + 1);
                    found(Piece::Base64(&bytes[..end.unwrap_or(bytes.len())]))?;
                    if let Some(end) = end {
                        found(Piece::End)?;
                        self.state =
                            if bytes[end] == b')' { UriState::Text } else { UriState::Rest };
                    }
                }
                UriState::Rest => {
                    if b == b')' && self.markdown {
                        self.state = UriState::Text;
                    }
                }
            }
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The string ends.
    pub(super) fn finish(
        &mut self,
        found: &mut impl FnMut(Piece<'_>) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        match self.state {
            UriState::Bang => found(Piece::Text(b"!")),
            UriState::Address if self.is_text && !self.markdown => {
                found(Piece::Text(&std::mem::take(&mut self.head)))
            }
            UriState::Address if !self.markdown => self.hosted(found),
            // A Markdown image that is never closed is still one: some relays cut the parenthesis
            // off.
            UriState::Data(_) => found(Piece::End),
            _ => Ok(()),
        }
    }

    fn hosted(
        &mut self,
        found: &mut impl FnMut(Piece<'_>) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        let head = std::mem::take(&mut self.head);
        if head.is_empty()
            || head.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
        {
            return Ok(());
        }
        found(Piece::Url(String::from_utf8_lossy(&head).into_owned()))
    }
}

/// What a text holds, in order, as far as [`Finals`](super::Finals) needs it.
#[derive(Debug, Clone, PartialEq)]
pub enum TextPiece {
    /// Words: anything that is not blank.
    Words,
    /// An image that the text shows: a data URI in Markdown, or one that is all of the text.
    Image(Image),
    /// The address of an image, in Markdown.
    Address(String),
}

impl TextPiece {
    /// Reads a text as [`Scanner`](super::Scanner) does.
    ///
    /// ```
    /// use tower_gemini_core::scan::TextPiece;
    ///
    /// let pieces = TextPiece::all("A cat: ![](data:image/png;base64,Y2F0)");
    /// let [TextPiece::Words, TextPiece::Image(image)] = &pieces[..] else { panic!("{pieces:?}") };
    /// assert_eq!((&image.bytes[..], &*image.mime), (&b"cat"[..], "image/png"));
    /// ```
    #[must_use]
    pub fn all(text: &str) -> Vec<Self> {
        let (mut pieces, mut reader) = (Vec::new(), UriReader::markdown());
        let (mut image, mut base64, mut bytes) = (Image::default(), Decoder::default(), Vec::new());
        let mut found = |piece: Piece<'_>| {
            let mut take = |decoded: &[u8]| -> Result<(), ScanError> {
                bytes.extend_from_slice(decoded);
                Ok(())
            };
            match piece {
                Piece::Text(text) if !is_blank(text) => pieces.push(Self::Words),
                Piece::Url(url) if is_link(&url) => pieces.push(Self::Address(url)),
                Piece::Begin(mime) => image.mime = mime,
                Piece::Base64(piece) => base64.push(piece, &mut take)?,
                Piece::End => {
                    let is_good = std::mem::take(&mut base64).finish(&mut take)?;
                    let (mut image, bytes) =
                        (std::mem::take(&mut image), std::mem::take(&mut bytes));
                    if is_good && !bytes.is_empty() {
                        (image.len, image.bytes) = (bytes.len() as u64, bytes.into());
                        pieces.push(Self::Image(image));
                    }
                }
                _ => {}
            }
            Ok(())
        };
        // Nothing here fails.
        let _ = reader.push(text.as_bytes(), &mut found).and_then(|()| reader.finish(&mut found));
        pieces
    }
}

/// Whether an address in a text leads anywhere.
pub(super) fn is_link(url: &str) -> bool {
    url.starts_with("http")
}

/// Whether a text is no word between two images.
pub(super) fn is_blank(text: &[u8]) -> bool {
    text.trim_ascii().is_empty()
}

/// The type in `data:image/png;base64,`, where the head is of that kind.
fn data_uri(head: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(head).ok()?;
    let (scheme, rest) = head.split_at_checked(5)?;
    let parameters = rest.strip_suffix(";base64,").or_else(|| rest.strip_suffix(";BASE64,"))?;
    let mime = parameters.split(';').next().unwrap_or_default();
    (scheme.eq_ignore_ascii_case("data:") && super::paths::is_image(mime)).then(|| mime.to_owned())
}
