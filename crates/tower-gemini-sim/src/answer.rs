//! Makes responses with status 200: their content, their cost, and their form in each dialect.

use std::sync::Arc;

use bytes::Bytes;

use crate::api_error::mid_stream;
use crate::dialect::{Api, Framing, Verb};
use crate::fault::{Fault, Shape};
use crate::hash::{hash64, mix};
use crate::image::{Picture, PictureCache, PictureKey};
use crate::json::{Json, obj};
use crate::ledger::Bill;
use crate::model::{Family, Model, Price, Size};
use crate::request::{ImageRequest, Route, signature_prefix};

/// Which pictures are drawn and how responses carry them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// Pictures of 8 to 64 pixels and signatures of some bytes, so that an answer is a few
    /// kilobytes.
    pub tiny: bool,
    /// Different pictures for each size and ratio. Prompts share them.
    pub variants: u64,
    /// The arrangement of a complete response, unless a fault has another.
    pub shape: Shape,
    /// Bytes of a thought signature before base64. By default 0.8 to 2.2 MB, of which base64 makes
    /// the 1.10, 1.50 and 2.91 MB of three recorded answers of gemini-3-pro-image (pydantic-ai's
    /// test recordings, 2026); 48 when tiny.
    pub signature_bytes: Option<usize>,
    /// Whether drafts cost tokens. Google's documentation says no; a reseller measured 1120 tokens
    /// a draft.
    pub drafts_charged: bool,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            tiny: false,
            variants: 4,
            shape: Shape::DOCUMENTED,
            signature_bytes: None,
            drafts_charged: false,
        }
    }
}

impl ImageOptions {
    /// Small pictures and signatures, for quick tests.
    pub fn tiny() -> Self {
        Self { tiny: true, variants: 64, ..Self::default() }
    }
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_text: u64,
    pub(crate) prompt_image: u64,
    pub(crate) thoughts: u64,
    pub(crate) text: u64,
    pub(crate) image: u64,
}

impl Usage {
    pub(crate) fn input(&self) -> u64 {
        self.prompt_text + self.prompt_image
    }

    pub(crate) fn bill(&self, price: Price) -> Bill {
        let (input, text) = (self.input(), self.thoughts + self.text);
        Bill {
            cost_microusd: price.of(input, text, self.image),
            input_tokens: input,
            text_tokens: text,
            image_tokens: self.image,
        }
    }

    fn details(text: u64, image: u64) -> Json {
        let entry =
            |modality: &'static str, count: u64| obj! { "modality": modality, "tokenCount": count };
        let mut details = Vec::new();
        if text > 0 {
            details.push(entry("TEXT", text));
        }
        if image > 0 {
            details.push(entry("IMAGE", image));
        }
        details.into()
    }

    fn json(&self, api: Api) -> Json {
        let candidates = self.text + self.image;
        let mut fields = vec![("promptTokenCount", Json::Num(self.input()))];
        if candidates > 0 {
            fields.push(("candidatesTokenCount", candidates.into()));
        }
        fields.push(("totalTokenCount", (self.input() + candidates + self.thoughts).into()));
        fields.push(("promptTokensDetails", Self::details(self.prompt_text, self.prompt_image)));
        if self.image > 0 {
            // The details leave the text out, as recorded answers do.
            fields.push(("candidatesTokensDetails", Self::details(0, self.image)));
        }
        if self.thoughts > 0 {
            fields.push(("thoughtsTokenCount", self.thoughts.into()));
        }
        if api == Api::Vertex {
            fields.push(("trafficType", "ON_DEMAND".into()));
        }
        Json::Obj(fields)
    }

    fn openai(&self) -> Json {
        let completion = self.text + self.image + self.thoughts;
        obj! { "completion_tokens": completion, "prompt_tokens": self.input(), "total_tokens": completion + self.input() }
    }
}

#[derive(Debug, Clone)]
enum Part {
    Text { text: String, signature: Option<Bytes> },
    Empty,
    Image { picture: Arc<Picture>, thought: bool, signature: Option<Bytes>, is_final: bool },
}

/// How the answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    Good,
    RawError,
    ErrorEvent,
    NoFinish,
}

/// A response before it is serialized.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    parts: Vec<Part>,
    finish: Option<&'static str>,
    finish_message: Option<&'static str>,
    block: Option<(&'static str, Option<&'static str>)>,
    tail: Tail,
    shape: Shape,
    error_instead: bool,
    /// What `usageMetadata` says.
    pub(crate) usage: Usage,
    /// The model finished.
    pub(crate) generated: bool,
    /// It is charged.
    pub(crate) charged: bool,
}

impl Content {
    /// Returns the picture that a reader should choose, if the response holds it.
    pub(crate) fn final_picture(&self) -> Option<&Arc<Picture>> {
        if self.error_instead || self.tail != Tail::Good {
            return None;
        }
        self.parts.iter().find_map(|part| match part {
            Part::Image { picture, is_final: true, .. } => Some(picture),
            _ => None,
        })
    }
}

/// Everything that a response is made of.
#[derive(Debug)]
pub(crate) struct Generator<'a> {
    pub(crate) pictures: &'a PictureCache,
    pub(crate) options: &'a ImageOptions,
    pub(crate) seed: u64,
    pub(crate) number: usize,
    pub(crate) route: &'a Route,
    pub(crate) model: &'static Model,
    pub(crate) asked: &'a ImageRequest,
    pub(crate) blocked_prompts_charge: bool,
}

const CAPTION: &str = "Here is the image you asked for.";
const CAPTION_TOKENS: u64 = 8;

impl Generator<'_> {
    fn prompt_hash(&self) -> u64 {
        mix(self.seed ^ hash64(self.asked.prompt.as_bytes()))
    }

    fn picture(&self, size: Size, which: u64) -> Arc<Picture> {
        let variant = self.prompt_hash() % self.options.variants.max(1);
        self.pictures.picture(&PictureKey {
            family: self.model.family,
            size,
            ratio: self.asked.ratio,
            jpeg: self.model.jpeg,
            tiny: self.options.tiny,
            // Drafts and further images are other pictures than the final one.
            variant: variant + which * 1_000_003,
        })
    }

    fn signature(&self, of_image: bool) -> Option<Bytes> {
        if !self.model.thinks() || !matches!(self.route.api, Api::Developer | Api::Vertex) {
            return None;
        }
        let variant = self.prompt_hash() % self.options.variants.max(1);
        let realistic = match (self.model.family, variant % 3) {
            (Family::Pro3, 1) => 1_125_000,
            (Family::Pro3, 2) => 2_182_500,
            _ => 825_000,
        };
        let bytes = match self.options.signature_bytes {
            Some(bytes) if of_image => bytes,
            _ if self.options.tiny || !of_image => 48,
            _ => realistic,
        };
        Some(self.pictures.signature(signature_prefix(self.route.api), bytes, variant))
    }

    /// Tokens before anything is made.
    fn input_usage(&self) -> Usage {
        Usage {
            prompt_text: self.asked.prompt_text_tokens(),
            prompt_image: self.asked.input_images * self.model.input_image_tokens(),
            ..Usage::default()
        }
    }

    fn thoughts(&self) -> u64 {
        // Recorded answers spend 200 to 400 tokens thinking about one image.
        if self.model.thinks() { 200 + self.prompt_hash() % 200 } else { 0 }
    }

    fn empty(&self, finish: Option<&'static str>, usage: Usage) -> Content {
        Content {
            parts: Vec::new(),
            finish,
            finish_message: None,
            block: None,
            tail: Tail::Good,
            shape: self.options.shape,
            error_instead: false,
            usage,
            generated: true,
            charged: true,
        }
    }

    fn good(&self, shape: Shape) -> Content {
        let mut usage = self.input_usage();
        usage.thoughts = self.thoughts();
        if !self.model.makes_images() {
            usage.text = 12;
            let mut content = self.empty(Some("STOP"), usage);
            content.parts.push(Part::Text {
                text: "A cat sits on a sunny wall and looks at you.".to_owned(),
                signature: None,
            });
            return content;
        }
        let drafts = if self.model.thinks() { u64::from(shape.drafts) } else { 0 };
        let draft_size = if shape.drafts_small { Size::K1 } else { self.asked.size };
        usage.image = self.model.image_tokens(self.asked.size) * self.asked.count;
        if self.options.drafts_charged {
            usage.image += drafts * self.model.image_tokens(draft_size);
        }
        usage.text = if shape.text { CAPTION_TOKENS } else { 0 };

        let mut parts = Vec::new();
        let draft = |index: u64, thought: bool| Part::Image {
            picture: self.picture(draft_size, 100 + index),
            thought,
            signature: if thought { None } else { self.signature(true) },
            is_final: false,
        };
        parts.extend((0..drafts).map(|index| draft(index, shape.drafts_marked)));
        let caption = Part::Text { text: CAPTION.to_owned(), signature: self.signature(false) };
        let mut after = Vec::new();
        if shape.text {
            (if shape.text_last { &mut after } else { &mut parts }).push(caption);
        }
        if shape.empty_part {
            parts.push(Part::Empty);
        }
        for further in (0..self.asked.count).rev() {
            parts.push(Part::Image {
                picture: self.picture(self.asked.size, further),
                thought: shape.final_marked,
                signature: self.signature(true),
                is_final: further == 0,
            });
        }
        parts.append(&mut after);
        if shape.draft_after_final && drafts > 0 {
            parts.push(draft(drafts, true));
        }
        Content { parts, shape, ..self.empty(Some("STOP"), usage) }
    }

    /// Returns the content of a response with status 200 that meets this fault.
    pub(crate) fn content(&self, fault: &Fault) -> Content {
        let input = self.input_usage();
        let thought = Usage { thoughts: self.thoughts(), ..input };
        let good = || self.good(self.options.shape);
        match fault {
            Fault::Shaped(shape) => self.good(*shape),
            Fault::Refused(refusal) => {
                let message = match refusal {
                    crate::fault::Refusal::ImageProhibitedContent => Some(
                        "Unable to show the generated image due to interests of third-party content providers. Please edit your prompt \
                         and try again. If you think this was an error, send feedback.",
                    ),
                    crate::fault::Refusal::ImageSafety => Some(
                        "Unable to show the generated image. The image was filtered out because it violated Google's Responsible AI \
                         practices. Try rephrasing the prompt.",
                    ),
                    crate::fault::Refusal::ModelArmor => Some(
                        "The response violated Responsible AI Safety settings (Hate Speech, Harassment, Dangerous) filters.",
                    ),
                    _ => None,
                };
                // Imagen's refusal says that it is free.
                let charged = self.route.verb != Verb::Predict;
                Content {
                    finish_message: message,
                    charged,
                    ..self.empty(Some(refusal.as_str()), thought)
                }
            }
            Fault::PromptBlocked(block) => {
                let message = (self.route.api == Api::Vertex)
                    .then_some("The prompt violated Prompt Injection and Jailbreak filters.");
                Content {
                    block: Some((block.as_str(), message)),
                    generated: false,
                    charged: self.blocked_prompts_charge,
                    ..self.empty(None, input)
                }
            }
            Fault::NoImage => {
                let mut content = self.empty(Some("NO_IMAGE"), Usage { text: 9, ..thought });
                content.parts.push(Part::Text {
                    text: "I could not make an image of that.".to_owned(),
                    signature: None,
                });
                content
            }
            Fault::ImageOther { waived: true } => Content {
                finish_message: Some(
                    "Unable to show the generated image. The model could not generate the image based on the prompt provided. You will \
                     not be charged for this request. Try rephrasing the prompt.",
                ),
                charged: false,
                ..self.empty(Some("IMAGE_OTHER"), input)
            },
            Fault::ImageOther { waived: false } => Content {
                finish_message: Some(
                    "Unable to show the generated image. The model could not generate the image based on the prompt provided.",
                ),
                ..self.empty(Some("IMAGE_OTHER"), Usage { text: 11, ..thought })
            },
            Fault::MaxTokens => self.empty(Some("MAX_TOKENS"), thought),
            Fault::StopWithoutImage => {
                let mut content =
                    self.empty(Some("STOP"), Usage { text: 20, image: 1290, ..thought });
                content.parts.push(Part::Text {
                    text: "I imagine a cat on a sunny wall, looking straight at you.".to_owned(),
                    signature: None,
                });
                content
            }
            Fault::UnknownFinishReason => self.empty(Some("IMAGE_TOO_BEAUTIFUL"), thought),
            Fault::ErrorInOk => Content {
                error_instead: true,
                generated: false,
                charged: false,
                ..self.empty(None, input)
            },
            Fault::StreamErrorTail { charged } => {
                Content { generated: *charged, charged: *charged, ..self.broken(Tail::RawError) }
            }
            Fault::StreamErrorEvent { charged } => {
                Content { generated: *charged, charged: *charged, ..self.broken(Tail::ErrorEvent) }
            }
            Fault::NoFinishReason { charged } => {
                Content { generated: *charged, charged: *charged, ..self.broken(Tail::NoFinish) }
            }
            _ => good(),
        }
    }

    fn broken(&self, tail: Tail) -> Content {
        let content = self.good(Shape::with_drafts(1));
        let error_instead = tail != Tail::NoFinish && self.route.framing == Framing::Whole;
        Content { tail, error_instead, ..content }
    }

    /// Content type and body.
    pub(crate) fn print(&self, content: &Content) -> (&'static str, Vec<Bytes>) {
        let api = self.route.api;
        let content_type = if self.route.framing == Framing::Sse { SSE } else { JSON };
        if content.error_instead {
            return (content_type, mid_stream().body(api, self.route.framing));
        }
        let body = match (api, self.route.verb, self.route.framing) {
            (_, Verb::Predict, _) => self.predictions(content).pretty(),
            (Api::Developer | Api::Vertex, _, Framing::Whole) => {
                self.gemini_whole(content).pretty()
            }
            (Api::Developer | Api::Vertex, _, Framing::Sse) => {
                self.sse(content, self.gemini_events(content), None)
            }
            (Api::Developer | Api::Vertex, _, Framing::Array) => self.array(content),
            (Api::OpenAiChat, _, Framing::Whole) => self.chat_whole(content).compact(),
            (Api::OpenAiChat, _, _) => self.sse(content, self.chat_events(content), Some("[DONE]")),
            (Api::OpenAiImages, _, _) => self.images_api(content).compact(),
            (Api::Interactions, _, Framing::Whole) => self.interaction(content).pretty(),
            (Api::Interactions, _, _) => self.sse(content, self.interaction_events(content), None),
        };
        (content_type, body)
    }

    fn response_id(&self) -> String {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut state = mix(self.seed ^ self.number as u64);
        (0..22)
            .map(|_| {
                state = mix(state);
                char::from(LETTERS[(state % 64) as usize])
            })
            .collect()
    }

    /// The parts that leave the server: an answer that breaks never holds its final image.
    fn sent<'c>(&self, content: &'c Content) -> impl Iterator<Item = &'c Part> {
        let good = content.tail == Tail::Good;
        content
            .parts
            .iter()
            .filter(move |part| good || !matches!(part, Part::Image { is_final: true, .. }))
    }

    fn gemini_part(&self, part: &Part, shape: Shape) -> Json {
        let (inline, mime) = if shape.snake_case {
            ("inline_data", "mime_type")
        } else {
            ("inlineData", "mimeType")
        };
        let signature_name =
            if shape.snake_case { "thought_signature" } else { "thoughtSignature" };
        let mut fields = Vec::new();
        match part {
            Part::Empty => {}
            Part::Text { text, signature } => {
                fields.push(("text", Json::from(text.clone())));
                fields.extend(
                    signature.clone().map(|signature| (signature_name, Json::Blob(signature))),
                );
            }
            Part::Image { picture, thought, signature, .. } => {
                let mut data = vec![
                    (mime, Json::from(picture.mime())),
                    ("data", Json::Blob(picture.base64.clone())),
                ];
                if shape.data_first {
                    data.reverse();
                }
                if *thought && !shape.thought_after_data {
                    fields.push(("thought", true.into()));
                }
                fields.push((inline, Json::Obj(data)));
                fields.extend(
                    signature.clone().map(|signature| (signature_name, Json::Blob(signature))),
                );
                if *thought && shape.thought_after_data {
                    fields.push(("thought", true.into()));
                }
            }
        }
        Json::Obj(fields)
    }

    fn trailer(&self, content: &Content, usage: Usage) -> Vec<(&'static str, Json)> {
        let mut fields = Vec::new();
        if !content.shape.no_usage {
            fields.push(("usageMetadata", usage.json(self.route.api)));
        }
        fields.push(("modelVersion", self.model.id.into()));
        fields.push(("responseId", self.response_id().into()));
        fields
    }

    fn feedback(content: &Content) -> Option<(&'static str, Json)> {
        let (reason, message) = content.block?;
        let mut fields = vec![("blockReason", Json::from(reason))];
        fields.extend(message.map(|message| ("blockReasonMessage", Json::from(message))));
        Some(("promptFeedback", Json::Obj(fields)))
    }

    fn candidate(&self, content: &Content, parts: Vec<Json>, last: bool) -> Json {
        let mut fields = Vec::new();
        if !parts.is_empty() {
            fields.push(("content", obj! { "parts": parts, "role": "model" }));
        } else if last && content.finish == Some("IMAGE_OTHER") {
            fields.push(("content", obj! {}));
        }
        if last {
            fields.extend(content.finish.map(|finish| ("finishReason", Json::from(finish))));
        }
        fields.push(("index", 0u64.into()));
        if last {
            fields.extend(
                content.finish_message.map(|message| ("finishMessage", Json::from(message))),
            );
        }
        Json::Obj(fields)
    }

    fn gemini_whole(&self, content: &Content) -> Json {
        let mut fields = Vec::new();
        if content.block.is_none() {
            let parts =
                self.sent(content).map(|part| self.gemini_part(part, content.shape)).collect();
            let candidate = self.candidate(content, parts, content.tail == Tail::Good);
            fields.push(("candidates", vec![candidate].into()));
        }
        fields.extend(Self::feedback(content));
        fields.extend(self.trailer(content, content.usage));
        Json::Obj(fields)
    }

    fn gemini_events(&self, content: &Content) -> Vec<Json> {
        let event = |candidate: Option<Json>, usage: Usage| {
            let mut fields: Vec<(&'static str, Json)> = Vec::new();
            fields.extend(candidate.map(|candidate| ("candidates", vec![candidate].into())));
            fields.extend(Self::feedback(content));
            fields.extend(self.trailer(content, usage));
            Json::Obj(fields)
        };
        if content.block.is_some() {
            return vec![event(None, content.usage)];
        }
        let so_far = self.input_usage();
        let mut events: Vec<Json> = self
            .sent(content)
            .map(|part| {
                let part = self.gemini_part(part, content.shape);
                event(Some(self.candidate(content, vec![part], false)), so_far)
            })
            .collect();
        if content.tail == Tail::Good {
            let closing =
                if content.parts.is_empty() { Vec::new() } else { vec![obj! { "text": "" }] };
            events.push(event(Some(self.candidate(content, closing, true)), content.usage));
        }
        events
    }

    fn sse(&self, content: &Content, events: Vec<Json>, done: Option<&'static str>) -> Vec<Bytes> {
        let mut body = Vec::new();
        let push = |body: &mut Vec<Bytes>, event: &Json| {
            body.push(Bytes::from_static(b"data: "));
            body.extend(event.compact());
            body.push(Bytes::from_static(b"\r\n\r\n"));
        };
        for event in &events {
            push(&mut body, event);
        }
        match content.tail {
            // Pretty-printed and without "data:", as the front end writes it when a stream is
            // already under way.
            Tail::RawError => body.extend(mid_stream().event(self.route.api).pretty()),
            Tail::ErrorEvent => push(&mut body, &mid_stream().event(self.route.api)),
            Tail::Good => {
                if let Some(done) = done {
                    body.push(Bytes::from(format!("data: {done}\r\n\r\n")));
                }
            }
            Tail::NoFinish => {}
        }
        body
    }

    fn array(&self, content: &Content) -> Vec<Bytes> {
        let mut events = self.gemini_events(content);
        if matches!(content.tail, Tail::RawError | Tail::ErrorEvent) {
            events.push(mid_stream().event(self.route.api));
        }
        let mut body = vec![Bytes::from_static(b"[")];
        for (index, event) in events.iter().enumerate() {
            if index > 0 {
                body.push(Bytes::from_static(b",\r\n"));
            }
            body.extend(event.pretty());
        }
        body.push(Bytes::from_static(b"]\n"));
        body
    }

    fn predictions(&self, content: &Content) -> Json {
        if content.block.is_some() || content.parts.is_empty() {
            return obj! { "predictions": vec![obj! { "raiFilteredReason":
            "Unable to show generated images. All images were filtered out because they violated Vertex AI's usage guidelines. You will \
             not be charged for blocked images. Try rephrasing the prompt. If you think this was an error, send feedback." }] };
        }
        let images: Vec<Json> = self
            .sent(content)
            .filter_map(|part| match part {
                Part::Image { picture, .. } => {
                    Some(obj! { "mimeType": picture.mime(), "bytesBase64Encoded": Json::Blob(picture.base64.clone()) })
                }
                _ => None,
            })
            .collect();
        obj! { "predictions": images }
    }

    fn openai_finish(content: &Content) -> Json {
        match content.finish {
            _ if content.block.is_some() => "content_filter".into(),
            Some("STOP") => "stop".into(),
            Some("MAX_TOKENS") => "length".into(),
            Some("NO_IMAGE" | "IMAGE_OTHER") => "stop".into(),
            Some(_) => "content_filter".into(),
            None => Json::Null,
        }
    }

    /// Text and images of a message.
    fn openai_message(&self, content: &Content) -> (String, Vec<Json>) {
        let mut text = String::new();
        let mut images = Vec::new();
        for part in self.sent(content) {
            match part {
                Part::Text { text: more, .. } => text.push_str(more),
                // Gateways drop marked thoughts.
                Part::Image { picture, thought, is_final, .. } if *is_final || !*thought => {
                    let url = Json::DataUrl(picture.mime(), picture.base64.clone());
                    images.push(obj! { "type": "image_url", "image_url": obj! { "url": url }, "index": images.len() as u64 });
                }
                _ => {}
            }
        }
        (text, images)
    }

    fn chat_whole(&self, content: &Content) -> Json {
        let (text, images) = self.openai_message(content);
        let mut message = vec![("role", Json::from("assistant")), ("content", Json::from(text))];
        if !images.is_empty() {
            message.push(("images", images.into()));
        }
        let finish =
            if content.tail == Tail::Good { Self::openai_finish(content) } else { Json::Null };
        obj! { "choices": vec![obj! { "finish_reason": finish, "index": 0u64, "message": Json::Obj(message) }], "created": CREATED,
        "id": self.response_id(), "model": self.model.id, "object": "chat.completion", "usage": content.usage.openai() }
    }

    fn chat_events(&self, content: &Content) -> Vec<Json> {
        let (text, images) = self.openai_message(content);
        let chunk = |delta: Json, finish: Json| {
            obj! { "choices": vec![obj! { "delta": delta, "finish_reason": finish, "index": 0u64 }], "created": CREATED,
            "id": self.response_id(), "model": self.model.id, "object": "chat.completion.chunk" }
        };
        let mut events = vec![chunk(obj! { "role": "assistant", "content": text }, Json::Null)];
        if !images.is_empty() {
            events.push(chunk(obj! { "images": images }, Json::Null));
        }
        if content.tail == Tail::Good {
            events.push(chunk(obj! {}, Self::openai_finish(content)));
        }
        events
    }

    fn images_api(&self, content: &Content) -> Json {
        let data: Vec<Json> = self
            .sent(content)
            .filter_map(|part| match part {
                Part::Image { picture, thought, is_final, .. } if *is_final || !*thought => {
                    Some(obj! { "b64_json": Json::Blob(picture.base64.clone()) })
                }
                _ => None,
            })
            .collect();
        obj! { "created": CREATED, "data": data, "usage": content.usage.openai() }
    }

    /// The Interactions API's name of a block: the finish reason in lower case, without "image" for
    /// those that have none.
    fn interaction_error(content: &Content) -> Option<String> {
        let reason = content.block.map(|(reason, _)| reason).or(content.finish)?;
        (reason != "STOP").then(|| reason.to_ascii_lowercase())
    }

    fn interaction_outputs(&self, content: &Content) -> Vec<Json> {
        self.sent(content)
            .filter_map(|part| match part {
                Part::Text { text, .. } => Some(obj! { "type": "text", "text": text.clone() }),
                Part::Image { picture, thought, is_final, .. } if *is_final || !*thought => {
                    Some(obj! { "type": "image", "mime_type": picture.mime(), "data": Json::Blob(picture.base64.clone()) })
                }
                _ => None,
            })
            .collect()
    }

    fn interaction(&self, content: &Content) -> Json {
        let error = Self::interaction_error(content);
        let status = if error.is_some() { "failed" } else { "completed" };
        let mut fields = vec![
            ("id", Json::from(self.response_id())),
            ("object", "interaction".into()),
            ("model", self.model.id.into()),
            ("status", status.into()),
            ("outputs", self.interaction_outputs(content).into()),
        ];
        if let Some(code) = error {
            let mut error = vec![("code", Json::from(code))];
            error.extend(content.finish_message.map(|message| ("message", Json::from(message))));
            fields.push(("errors", vec![Json::Obj(error)].into()));
        }
        let output = content.usage.text + content.usage.image;
        fields.push((
            "usage",
            obj! { "total_input_tokens": content.usage.input(), "total_output_tokens": output,
            "total_thought_tokens": content.usage.thoughts, "total_tokens": content.usage.input() + output + content.usage.thoughts },
        ));
        Json::Obj(fields)
    }

    fn interaction_events(&self, content: &Content) -> Vec<Json> {
        let mut events: Vec<Json> = self
            .interaction_outputs(content)
            .into_iter()
            .enumerate()
            .map(|(index, output)| obj! { "event_type": "content.delta", "index": index as u64, "delta": output })
            .collect();
        if content.tail == Tail::Good {
            events.push(obj! { "event_type": "interaction.complete", "interaction": self.interaction(content) });
        }
        events
    }
}

/// OpenAI-style answers carry a time; the simulator has no calendar, so it is always 2026-10-01
/// 00:00 UTC.
const CREATED: u64 = 1_790_812_800;

pub(crate) const JSON: &str = "application/json; charset=UTF-8";
/// What `alt=sse` answers, errors included: a plain JSON error comes under this type too
/// (js-genai's recordings, 2025-08).
pub(crate) const SSE: &str = "text/event-stream";
