//! Reads a request's body, in any dialect.
//!
//! All dialects share one reader: the members that matter have different names in each, proxies mix
//! the dialects, and the server rejects a member that its dialect does not know.

use std::borrow::Cow;

use super::ServiceTier;
use crate::json::{Cursor, Kind};
use crate::size::{ImageSize, parse_aspect, parse_size};

const FORMAT: usize = 0;
const CONFIG: usize = 1;
const PIXELS: usize = 2;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    pub(super) model: Option<Cow<'a, str>>,
    pub(super) size: Option<ImageSize>,
    /// The ratios asked for in `responseFormat`, in `imageConfig` or elsewhere, and by a size in
    /// pixels: the first that is there counts.
    aspects: [Option<Cow<'static, str>>; 3],
    /// Whether the modalities asked for include an image; `None` where none are named.
    pub(super) modalities: Option<bool>,
    /// Whether an image format is asked for, which means the same where no modalities are named.
    pub(super) image_format: bool,
    pub(super) candidate_count: Option<u32>,
    pub(super) sample_count: Option<u32>,
    pub(super) n: Option<u32>,
    pub(super) stream: bool,
    pub(super) multi_turn: bool,
    pub(super) continuation: bool,
    pub(super) tier: ServiceTier,
    pub(super) input_images: u64,
    pub(super) other_files: bool,
    pub(super) text_bytes: u64,
}

impl<'a> Body<'a> {
    /// Returns the ratio asked for.
    pub(super) fn aspect(&mut self) -> Option<Cow<'static, str>> {
        self.aspects.iter_mut().find_map(Option::take)
    }

    pub(super) fn from_json(bytes: &'a [u8]) -> Self {
        let mut body = Self::default();
        body.request(&mut Cursor::new(bytes), 2);
        body
    }

    /// The whole request, and `extra_body` objects inside it (`"extra_body": {"google": {…}}`).
    fn request(&mut self, c: &mut Cursor<'a>, deeper: u8) {
        c.object(|c, key| match key {
            b"contents" | b"messages" | b"input" => c.each(|c| self.turn(c, 4)),
            b"systemInstruction" => self.turn(c, 4),
            b"model" => self.model = name(c).filter(|name| !name.is_empty()),
            b"modalities" | b"responseModalities" => self.modalities(c),
            b"generationConfig" => self.options(c, true),
            b"imageConfig" | b"parameters" => self.options(c, false),
            b"responseFormat" => self.response_format(c),
            b"size" | b"imageSize" | b"imageResolution" | b"image_resolution" | b"resolution" => {
                self.size(c)
            }
            b"aspectRatio" => self.aspects[CONFIG] = aspect(c),
            b"n" => self.n = c.count(),
            b"stream" => self.stream = c.is_true(),
            b"prompt" => self.prompt(c),
            b"image" | b"images" => c.each(|c| {
                self.input_images += 1;
                c.skip();
            }),
            b"instances" => c.each(|c| self.instance(c)),
            b"continuationToken" | b"previousInteractionId" => {
                self.continuation |= c.text().is_some_and(|text| !text.is_empty())
            }
            b"serviceTier" => self.tier = ServiceTier::named(&name(c).unwrap_or_default()),
            b"extraBody" | b"google" if deeper > 0 => self.request(c, deeper - 1),
            _ => c.skip(),
        });
    }

    /// `generationConfig`, `imageConfig`, or the `parameters` of `predict`.
    fn options(&mut self, c: &mut Cursor<'a>, is_outer: bool) {
        c.object(|c, key| match key {
            b"responseModalities" => self.modalities(c),
            b"imageConfig" if is_outer => self.options(c, false),
            b"responseFormat" if is_outer => self.response_format(c),
            b"candidateCount" => self.candidate_count = c.count(),
            b"sampleCount" => self.sample_count = c.count(),
            b"aspectRatio" => self.aspects[CONFIG] = aspect(c),
            b"size" | b"imageSize" | b"sampleImageSize" => self.size(c),
            _ => c.skip(),
        });
    }

    fn modalities(&mut self, c: &mut Cursor<'a>) {
        c.each(|c| {
            let image = match c.kind() {
                Kind::Text => c.text().map(|text| text.is("IMAGE")),
                // `Modality.IMAGE` is 2 in both protos. `null` is no number and leaves the choice
                // to the server.
                Kind::Other => c.count().map(|modality| modality == 2),
                Kind::Object | Kind::Array => return c.skip(),
            };
            if let Some(image) = image {
                self.modalities = Some(image || self.modalities == Some(true));
            }
        });
    }

    /// `responseFormat` is an object in the Gemini API's documentation and a list in that of Vertex
    /// AI; in the Interactions API its entries carry a `type` instead of being named. In the OpenAI
    /// dialects it is something else, and mostly a string.
    fn response_format(&mut self, c: &mut Cursor<'a>) {
        c.each(|c| {
            c.object(|c, key| match key {
                b"image" => {
                    self.image_format |= c.kind() == Kind::Object;
                    c.object(|c, key| self.format_option(c, key));
                }
                b"type" => self.image_format |= c.text().is_some_and(|text| text.is("image")),
                _ => self.format_option(c, key),
            });
        });
    }

    fn format_option(&mut self, c: &mut Cursor<'a>, key: &[u8]) {
        match key {
            b"imageSize" | b"size" => self.size(c),
            b"aspectRatio" => self.aspects[FORMAT] = aspect(c),
            _ => c.skip(),
        }
    }

    fn size(&mut self, c: &mut Cursor<'a>) {
        if let Kind::Other = c.kind() {
            self.note_size(&c.count().map(|edge| edge.to_string()).unwrap_or_default());
        } else if let Some(name) = name(c) {
            self.note_size(&name);
        }
    }

    /// Takes the larger one of two sizes (requests with both spellings at once are seen): the size
    /// sets time limits and the upper end of the cost.
    fn note_size(&mut self, name: &str) {
        if let Some((size, ratio)) = parse_size(name) {
            self.size = self.size.max(Some(size));
            self.aspects[PIXELS] = ratio.map(Cow::Borrowed).or(self.aspects[PIXELS].take());
        }
    }

    fn prompt(&mut self, c: &mut Cursor<'a>) {
        self.text_bytes += c.text().map_or(0, |text| text.len() as u64);
    }

    /// A turn, or a part of one: Gemini's `{role, parts}`, OpenAI's `{role, content}`, the
    /// Interactions API's bare parts, and a bare string.
    fn turn(&mut self, c: &mut Cursor<'a>, deeper: u8) {
        if c.kind() == Kind::Text {
            return self.prompt(c);
        }
        if deeper == 0 {
            return c.skip();
        }
        let (mut is_image, mut is_file, mut has_data) = (false, false, false);
        c.object(|c, key| match key {
            b"role" => {
                self.multi_turn |=
                    c.text().is_some_and(|role| role.is("model") || role.is("assistant"))
            }
            b"parts" | b"content" => c.each(|c| self.turn(c, deeper - 1)),
            b"text" => self.prompt(c),
            b"inlineData" | b"fileData" => self.blob(c),
            b"imageUrl" => {
                self.input_images += u64::from(matches!(c.kind(), Kind::Text | Kind::Object));
                c.skip();
            }
            b"type" => {
                let kind = c.text();
                let is = |word| kind.is_some_and(|kind| kind.is(word));
                is_image = is("image");
                is_file =
                    is("audio") || is("video") || is("document") || is("file") || is("input_audio");
                self.multi_turn |= is("model_output") || is("thought");
            }
            b"data" | b"uri" | b"source" => {
                has_data = c.kind() != Kind::Other;
                c.skip();
            }
            // LiteLLM and OpenRouter add this to a message of the assistant.
            b"images" => c.each(|c| self.turn(c, deeper - 1)),
            _ => c.skip(),
        });
        self.input_images += u64::from(is_image && has_data);
        self.other_files |= is_file;
    }

    /// `inlineData` and `fileData`. One without a type is taken for an image, as almost all are.
    fn blob(&mut self, c: &mut Cursor<'a>) {
        if c.kind() != Kind::Object {
            return c.skip();
        }
        let mut is_image = true;
        c.object(|c, key| match key {
            b"mimeType" => is_image = c.text().is_none_or(|mime| mime.starts_with("image/")),
            _ => c.skip(),
        });
        if is_image {
            self.input_images += 1;
        } else {
            self.other_files = true;
        }
    }

    fn instance(&mut self, c: &mut Cursor<'a>) {
        c.object(|c, key| match key {
            b"prompt" => self.prompt(c),
            b"image" | b"referenceImages" => c.each(|c| {
                self.input_images += u64::from(c.kind() == Kind::Object);
                c.skip();
            }),
            _ => c.skip(),
        });
    }

    /// The form of `images/edits`. Only the heads of its parts and short values are looked at; a
    /// picture is passed over at the speed of a substring search.
    pub(super) fn from_form(bytes: &'a [u8], boundary: &str) -> Self {
        // No client of this endpoint sends more than a mask, 16 pictures and a dozen fields.
        const MOST_PARTS: usize = 64;
        const LONGEST_HEAD: usize = 2048;
        let mut body = Self::default();
        if boundary.is_empty() {
            return body;
        }
        let delimiter = format!("--{boundary}");
        let finder = memchr::memmem::Finder::new(delimiter.as_bytes());
        let mut rest = bytes;
        for _ in 0..MOST_PARTS {
            let Some(part) = finder.find(rest).and_then(|at| rest.get(at + delimiter.len()..))
            else {
                break;
            };
            let end = finder.find(part).unwrap_or(part.len());
            rest = part.get(end..).unwrap_or_default();
            let part = part.get(..end).unwrap_or_default();
            let window = part.get(..LONGEST_HEAD.min(part.len())).unwrap_or_default();
            let Some(gap) = memchr::memmem::find(window, b"\r\n\r\n") else { continue };
            let (Some(head), Some(value)) = (part.get(..gap), part.get(gap + 4..)) else {
                continue;
            };
            let value = value.strip_suffix(b"\r\n").unwrap_or(value);
            if let Some(name) = std::str::from_utf8(head).ok().and_then(form_name) {
                body.form_field(name, value);
            }
        }
        body
    }

    fn form_field(&mut self, name: &str, value: &'a [u8]) {
        match name {
            "prompt" => self.text_bytes += value.len() as u64,
            "image" | "image[]" | "images" | "images[]" => self.input_images += 1,
            _ => {
                let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= 1024);
                let Some(value) = text.map(str::trim) else { return };
                match name {
                    "model" if !value.is_empty() => self.model = Some(Cow::Borrowed(value)),
                    "size" | "image_size" | "imageSize" | "image_resolution" | "resolution" => {
                        self.note_size(value);
                    }
                    "aspect_ratio" | "aspectRatio" => self.aspects[CONFIG] = parse_aspect(value),
                    "n" => self.n = value.parse().ok(),
                    "stream" => self.stream = value.eq_ignore_ascii_case("true"),
                    _ => {}
                }
            }
        }
    }
}

/// Returns the name of a form's part from its `Content-Disposition`.
fn form_name(head: &str) -> Option<&str> {
    let name = "content-disposition:";
    let is_disposition =
        |line: &&str| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    parameter(head.lines().find(is_disposition)?, "name")
}

/// Returns the `boundary` of a `multipart/form-data` content type.
pub(super) fn form_boundary(content_type: &str) -> Option<&str> {
    let kind = content_type.split(';').next()?;
    let is_form = kind.trim().eq_ignore_ascii_case("multipart/form-data");
    parameter(content_type, "boundary").filter(|_| is_form)
}

/// Returns a parameter of a header: `…; name="value"`.
fn parameter<'h>(header: &'h str, wanted: &str) -> Option<&'h str> {
    header.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"'))
    })
}

fn name<'a>(c: &mut Cursor<'a>) -> Option<Cow<'a, str>> {
    c.text()?.name()
}

/// A ratio, or a list of one.
fn aspect(c: &mut Cursor<'_>) -> Option<Cow<'static, str>> {
    let mut first = None;
    c.each(|c| {
        let named = name(c);
        first = first.take().or_else(|| parse_aspect(&named?));
    });
    first
}
