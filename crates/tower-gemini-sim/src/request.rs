//! Reads what a request asks for, and checks whether Google would accept it. The simulator shares
//! no code with the layers that it tests: a shared mistake would be invisible.

use std::sync::LazyLock;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::api_error::ApiError;
use crate::dialect::{Api, Framing, Resource, Verb};
use crate::model::{Model, RATIOS, Ratio, Size, Tier};

/// What the path says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route {
    pub(crate) api: Api,
    pub(crate) verb: Verb,
    pub(crate) framing: Framing,
    /// Without prefixes; empty when the body names it.
    pub(crate) model: String,
    /// `v1beta` and the like.
    pub(crate) version: String,
    /// The verb as written, for the text of a 404.
    pub(crate) method: String,
    /// What kind of stored thing it is about, unless it is an interaction.
    pub(crate) resource: Option<Resource>,
    /// The stored thing that it is about; empty for all of them.
    pub(crate) id: String,
    /// The event behind which an interaction's stream is wanted.
    pub(crate) after: Option<String>,
    /// Whether only the id is waited for.
    pub(crate) background: bool,
    /// Whether the interaction is not to be stored.
    pub(crate) unstored: bool,
}

impl Route {
    /// Reads the path from the right, because gateways put anything before it. `None` is a path
    /// that the front end does not know.
    pub(crate) fn parse(method: &Method, uri: &Uri) -> Option<Self> {
        let path = percent_decode_str(uri.path()).decode_utf8_lossy();
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let version = segments
            .iter()
            .find(|segment| matches!(**segment, "v1" | "v1beta" | "v1alpha" | "v1beta1"))
            .unwrap_or(&"v1beta");
        let (before, last) = match segments.as_slice() {
            [] => return None,
            [last] => ("", *last),
            [.., before, last] => (*before, *last),
        };
        let stored = |verb, name: &str, id: &str| Self {
            api: Api::Interactions,
            verb,
            framing: match query(uri, "stream") {
                Some("true") => Framing::Sse,
                _ => Framing::Whole,
            },
            version: (*version).to_owned(),
            method: name.to_owned(),
            id: id.to_owned(),
            after: query(uri, "last_event_id").map(decoded),
            ..Self::default()
        };
        let resource = match segments.iter().position(|segment| *segment == "openai") {
            Some(at) => Self::of_openai_batch(method, uri, &segments[at + 1..], version),
            None => Self::of_resource(method, uri, (before, last), version),
        };
        if resource.is_some() {
            return resource;
        }
        match (method, before, last.split_once(':')) {
            (&Method::GET, _, None) if last == "models" => {
                let version = (*version).to_owned();
                let method = "listModels".to_owned();
                return Some(Self { verb: Verb::List, version, method, ..Self::default() });
            }
            (&Method::GET, "interactions", None) => {
                return Some(stored(Verb::Fetch, "getInteraction", last));
            }
            (&Method::POST, "interactions", Some((id, "cancel"))) => {
                return Some(stored(Verb::Cancel, "cancelInteraction", id));
            }
            (&Method::POST, ..) => {}
            _ => return None,
        }
        let by_body = match (before, last) {
            ("chat", "completions") => Some((Api::OpenAiChat, "chatCompletions")),
            ("images", "generations") => Some((Api::OpenAiImages, "imageGenerations")),
            (_, "interactions") => Some((Api::Interactions, "createInteraction")),
            _ => None,
        };
        let version = (*version).to_owned();
        if let Some((api, method)) = by_body {
            let method = method.to_owned();
            return Some(Self { api, verb: Verb::Generate, version, method, ..Self::default() });
        }
        let (model, method) = last.split_once(':')?;
        if !matches!(before, "models" | "tunedModels" | "endpoints" | "dynamic") || model.is_empty()
        {
            return None;
        }
        let on_vertex = segments.iter().any(|name| matches!(*name, "publishers" | "projects"));
        let (verb, framing) = match method {
            "generateContent" => (Verb::Generate, Framing::Whole),
            "streamGenerateContent" if query(uri, "alt") == Some("sse") => {
                (Verb::Generate, Framing::Sse)
            }
            "streamGenerateContent" => (Verb::Generate, Framing::Array),
            "countTokens" => (Verb::Count, Framing::Whole),
            "predict" => (Verb::Predict, Framing::Whole),
            _ => (Verb::Other, Framing::Whole),
        };
        Some(Self {
            api: if on_vertex { Api::Vertex } else { Api::Developer },
            verb,
            framing,
            model: model.to_owned(),
            version,
            method: method.to_owned(),
            ..Self::default()
        })
    }

    /// Reads the path of something that is stored: `batches`, `files` and `webhooks`, with an id
    /// and a verb behind its colon or without.
    fn of_resource(
        method: &Method,
        uri: &Uri,
        (before, last): (&str, &str),
        version: &str,
    ) -> Option<Self> {
        let is_upload = query(uri, "upload_id").is_some();
        let (name, verb) = last.split_once(':').unwrap_or((last, ""));
        let (resource, verb, model, id) = match (method, before, name, verb) {
            (&Method::POST, "models", model, "batchGenerateContent") => {
                (Resource::Batches, Verb::Create, model, "")
            }
            (&Method::POST, "openai", "batches", "") => (Resource::Batches, Verb::Create, "", ""),
            (&Method::GET, _, "batches", "") => (Resource::Batches, Verb::List, "", ""),
            (&Method::GET, "batches", id, "") => (Resource::Batches, Verb::Fetch, "", id),
            (&Method::POST, "batches", id, "cancel") => (Resource::Batches, Verb::Cancel, "", id),
            (&Method::DELETE, "batches", id, "") => (Resource::Batches, Verb::Delete, "", id),
            (&Method::POST | &Method::PUT, _, "files", "") if is_upload => {
                (Resource::Uploads, Verb::Other, "", query(uri, "upload_id").unwrap_or_default())
            }
            (&Method::POST, _, "files", "") => (Resource::Files, Verb::Create, "", ""),
            (&Method::GET, _, "files", "") => (Resource::Files, Verb::List, "", ""),
            (&Method::GET, "files", id, "") => (Resource::Files, Verb::Fetch, "", id),
            (&Method::GET, "files", id, "download") => (Resource::Files, Verb::Download, "", id),
            (&Method::DELETE, "files", id, "") => (Resource::Files, Verb::Delete, "", id),
            (&Method::POST, _, "webhooks", "") => (Resource::Webhooks, Verb::Create, "", ""),
            (&Method::GET, _, "webhooks", "") => (Resource::Webhooks, Verb::List, "", ""),
            (&Method::GET, "webhooks", id, "") => (Resource::Webhooks, Verb::Fetch, "", id),
            (&Method::DELETE, "webhooks", id, "") => (Resource::Webhooks, Verb::Delete, "", id),
            _ => return None,
        };
        let makes_batch = (resource, verb) == (Resource::Batches, Verb::Create);
        let method = if makes_batch { "batchGenerateContent" } else { before };
        Some(Self {
            resource: Some(resource),
            verb,
            model: model.to_owned(),
            id: id.to_owned(),
            version: version.to_owned(),
            method: method.to_owned(),
            ..Self::default()
        })
    }

    /// Reads what is behind `openai/`, of which only batches are stored. Their ids are names, so
    /// `batches` is there twice.
    fn of_openai_batch(method: &Method, uri: &Uri, rest: &[&str], version: &str) -> Option<Self> {
        let cancel = |id: &str| format!("{id}:cancel");
        let route = match rest {
            ["batches"] => Self::of_resource(method, uri, ("openai", "batches"), version),
            ["batches", id] | ["batches", "batches", id] if *method == Method::GET => {
                Self::of_resource(method, uri, ("batches", id), version)
            }
            ["batches", id, "cancel"] | ["batches", "batches", id, "cancel"] => {
                Self::of_resource(method, uri, ("batches", &cancel(id)), version)
            }
            _ => None,
        };
        route.map(|route| Self { api: Api::OpenAiChat, ..route })
    }

    pub(crate) fn makes_batch(&self) -> bool {
        self.resource == Some(Resource::Batches) && self.verb == Verb::Create
    }

    /// Whether it starts nothing: it is about what is stored.
    pub(crate) fn is_fetch(&self) -> bool {
        let is_stored = self.resource.is_some() || matches!(self.verb, Verb::Fetch | Verb::Cancel);
        is_stored && !self.makes_batch()
    }

    /// Reads from the body what such a path leaves to it: the model, and whether to stream.
    pub(crate) fn read_body(&mut self, body: &Value) {
        if self.model.is_empty() {
            let name = text(body, "model").unwrap_or_default();
            self.model = name.rsplit('/').next().unwrap_or(name).to_owned();
        }
        let streams = body.get("stream").and_then(Value::as_bool) == Some(true);
        if streams && matches!(self.api, Api::OpenAiChat | Api::Interactions) {
            self.framing = Framing::Sse;
        }
        let says = |name: &str, word| body.get(name).and_then(Value::as_bool) == Some(word);
        self.background = self.api == Api::Interactions && says("background", true);
        self.unstored = says("store", false);
    }
}

/// A value in a query, without its escapes.
pub(crate) fn decoded(value: &str) -> String {
    percent_decode_str(value).decode_utf8_lossy().into_owned()
}

pub(crate) fn query<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Who asks: with a key, a token, both or neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) key: Option<String>,
    pub(crate) bearer: Option<String>,
}

impl Credentials {
    pub(crate) fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let owned = |secret: &str| (!secret.is_empty()).then(|| secret.to_owned());
        let bearer = text("authorization").and_then(|value| {
            value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer "))
        });
        let key = text("x-goog-api-key").or_else(|| query(uri, "key"));
        Self { key: key.and_then(owned), bearer: bearer.and_then(owned) }
    }

    /// The secret, where there is one and not two.
    pub(crate) fn secret(&self) -> &str {
        match (&self.key, &self.bearer) {
            (Some(secret), None) | (None, Some(secret)) => secret,
            _ => "",
        }
    }
}

/// `X-Server-Timeout`, in seconds: SDKs send it when the caller configured a timeout.
pub(crate) fn server_timeout(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get("x-server-timeout")?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// What the body says, after everything that could be wrong with it was checked.
#[derive(Debug, Clone)]
pub(crate) struct ImageRequest {
    pub(crate) prompt: String,
    pub(crate) input_images: u64,
    pub(crate) size: Size,
    pub(crate) ratio: &'static Ratio,
    pub(crate) count: u64,
    pub(crate) tier: Tier,
}

impl ImageRequest {
    /// About four characters a token (ai.google.dev "Token counting", 2026-09).
    pub(crate) fn prompt_text_tokens(&self) -> u64 {
        (self.prompt.chars().count() as u64).div_ceil(4).max(1)
    }
}

/// A field under its camelCase name or its proto name: proto3 JSON takes both everywhere.
pub(crate) fn field<'a>(value: &'a Value, camel: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .iter()
        .find(|(name, _)| is_named(name, camel))
        .map(|(_, value)| value)
        .filter(|value| !value.is_null())
}

/// Whether `name` is `camel`, or the same words with underscores. Without allocating: it is asked
/// for every field of every request.
fn is_named(name: &str, camel: &str) -> bool {
    if name == camel {
        return true;
    }
    let mut letters = name.bytes();
    camel.bytes().all(|wanted| {
        if wanted.is_ascii_uppercase() {
            letters.next() == Some(b'_') && letters.next() == Some(wanted.to_ascii_lowercase())
        } else {
            letters.next() == Some(wanted)
        }
    }) && letters.next().is_none()
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

pub(crate) fn json(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::invalid(format!(
            "Invalid JSON payload received. Unexpected token.\n{}\n^",
            String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
        ))
        .because(format!("line {} column {}", error.line(), error.column()))
    })
}

/// Checks a body as the server does and reads what it asks for.
pub(crate) fn check(
    api: Api,
    verb: Verb,
    model: &Model,
    body: &Value,
) -> Result<ImageRequest, ApiError> {
    let asked = match (api, verb) {
        (Api::OpenAiChat, _) => check_chat(model, body),
        (Api::OpenAiImages, _) => check_images(model, body),
        (Api::Interactions, _) => check_interaction(model, body),
        (_, Verb::Predict) => check_predict(model, body),
        _ => check_generate(api, model, body),
    }?;
    let tier = field(body, "serviceTier").and_then(Value::as_str).unwrap_or_default();
    Ok(ImageRequest { tier: Tier::parse(tier), ..asked })
}

/// Names, split once: they are asked for with every field of every request.
type Names = LazyLock<Vec<&'static str>>;

static TOP_LEVEL: Names = LazyLock::new(|| {
    "contents systemInstruction tools toolConfig safetySettings generationConfig cachedContent \
     model labels serviceTier generateContentRequest"
        .split(' ')
        .collect()
});
static GENERATION_CONFIG: Names = LazyLock::new(|| {
    "stopSequences responseMimeType responseSchema responseJsonSchema responseModalities \
     candidateCount maxOutputTokens temperature topP topK seed presencePenalty frequencyPenalty \
     responseLogprobs logprobs enableEnhancedCivicAnswers speechConfig thinkingConfig imageConfig \
     responseFormat mediaResolution audioTimestamp"
        .split(' ')
        .collect()
});
const IMAGE_CONFIG: &[&str] = &["aspectRatio", "imageSize"];
/// Members that only Vertex takes (python-genai 2.19 raises before sending them to the Developer
/// API).
static IMAGE_CONFIG_VERTEX: Names = LazyLock::new(|| {
    "personGeneration prominentPeople outputMimeType compressionQuality imageOutputOptions"
        .split(' ')
        .collect()
});

/// Refuses fields that are in none of the lists of names.
fn unknown_fields(value: &Value, at: &str, known: &[&str], also: &[&str]) -> Result<(), ApiError> {
    let known = |name: &str| known.iter().chain(also).any(|camel| is_named(name, camel));
    match value.as_object().and_then(|object| object.keys().find(|name| !known(name))) {
        Some(name) => Err(ApiError::unknown_field(name, at)),
        None => Ok(()),
    }
}

fn check_generate(api: Api, model: &Model, body: &Value) -> Result<ImageRequest, ApiError> {
    unknown_fields(body, "", &TOP_LEVEL, &[])?;
    let config = field(body, "generationConfig").unwrap_or(&Value::Null);
    unknown_fields(config, "generation_config", &GENERATION_CONFIG, &[])?;
    let image_config = field(config, "imageConfig").unwrap_or(&Value::Null);
    let vertex_only: &[&str] = if api == Api::Vertex { &IMAGE_CONFIG_VERTEX } else { &[] };
    unknown_fields(image_config, "generation_config.image_config", IMAGE_CONFIG, vertex_only)?;

    let contents = match field(body, "contents") {
        Some(Value::Array(contents)) if !contents.is_empty() => contents.as_slice(),
        Some(object @ Value::Object(_)) => std::slice::from_ref(object),
        _ => return Err(no_contents()),
    };
    if field(config, "candidateCount").and_then(Value::as_u64).is_some_and(|count| count > 1)
        && model.makes_images()
    {
        return Err(ApiError::invalid("Multiple candidates is not enabled for this model"));
    }
    let mut prompt = String::new();
    let mut input_images = 0;
    for (turn, content) in contents.iter().enumerate() {
        let of_model = text(content, "role") == Some("model");
        let parts = match content.get("parts") {
            Some(Value::Array(parts)) if !parts.is_empty() => parts.as_slice(),
            Some(object @ Value::Object(_)) => std::slice::from_ref(object),
            _ if of_model => &[],
            _ => {
                return Err(ApiError::invalid(format!(
                    "* GenerateContentRequest.contents[{turn}].parts: contents.parts must not be \
                     empty.\n"
                )));
            }
        };
        for (index, part) in parts.iter().enumerate() {
            if let Some(text) = text(part, "text") {
                if text.is_empty() && !of_model {
                    return Err(no_data(turn, index));
                }
                if !of_model {
                    prompt.push_str(text);
                }
            }
            if field(part, "inlineData").is_some() || field(part, "fileData").is_some() {
                input_images += 1;
                // A draft has no signature, and Google's SDKs send the whole turn back, drafts and
                // all.
                let draft = part.get("thought").and_then(Value::as_bool) == Some(true);
                if of_model && model.thinks() && !draft {
                    check_signature(api, field(part, "thoughtSignature"), turn, index)?;
                }
            }
        }
    }
    if prompt.is_empty() && input_images == 0 {
        return Err(no_data(0, 0));
    }
    if input_images > MAX_REFERENCE_IMAGES && model.makes_images() {
        return Err(ApiError::invalid(format!(
            "Too many input images: at most {MAX_REFERENCE_IMAGES} are supported."
        )));
    }

    let mut wanted = SizeAndRatio::default();
    wanted.read(image_config);
    if let Some(format) = field(config, "responseFormat") {
        if model.makes_images() && !model.takes_size {
            return Err(ApiError::unknown_field("responseFormat", "generation_config"));
        }
        let entries = format.as_array().map_or(std::slice::from_ref(format), Vec::as_slice);
        if let Some(image) = entries.iter().find_map(|entry| entry.get("image")) {
            wanted.read(image);
        }
    }
    let level = field(config, "thinkingConfig").and_then(|config| field(config, "thinkingLevel"));
    if let Some(level) = level.and_then(Value::as_str) {
        let known = || model.thinking_levels.iter().map(String::as_str);
        if known().next().is_some() && !known().any(|known| known.eq_ignore_ascii_case(level)) {
            return Err(ApiError::one_of("thinking_config.thinking_level", known()));
        }
    }
    wanted.settle(model, prompt, input_images, 1)
}

fn no_contents() -> ApiError {
    ApiError::invalid("* GenerateContentRequest.contents: contents is not specified\n")
}

fn no_data(turn: usize, part: usize) -> ApiError {
    ApiError::invalid(format!(
        "* GenerateContentRequest.contents[{turn}].parts[{part}].data: required oneof field 'data' \
         must have one initialized field\n"
    ))
}

/// ai.google.dev "Image generation", 2026-07.
const MAX_REFERENCE_IMAGES: u64 = 14;

/// Signatures made by the simulator begin with one of these, because they are bound to the backend
/// that made them.
pub(crate) fn signature_prefix(api: Api) -> [u8; 6] {
    if api == Api::Vertex { *b"simVtx" } else { *b"simDev" }
}

/// The two sentinels that the documentation offers for histories made elsewhere.
const SENTINELS: [&str; 2] =
    ["skip_thought_signature_validator", "context_engineering_is_the_way_to_go"];

fn check_signature(
    api: Api,
    signature: Option<&Value>,
    turn: usize,
    part: usize,
) -> Result<(), ApiError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    let Some(signature) = signature.and_then(Value::as_str).filter(|text| !text.is_empty()) else {
        return Err(ApiError::invalid(format!(
            "Image part is missing a thought_signature in content position {}, part position {}.",
            turn + 1,
            part + 1
        )));
    };
    if SENTINELS.contains(&signature) {
        return Ok(());
    }
    let decoded = STANDARD.decode(signature).or_else(|_| URL_SAFE.decode(signature));
    let of_this_backend = decoded.is_ok_and(|bytes| {
        SENTINELS.iter().any(|sentinel| bytes == sentinel.as_bytes())
            || !bytes.starts_with(b"sim")
            || bytes.starts_with(&signature_prefix(api))
    });
    if of_this_backend {
        return Ok(());
    }
    Err(ApiError::invalid(if api == Api::Vertex {
        "Unable to submit request because Thought signature is not valid.. Learn more: \
         https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/gemini"
    } else {
        "Invalid thought signature."
    }))
}

/// Size and ratio as the request spells them.
#[derive(Debug, Default)]
struct SizeAndRatio {
    size: Option<String>,
    ratio: Option<String>,
}

impl SizeAndRatio {
    fn read(&mut self, image: &Value) {
        let text = |name| field(image, name).and_then(Value::as_str).map(str::to_owned);
        self.size = text("imageSize").or(self.size.take());
        self.ratio = text("aspectRatio").or(self.ratio.take());
    }

    fn settle(
        self,
        model: &Model,
        prompt: impl Into<String>,
        input_images: u64,
        count: u64,
    ) -> Result<ImageRequest, ApiError> {
        if !model.makes_images() && self.ratio.is_some() {
            return Err(ApiError::invalid("Aspect ratio is not enabled for this model"));
        }
        let size = match &self.size {
            None => Size::K1,
            Some(_) if !model.takes_size => {
                return Err(ApiError::invalid("Image size is not enabled for this model"));
            }
            Some(text) => {
                let known = &model.image_tokens;
                let wrong = || {
                    ApiError::one_of("image_config.image_size", known.keys().map(|k| k.as_str()))
                };
                Size::parse(text).filter(|size| known.contains_key(size)).ok_or_else(wrong)?
            }
        };
        let ratio = match &self.ratio {
            None => &RATIOS[0],
            Some(text) => {
                let word = text.strip_prefix("ASPECT_RATIO_");
                let is_asked = |ratio: &&Ratio| ratio.name == text || Some(ratio.word) == word;
                let names = || model.ratios().map(|ratio| ratio.name);
                let wrong = || ApiError::one_of("image_config.aspect_ratio", names());
                model.ratios().find(is_asked).ok_or_else(wrong)?
            }
        };
        let tier = Tier::Standard;
        Ok(ImageRequest { prompt: prompt.into(), input_images, size, ratio, count, tier })
    }
}

fn check_predict(model: &Model, body: &Value) -> Result<ImageRequest, ApiError> {
    let prompt = body
        .pointer("/instances/0/prompt")
        .and_then(Value::as_str)
        .filter(|prompt| !prompt.is_empty())
        .ok_or_else(|| {
            ApiError::invalid(
                "Image generation failed with the following error: The prompt is empty.",
            )
        })?;
    let parameters = body.get("parameters").unwrap_or(&Value::Null);
    // The cookbook writes "1k", the SDKs "1K": both worked.
    let size = text(parameters, "sampleImageSize").map(str::to_ascii_uppercase);
    let ratio = text(parameters, "aspectRatio").map(str::to_owned);
    let wanted = SizeAndRatio { size, ratio };
    let count = parameters.get("sampleCount").and_then(Value::as_u64).unwrap_or(1);
    if !(1..=4).contains(&count) {
        return Err(ApiError::invalid("sampleCount must be between 1 and 4, inclusive."));
    }
    wanted.settle(model, prompt, 0, count)
}

/// Sizes of OpenAI's form: `4K` as it is, or the class of the longer side of `4096x4096`.
fn size_of_openai(body: &Value) -> Option<String> {
    let text = body.get("size").or_else(|| body.get("image_size"))?.as_str()?;
    let Some((width, height)) = text.split_once('x') else {
        return (text != "auto").then(|| text.to_owned());
    };
    let longer = width.parse::<u32>().ok()?.max(height.parse().ok()?);
    let size = match longer {
        0..=700 => Size::Px512,
        701..=1600 => Size::K1,
        1601..=3200 => Size::K2,
        _ => Size::K4,
    };
    Some(size.as_str().to_owned())
}

/// Joins the texts, and counts the images, of contents that are a text or a list of parts.
fn prompt_of<'a>(
    contents: impl IntoIterator<Item = Option<&'a Value>>,
    is_image: impl Fn(&Value) -> bool,
) -> (String, u64) {
    let (mut prompt, mut images) = (String::new(), 0);
    for content in contents.into_iter().flatten() {
        prompt.push_str(content.as_str().unwrap_or(""));
        for part in content.as_array().into_iter().flatten() {
            prompt.push_str(text(part, "text").unwrap_or(""));
            images += u64::from(is_image(part));
        }
    }
    (prompt, images)
}

fn check_chat(model: &Model, body: &Value) -> Result<ImageRequest, ApiError> {
    let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let contents = messages.iter().map(|message| message.get("content"));
    let (prompt, input_images) = prompt_of(contents, |part| part.get("image_url").is_some());
    if prompt.is_empty() && input_images == 0 {
        return Err(no_contents());
    }
    let mut wanted =
        SizeAndRatio { size: size_of_openai(body).filter(|_| model.takes_size), ratio: None };
    for place in ["/image_config", "/extra_body/google/image_config", "/extra_body/image_config"] {
        wanted.read(body.pointer(place).unwrap_or(&Value::Null));
    }
    wanted.settle(model, prompt, input_images, 1)
}

fn check_images(model: &Model, body: &Value) -> Result<ImageRequest, ApiError> {
    let prompt = text(body, "prompt")
        .filter(|prompt| !prompt.is_empty())
        .ok_or_else(|| ApiError::invalid("Invalid value at 'prompt': prompt is required."))?;
    let wanted = SizeAndRatio {
        size: size_of_openai(body).filter(|_| model.takes_size),
        ratio: text(body, "aspect_ratio").map(str::to_owned),
    };
    let count = body.get("n").and_then(Value::as_u64).unwrap_or(1).clamp(1, 4);
    wanted.settle(model, prompt, 0, count)
}

fn check_interaction(model: &Model, body: &Value) -> Result<ImageRequest, ApiError> {
    let (prompt, input_images) =
        prompt_of([body.get("input")], |part| text(part, "type") == Some("image"));
    if prompt.is_empty() && input_images == 0 {
        return Err(ApiError::invalid("The value at 'input' is required."));
    }
    let mut wanted = SizeAndRatio::default();
    for place in [
        "/generation_config/image_config",
        "/response_format",
        "/response_format/image",
        "/response_format/0",
    ] {
        wanted.read(body.pointer(place).unwrap_or(&Value::Null));
    }
    wanted.settle(model, prompt, input_images, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known;

    fn route(uri: &str) -> Option<Route> {
        Route::parse(&Method::POST, &uri.parse().unwrap())
    }

    #[test]
    fn what_is_stored_is_named_by_its_path() {
        for (method, uri, resource, verb, id) in [
            (
                Method::POST,
                "/v1beta/models/m:batchGenerateContent",
                Resource::Batches,
                Verb::Create,
                "",
            ),
            (Method::GET, "/any/v1beta/batches?pageSize=2", Resource::Batches, Verb::List, ""),
            (Method::GET, "/v1beta/batches/b", Resource::Batches, Verb::Fetch, "b"),
            (Method::POST, "/v1beta/batches/b%3Acancel", Resource::Batches, Verb::Cancel, "b"),
            (Method::POST, "/upload/v1beta/files", Resource::Files, Verb::Create, ""),
            (Method::POST, "/upload/v1beta/files?upload_id=u", Resource::Uploads, Verb::Other, "u"),
            (
                Method::GET,
                "/download/v1beta/files/batch-b:download?alt=media",
                Resource::Files,
                Verb::Download,
                "batch-b",
            ),
            (Method::DELETE, "/v1beta/webhooks/w", Resource::Webhooks, Verb::Delete, "w"),
        ] {
            let route = Route::parse(&method, &uri.parse().unwrap()).unwrap();
            assert_eq!(
                (route.resource, route.verb, route.id.as_str()),
                (Some(resource), verb, id),
                "{uri}"
            );
            assert_eq!(route.is_fetch(), route.model.is_empty(), "{uri}");
        }
    }

    #[test]
    fn openais_batches_are_named_with_or_without_their_collection_and_its_files_are_not_there() {
        let parse =
            |method: Method, path: &str| Route::parse(&method, &path.parse::<Uri>().unwrap());
        for (method, path, verb, id) in [
            (Method::POST, "", Verb::Create, ""),
            (Method::GET, "?limit=2&after=batches%2Fb", Verb::List, ""),
            (Method::GET, "/b", Verb::Fetch, "b"),
            (Method::GET, "/batches%2Fb", Verb::Fetch, "b"),
            (Method::GET, "/batches/b", Verb::Fetch, "b"),
            (Method::POST, "/b/cancel", Verb::Cancel, "b"),
            (Method::POST, "/batches%2Fb/cancel", Verb::Cancel, "b"),
        ] {
            let route = parse(method, &format!("/any/v1beta/openai/batches{path}")).unwrap();
            let found = (route.api, route.resource, route.verb, route.id.as_str());
            assert_eq!(found, (Api::OpenAiChat, Some(Resource::Batches), verb, id), "{path}");
            assert_eq!(route.is_fetch(), verb != Verb::Create, "{path}");
        }
        for (method, path) in [
            (Method::POST, "files"),
            (Method::GET, "files/f/content"),
            (Method::DELETE, "batches/b"),
            (Method::POST, "batches/b"),
        ] {
            assert!(parse(method, &format!("/v1beta/openai/{path}")).is_none(), "{path}");
        }
    }

    #[test]
    fn paths_are_read_from_the_right() {
        for (uri, api, framing) in [
            ("https://g.example/v1beta/models/m:generateContent", Api::Developer, Framing::Whole),
            (
                "/any/prefix/v1/models/m:streamGenerateContent?alt=sse&key=k",
                Api::Developer,
                Framing::Sse,
            ),
            ("/v1alpha/models/m:streamGenerateContent", Api::Developer, Framing::Array),
            ("/v1beta/models/m%3AgenerateContent", Api::Developer, Framing::Whole),
            (
                "/v1beta1/projects/p/locations/l/publishers/google/models/m:generateContent",
                Api::Vertex,
                Framing::Whole,
            ),
            (
                "/v1beta1/publishers/google/models/m:streamGenerateContent?alt=sse",
                Api::Vertex,
                Framing::Sse,
            ),
        ] {
            let route = route(uri).unwrap();
            assert_eq!(
                (route.api, route.framing, route.model.as_str()),
                (api, framing, "m"),
                "{uri}"
            );
        }
        assert_eq!(route("/v1beta/openai/chat/completions").unwrap().api, Api::OpenAiChat);
        assert_eq!(route("/v1/images/generations").unwrap().api, Api::OpenAiImages);
        assert_eq!(route("/v1beta/interactions").unwrap().api, Api::Interactions);
        assert!(route("/v1beta/models").is_none());
        assert!(
            Route::parse(&Method::GET, &"/v1beta/models/m:generateContent".parse().unwrap())
                .is_none()
        );
        let list = Route::parse(&Method::GET, &"/v1beta/models?pageSize=9".parse().unwrap());
        assert_eq!(list.map(|route| route.verb), Some(Verb::List));
    }

    fn asked(model: &str, body: &Value) -> Result<ImageRequest, ApiError> {
        check(Api::Developer, Verb::Generate, known(model).unwrap(), body)
    }

    fn with_image_config(config: Value) -> Value {
        serde_json::json!({ "contents": [{ "parts": [{ "text": "a cat" }] }], "generationConfig": { "imageConfig": config } })
    }

    #[test]
    fn both_spellings_of_a_field_mean_the_same() {
        let snake = serde_json::json!({ "contents": [{ "parts": [{ "text": "a cat" }] }],
            "generation_config": { "image_config": { "image_size": "2K", "aspect_ratio": "16:9" } } });
        let camel =
            with_image_config(serde_json::json!({ "imageSize": "2K", "aspectRatio": "16:9" }));
        for body in [snake, camel] {
            let asked = asked("gemini-3-pro-image", &body).unwrap();
            assert_eq!((asked.size, asked.ratio.name), (Size::K2, "16:9"));
        }
    }

    #[test]
    fn response_format_is_taken_as_object_and_as_list_of_enums() {
        for format in [
            serde_json::json!({ "image": { "imageSize": "4K", "aspectRatio": "21:9" } }),
            serde_json::json!([{ "image": { "imageSize": "IMAGE_SIZE_FOUR_K", "aspectRatio": "ASPECT_RATIO_TWENTY_ONE_BY_NINE" } }]),
        ] {
            let body = serde_json::json!({ "contents": [{ "parts": [{ "text": "a cat" }] }],
                "generationConfig": { "responseFormat": format } });
            let asked = asked("gemini-3-pro-image", &body).unwrap();
            assert_eq!((asked.size, asked.ratio.name), (Size::K4, "21:9"));
        }
    }

    #[test]
    fn a_wrong_image_option_is_refused_with_its_text() {
        for (model, config, text) in [
            (
                "gemini-3-pro-image",
                serde_json::json!({ "imageSize": "2k" }),
                "image_size must be one of '1K', '2K', or '4K'.",
            ),
            (
                "gemini-3-pro-image",
                serde_json::json!({ "imageSize": "512" }),
                "image_size must be one of",
            ),
            (
                "gemini-2.5-flash-image",
                serde_json::json!({ "imageSize": "1K" }),
                "not enabled for this model",
            ),
            (
                "gemini-3-pro-image",
                serde_json::json!({ "aspectRatio": "1:8" }),
                "aspect_ratio must be one of '1:1', '2:3'",
            ),
            ("gemini-3.1-flash-image", serde_json::json!({ "aspectRatio": "7:3" }), "'1:8', '2:3'"),
            (
                "gemini-3-pro-image",
                serde_json::json!({ "outputMimeType": "image/png" }),
                "Unknown name \"outputMimeType\"",
            ),
            (
                "gemini-3-pro-image",
                serde_json::json!({ "image_resolution": "2K" }),
                "Unknown name \"image_resolution\"",
            ),
        ] {
            let refused = asked(model, &with_image_config(config)).unwrap_err();
            assert!(refused.message.contains(text), "{}", refused.message);
        }
        let misplaced = serde_json::json!({ "contents": [{ "parts": [{ "text": "a" }] }], "generationConfig": { "aspectRatio": "1:1" } });
        assert!(
            asked("gemini-3-pro-image", &misplaced)
                .unwrap_err()
                .message
                .contains("at 'generation_config': Cannot find field.")
        );
    }

    #[test]
    fn nano_banana_2_1_takes_its_own_sizes_ratios_and_thinking_levels() {
        let model = "gemini-nano-banana-2.1";
        for size in ["1K", "2K", "4K"] {
            for ratio in ["1:1", "21:9", "1:4", "4:1", "1:8", "8:1"] {
                let config = serde_json::json!({ "imageSize": size, "aspectRatio": ratio });
                let asked = asked(model, &with_image_config(config)).unwrap();
                assert_eq!((asked.size.as_str(), asked.ratio.name), (size, ratio));
            }
        }
        let too_small = with_image_config(serde_json::json!({ "imageSize": "512" }));
        let refused = asked(model, &too_small).unwrap_err();
        assert_eq!(refused.http, 400);
        assert!(refused.message.contains("must be one of '1K', '2K', or '4K'."));

        let thinking = |level: &str| {
            serde_json::json!({ "contents": [{ "parts": [{ "text": "a cat" }] }],
                "generationConfig": { "thinkingConfig": { "thinkingLevel": level } } })
        };
        for level in ["minimal", "MEDIUM", "high"] {
            assert!(asked(model, &thinking(level)).is_ok(), "{level}");
        }
        assert_eq!(asked(model, &thinking("low")).unwrap_err().http, 400);
        assert!(asked("gemini-3.1-flash-image", &thinking("medium")).is_err());
        assert!(asked("gemini-3-pro-image", &thinking("low")).is_ok(), "its levels are not known");
    }

    #[test]
    fn a_history_without_signatures_is_refused_where_the_first_one_lacks() {
        let history = |signature: Option<&str>| {
            let mut part =
                serde_json::json!({ "inlineData": { "mimeType": "image/png", "data": "AAAA" } });
            if let Some(signature) = signature {
                part["thoughtSignature"] = signature.into();
            }
            serde_json::json!({ "contents": [{ "role": "user", "parts": [{ "text": "a cat" }] }, { "role": "model", "parts": [part] },
                { "role": "user", "parts": [{ "text": "with a hat" }] }] })
        };
        let missing = asked("gemini-3-pro-image", &history(None)).unwrap_err();
        assert_eq!(
            missing.message,
            "Image part is missing a thought_signature in content position 2, part position 1."
        );
        assert!(asked("gemini-2.5-flash-image", &history(None)).is_ok());
        assert!(
            asked("gemini-3-pro-image", &history(Some("skip_thought_signature_validator"))).is_ok()
        );
        // base64 of "simDev…" and "simVtx…"
        assert!(asked("gemini-3-pro-image", &history(Some("c2ltRGV2AAAA"))).is_ok());
        assert!(
            asked("gemini-3-pro-image", &history(Some("c2ltVnR4AAAA")))
                .unwrap_err()
                .message
                .contains("Invalid thought signature")
        );
    }

    #[test]
    fn drafts_sent_back_need_no_signature_and_the_image_after_them_does() {
        let history = |signature: Option<&str>| {
            let mut image =
                serde_json::json!({ "inlineData": { "mimeType": "image/png", "data": "AAAA" } });
            let mut draft = image.clone();
            draft["thought"] = true.into();
            if let Some(signature) = signature {
                image["thoughtSignature"] = signature.into();
            }
            serde_json::json!({ "contents": [{ "role": "user", "parts": [{ "text": "a cat" }] },
                { "role": "model", "parts": [draft.clone(), draft, image] }, { "role": "user", "parts": [{ "text": "with a hat" }] }] })
        };
        assert!(asked("gemini-3-pro-image", &history(Some("c2ltRGV2AAAA"))).is_ok());
        let missing = asked("gemini-3-pro-image", &history(None)).unwrap_err();
        assert_eq!(
            missing.message,
            "Image part is missing a thought_signature in content position 2, part position 3."
        );
    }

    #[test]
    fn a_request_without_a_prompt_is_refused() {
        for body in [
            serde_json::json!({}),
            serde_json::json!({ "contents": [] }),
            serde_json::json!({ "contents": [{ "parts": [] }] }),
            serde_json::json!({ "contents": [{ "parts": [{ "text": "" }] }] }),
        ] {
            assert!(asked("gemini-3-pro-image", &body).is_err(), "{body}");
        }
    }

    #[test]
    fn two_credentials_are_one_too_many() {
        let mut headers = HeaderMap::new();
        let uri: Uri = "/v1beta/models/m:generateContent?key=k1".parse().unwrap();
        let key = Credentials { key: Some("k1".into()), bearer: None };
        assert_eq!(Credentials::of(&uri, &headers), key);
        headers.insert("authorization", "Bearer t".parse().unwrap());
        let both = Credentials::of(&uri, &headers);
        assert_eq!(both, Credentials { bearer: Some("t".into()), ..key });
        assert_eq!(both.secret(), "");
    }
}
