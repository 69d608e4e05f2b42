//! What is asked, in Gemini's words.

use std::borrow::Cow;
use std::convert::Infallible;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};
use tower_gemini::core::call::{ImageSize, split_model_suffix, strip_model_prefix};
use tower_gemini::core::catalog::{Catalog, Model};

use super::{Kind, OpenAiError, Reply, Translated};

type Outcome<T> = Result<T, OpenAiError>;

pub(super) async fn translate(kind: Kind, headers: &HeaderMap, body: &Bytes) -> Outcome<Translated> {
    let form = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).and_then(|kind| multer::parse_boundary(kind).ok());
    let asked = match form {
        Some(boundary) => form_of(body, boundary).await?,
        None => object_of(body)?,
    };
    match kind {
        Kind::Chat => chat(&asked),
        Kind::Generations | Kind::Edits => images(kind, &asked),
        Kind::Models => Err(OpenAiError::new("models are listed with GET")),
    }
}

fn object_of(body: &Bytes) -> Outcome<Map<String, Value>> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(asked)) => Ok(asked),
        Ok(_) => Err(OpenAiError::new("the body is JSON, but no object; a request is {\"model\": …}")),
        Err(error) => Err(OpenAiError::new(format!("the body is not the JSON of a request: {error}"))),
    }
}

/// A multipart form as the object it stands for: files become data URIs, in `image`.
async fn form_of(body: &Bytes, boundary: String) -> Outcome<Map<String, Value>> {
    let broken = |error: multer::Error| OpenAiError::new(format!("the form cannot be read: {error}"));
    let whole = body.clone();
    let once = futures_util::stream::once(async move { Ok::<_, Infallible>(whole) });
    let mut form = multer::Multipart::new(once, boundary);
    let (mut asked, mut files) = (Map::new(), Vec::new());
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().trim_end_matches("[]").to_owned();
        let mime = field.content_type().map(ToString::to_string);
        let is_file = field.file_name().is_some() || mime.is_some();
        let bytes = field.bytes().await.map_err(broken)?;
        if is_file {
            let mime = mime.filter(|mime| mime.starts_with("image/")).unwrap_or_else(|| sniffed(&bytes).to_owned());
            let uri = Value::from(format!("data:{mime};base64,{}", STANDARD.encode(&bytes)));
            if name == "image" { files.push(uri) } else { drop(asked.insert(name, uri)) }
        } else {
            asked.insert(name, String::from_utf8_lossy(&bytes).into_owned().into());
        }
    }
    if !files.is_empty() {
        asked.insert("image".to_owned(), files.into());
    }
    Ok(asked)
}

/// What an image's first bytes say it is.
fn sniffed(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xd8, ..] => "image/jpeg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => "image/png",
    }
}

fn chat(asked: &Map<String, Value>) -> Outcome<Translated> {
    let target = Target::of(asked)?;
    let messages = asked.get("messages").and_then(Value::as_array).filter(|messages| !messages.is_empty());
    let messages =
        messages.ok_or_else(|| OpenAiError::of("messages", "`messages` is missing or empty: there is nothing to draw"))?;
    if asked.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty()) {
        return Err(OpenAiError::of("tools", "image models call no tools; leave `tools` out"));
    }
    let (mut contents, mut system) = (Vec::new(), Vec::new());
    for message in messages {
        let parts = parts_of(message)?;
        match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => system.extend(parts),
            Some("assistant") => contents.push(json!({ "role": "model", "parts": parts })),
            Some("user") => contents.push(json!({ "role": "user", "parts": parts })),
            other => {
                return Err(OpenAiError::of(
                    "messages",
                    format!("a message's role is {}; it is system, user or assistant", shown(other)),
                ));
            }
        }
    }
    let stream = asked.get("stream").and_then(Value::as_bool).unwrap_or(false);
    let include_usage = asked.get("stream_options").and_then(|options| options.get("include_usage")).and_then(Value::as_bool);
    let mut body = Map::new();
    body.insert("contents".to_owned(), contents.into());
    if !system.is_empty() {
        body.insert("systemInstruction".to_owned(), json!({ "parts": system }));
    }
    body.insert("generationConfig".to_owned(), target.config(asked, false)?);
    Ok(target.translated(body, stream, Reply::chat(target.asked.clone(), include_usage.unwrap_or(false))))
}

fn images(kind: Kind, asked: &Map<String, Value>) -> Outcome<Translated> {
    let target = Target::of(asked)?;
    let prompt = asked.get("prompt").and_then(Value::as_str).filter(|prompt| !prompt.trim().is_empty());
    let prompt = prompt.ok_or_else(|| OpenAiError::of("prompt", "`prompt` is missing or empty: there is nothing to draw"))?;
    if asked.contains_key("mask") {
        return Err(OpenAiError::of("mask", "Gemini takes no mask; say in the prompt what is to change"));
    }
    if is_true(asked.get("stream")) {
        return Err(OpenAiError::of("stream", "images are not streamed here; chat/completions with \"stream\": true is"));
    }
    let mut parts = vec![json!({ "text": prompt })];
    if kind == Kind::Edits {
        let images: &[Value] = match asked.get("image").or_else(|| asked.get("images")) {
            Some(Value::Array(images)) => images,
            Some(image) => std::slice::from_ref(image),
            None => return Err(OpenAiError::of("image", "`image` is missing: there is nothing to edit")),
        };
        for image in images {
            let uri = image.as_str().or_else(|| image.get("image_url")?.as_str());
            parts.push(inline(uri.unwrap_or_default(), "image")?);
        }
    }
    let by_url = asked.get("response_format").and_then(Value::as_str) == Some("url");
    let mut body = Map::new();
    body.insert("contents".to_owned(), json!([{ "role": "user", "parts": parts }]));
    body.insert("generationConfig".to_owned(), target.config(asked, true)?);
    Ok(target.translated(body, false, Reply::images(by_url)))
}

/// The model asked for, and what its name says besides.
struct Target {
    /// As the caller spelled it.
    asked: String,
    id: String,
    known: Option<&'static Model>,
    size: Option<ImageSize>,
    ratio: Option<&'static str>,
}

impl Target {
    fn of(asked: &Map<String, Value>) -> Outcome<Self> {
        let name = asked.get("model").and_then(Value::as_str).map(str::trim).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| OpenAiError::of("model", "`model` is missing; gemini-3-pro-image is one"))?;
        if name.contains(['?', '#', '&', ' ']) || name.contains("..") || !name.is_ascii() {
            return Err(OpenAiError::of("model", "`model` holds characters that no model's name has"));
        }
        if number(asked.get("n"))?.is_some_and(|n| n != 1.0) {
            return Err(OpenAiError::of(
                "n",
                "Gemini's image models make one image a call; send as many calls as you want images, and leave `n` out",
            ));
        }
        let known = Catalog::builtin().lookup(name);
        let bare = strip_model_prefix(name);
        let (base, size, ratio) = split_model_suffix(bare);
        let id = known
            .map_or_else(|| if size.is_some() || ratio.is_some() { base } else { bare }.to_owned(), |model| model.id.clone());
        Ok(Self { asked: name.to_owned(), id, known, size, ratio })
    }

    fn translated(&self, body: Map<String, Value>, stream: bool, reply: Reply) -> Translated {
        let verb = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
        Translated {
            path_and_query: format!("/v1beta/models/{}:{verb}", self.id),
            body: Bytes::from(Value::Object(body).to_string()),
            reply,
        }
    }

    /// `generationConfig`. `only_image` says that no text is wanted beside it.
    fn config(&self, asked: &Map<String, Value>, only_image: bool) -> Outcome<Value> {
        let mut config = Map::new();
        for (theirs, ours) in [
            ("temperature", "temperature"),
            ("top_p", "topP"),
            ("max_completion_tokens", "maxOutputTokens"),
            ("max_tokens", "maxOutputTokens"),
            ("seed", "seed"),
            ("presence_penalty", "presencePenalty"),
            ("frequency_penalty", "frequencyPenalty"),
        ] {
            if let Some(value) = asked.get(theirs).filter(|value| value.is_number()) {
                config.entry(ours).or_insert_with(|| value.clone());
            }
        }
        match asked.get("stop") {
            Some(Value::String(stop)) => drop(config.insert("stopSequences".to_owned(), json!([stop]))),
            Some(stops @ Value::Array(_)) => drop(config.insert("stopSequences".to_owned(), stops.clone())),
            _ => {}
        }
        let makes_images =
            self.known.map_or_else(|| self.id.contains("image") || self.id.contains("banana"), |model| model.images);
        if makes_images || only_image {
            let modalities = match asked.get("modalities").and_then(Value::as_array) {
                Some(modalities) => modalities.iter().filter_map(Value::as_str).map(str::to_uppercase).collect(),
                None if only_image => vec!["IMAGE".to_owned()],
                None => vec!["TEXT".to_owned(), "IMAGE".to_owned()],
            };
            config.insert("responseModalities".to_owned(), json!(modalities));
            let image = self.image_config(asked)?;
            if !image.is_empty() {
                config.insert("imageConfig".to_owned(), image.into());
            }
        }
        // What the caller says in Gemini's own words wins over what was made of OpenAI's.
        let google = asked.get("extra_body").and_then(|extra| extra.get("google")).or_else(|| asked.get("google"));
        let own = google.and_then(|google| google.get("generation_config").or_else(|| google.get("generationConfig")));
        if let Some(Value::Object(own)) = own {
            config.extend(own.clone());
        }
        Ok(config.into())
    }

    fn image_config(&self, asked: &Map<String, Value>) -> Outcome<Map<String, Value>> {
        let own = asked.get("image_config").or_else(|| asked.get("imageConfig"));
        let text = |names: [&str; 2]| names.iter().find_map(|name| own?.get(name)?.as_str().map(str::to_owned));
        let top = |name: &str| asked.get(name).and_then(Value::as_str);
        let (mut size, mut ratio) = (self.size, self.ratio.map(str::to_owned));
        if let Some(text) = top("size").filter(|size| !matches!(*size, "" | "auto")) {
            let (asked_size, asked_ratio) = dimensions(text, self.known)?;
            size = Some(asked_size);
            ratio = asked_ratio.or(ratio);
        } else if size.is_none()
            && matches!(top("quality"), Some("high" | "hd"))
            && self.known.is_some_and(|model| model.makes(ImageSize::K2))
        {
            size = Some(ImageSize::K2);
        }
        if let Some(text) = text(["image_size", "imageSize"]).or_else(|| top("image_size").map(str::to_owned)) {
            size = Some(
                size_named(&text)
                    .ok_or_else(|| OpenAiError::of("image_size", format!("`{text}` is no size; it is 512, 1K, 2K or 4K")))?,
            );
        }
        ratio = text(["aspect_ratio", "aspectRatio"]).or_else(|| top("aspect_ratio").map(str::to_owned)).or(ratio);
        let mut config = Map::new();
        if let Some(ratio) = ratio {
            config.insert("aspectRatio".to_owned(), ratio.into());
        }
        // Some models have one size and answer 400 to being asked for it.
        if let Some(size) = size.filter(|_| self.known.is_none_or(|model| model.accepts_image_size)) {
            config.insert("imageSize".to_owned(), size.as_str().into());
        }
        Ok(config)
    }
}

fn size_named(text: &str) -> Option<ImageSize> {
    ImageSize::ALL.into_iter().find(|size| size.as_str().eq_ignore_ascii_case(text))
}

/// `1024x1024` or `2K`, as a size and, where it says one, a ratio that the model takes.
fn dimensions(text: &str, model: Option<&Model>) -> Outcome<(ImageSize, Option<String>)> {
    if let Some(size) = size_named(text) {
        return Ok((size, None));
    }
    let edges = text
        .split_once(['x', 'X', '×'])
        .and_then(|(w, h)| Some((w.trim().parse::<u32>().ok()?, h.trim().parse::<u32>().ok()?)));
    let (width, height) = edges
        .filter(|&(w, h)| w > 0 && h > 0 && w <= 16_384 && h <= 16_384)
        .ok_or_else(|| OpenAiError::of("size", format!("`{text}` is no size; it is 1024x1024, 2K, or \"auto\"")))?;
    // The nearest class by area, half-way in the logarithm: 1024 x 1536 is still of the 1K class.
    let edge = f64::from(width).mul_add(f64::from(height), 0.0).sqrt();
    let size = match edge {
        ..724.0 => ImageSize::Px512,
        ..1448.0 => ImageSize::K1,
        ..2896.0 => ImageSize::K2,
        _ => ImageSize::K4,
    };
    let size = model.and_then(|model| model.nearest_size(size)).unwrap_or(size);
    let divisor = gcd(width, height);
    let ratio = format!("{}:{}", width / divisor, height / divisor);
    let ratio = match model {
        Some(model) => model.nearest_ratio(&ratio).map(str::to_owned),
        None => Some(ratio),
    };
    Ok((size, ratio))
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A message's parts: its text, and the images in it.
fn parts_of(message: &Value) -> Outcome<Vec<Value>> {
    let mut parts = Vec::new();
    match message.get("content") {
        Some(Value::String(text)) => parts.extend(text_and_images(text)?),
        Some(Value::Array(content)) => {
            for part in content {
                match part.get("type").and_then(Value::as_str) {
                    Some("text" | "input_text" | "output_text") => {
                        parts.extend(text_and_images(part.get("text").and_then(Value::as_str).unwrap_or_default())?);
                    }
                    Some("image_url" | "input_image") => parts.push(image_part(part)?),
                    Some("refusal") => {}
                    other => {
                        return Err(OpenAiError::of(
                            "messages",
                            format!("a part of type {} is none that image models read; text and image_url are", shown(other)),
                        ));
                    }
                }
            }
        }
        _ => {}
    }
    for image in message.get("images").and_then(Value::as_array).into_iter().flatten() {
        parts.push(image_part(image)?);
    }
    Ok(parts)
}

/// An image of the caller's, or one that was drawn before, with the signature that it came with.
fn image_part(part: &Value) -> Outcome<Value> {
    let url = part.get("image_url").map(|url| url.get("url").unwrap_or(url)).and_then(Value::as_str).unwrap_or_default();
    let mut inline = inline(url, "messages")?;
    let signature = part
        .get("thought_signature")
        .or_else(|| part.get("extra_content")?.get("google")?.get("thought_signature"))
        .and_then(Value::as_str);
    if let Some(signature) = signature {
        inline["thoughtSignature"] = signature.into();
    }
    Ok(inline)
}

/// A text with the images that proxies write into it as Markdown.
fn text_and_images(text: &str) -> Outcome<Vec<Value>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("](data:image/") {
        let Some(end) = rest[start..].find(')') else { break };
        let open = rest[..start].rfind("![").unwrap_or(start);
        if !rest[..open].trim().is_empty() {
            parts.push(json!({ "text": rest[..open].trim_end() }));
        }
        parts.push(inline(&rest[start + 2..start + end], "messages")?);
        rest = &rest[start + end + 1..];
    }
    if !rest.trim().is_empty() {
        parts.push(json!({ "text": rest }));
    }
    Ok(parts)
}

/// A data URI as `inlineData`.
fn inline(uri: &str, param: &str) -> Outcome<Value> {
    let (head, data) = uri.strip_prefix("data:").and_then(|rest| rest.split_once(',')).ok_or_else(|| {
        let what = if uri.starts_with("http") { "an image by URL is not fetched here" } else { "an image is no data URI" };
        OpenAiError::of(param, format!("{what}; send it as data:image/png;base64,…"))
    })?;
    let mime = head.split(';').next().filter(|mime| !mime.is_empty()).unwrap_or("image/png");
    if !head.ends_with(";base64") {
        return Err(OpenAiError::of(param, "a data URI that is not base64; send it as data:image/png;base64,…"));
    }
    Ok(json!({ "inlineData": { "mimeType": mime, "data": standard(data) } }))
}

/// In the alphabet that every reader knows.
fn standard(data: &str) -> Cow<'_, str> {
    if data.contains(['-', '_']) { Cow::Owned(data.replace('-', "+").replace('_', "/")) } else { Cow::Borrowed(data) }
}

fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value == &Value::Bool(true) || value == "true")
}

/// A number, also where a form spells it as a text.
fn number(value: Option<&Value>) -> Outcome<Option<f64>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
            number.map(Some).ok_or_else(|| OpenAiError::of("n", "`n` is no number"))
        }
    }
}

fn shown(word: Option<&str>) -> String {
    word.map_or_else(|| "missing".to_owned(), |word| format!("\"{}\"", word.chars().take(40).collect::<String>()))
}
