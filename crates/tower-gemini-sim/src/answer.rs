//! Makes responses with status 200: their content, their cost, and their form in each dialect.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::api_error::{ApiError, finish_message};
use crate::dialect::{Api, Framing, JSON, SSE, Verb};
use crate::fault::{Fault, Shape};
use crate::hash::{hash64, letters, mix};
use crate::image::{Picture, PictureCache, PictureKey};
use crate::interactions::{Event, Interaction};
use crate::json::{Fields, Json, obj};
use crate::ledger::Bill;
use crate::model::{Model, Price, Size, Tier};
use crate::request::{ImageRequest, Route, signature_prefix};

/// Which pictures are drawn and how responses carry them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// Pictures of 8 to 64 pixels and signatures of some bytes, so that a response is a few
    /// kilobytes.
    pub tiny: bool,
    /// Different pictures for each size and ratio. Prompts share them.
    pub variants: u64,
    /// The arrangement of a complete response, unless a fault has another.
    pub shape: Shape,
    /// Bytes of a thought signature before base64. By default 0.8 to 2.2 MB, of which base64 makes
    /// the 1.10, 1.50 and 2.91 MB of three recorded responses of gemini-3-pro-image (pydantic-ai's
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
    /// Tokens before anything is made.
    pub(crate) fn of_input(asked: &ImageRequest, model: &Model) -> Self {
        Self {
            prompt_text: asked.prompt_text_tokens(),
            prompt_image: asked.input_images * model.input_image_tokens,
            ..Self::default()
        }
    }

    pub(crate) fn input(&self) -> u64 {
        self.prompt_text + self.prompt_image
    }

    fn output(&self) -> u64 {
        self.text + self.image
    }

    fn total(&self) -> u64 {
        self.input() + self.output() + self.thoughts
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

    fn details(text: u64, image: u64) -> Vec<Json> {
        [("TEXT", text), ("IMAGE", image)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(modality, count)| obj! { "modality": modality, "tokenCount": count })
            .collect()
    }

    /// The tier is named where another one than standard was asked for.
    fn json(&self, api: Api, tier: Option<Tier>) -> Json {
        let positive = |count: u64| (count > 0).then_some(count);
        obj! {
            "promptTokenCount": self.input(),
            "candidatesTokenCount": positive(self.output()),
            "totalTokenCount": self.total(),
            "promptTokensDetails": Self::details(self.prompt_text, self.prompt_image),
            // The details leave the text out, as recorded responses do.
            "candidatesTokensDetails": positive(self.image).map(|image| Self::details(0, image)),
            "thoughtsTokenCount": positive(self.thoughts),
            "serviceTier": tier.filter(|_| api == Api::Developer).map(Tier::as_str),
            "trafficType": (api == Api::Vertex)
                .then_some(tier.unwrap_or_default().traffic_type()),
        }
    }

    fn openai(&self) -> Json {
        obj! {
            "completion_tokens": self.output() + self.thoughts,
            "prompt_tokens": self.input(),
            "total_tokens": self.total(),
        }
    }
}

/// A part of a response: a text, a picture, or neither.
#[derive(Debug, Clone, Default)]
struct Part {
    text: Option<&'static str>,
    picture: Option<Arc<Picture>>,
    signature: Option<Bytes>,
    thought: bool,
    /// The picture that a reader should choose.
    is_final: bool,
}

impl Part {
    fn text(text: &'static str) -> Self {
        Self { text: Some(text), ..Self::default() }
    }
}

/// How the response ends.
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
    block: Option<&'static str>,
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
        let part = self.sent().find(|part| part.is_final && !self.error_instead)?;
        part.picture.as_ref()
    }

    /// The parts that leave the server: a response that breaks never holds its final image.
    fn sent(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| self.tail == Tail::Good || !part.is_final)
    }

    /// Those that gateways pass on: they drop marked thoughts.
    fn shown(&self) -> impl Iterator<Item = &Part> {
        self.sent().filter(|part| part.is_final || !part.thought)
    }

    fn shown_pictures(&self) -> impl Iterator<Item = &Arc<Picture>> {
        self.shown().filter_map(|part| part.picture.as_ref())
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
    /// The tier that it is served in.
    pub(crate) tier: Tier,
    /// Whether responses name the model.
    pub(crate) names_model: bool,
}

const CAPTION: &str = "Here is the image you asked for.";
const CAPTION_TOKENS: u64 = 8;

impl Generator<'_> {
    fn model_name(&self) -> Option<&'static str> {
        self.names_model.then_some(self.model.id.as_str())
    }

    /// The tier, where the response names it.
    pub(crate) fn named_tier(&self) -> Option<Tier> {
        (self.asked.tier != Tier::Standard).then_some(self.tier)
    }

    fn prompt_hash(&self) -> u64 {
        mix(self.seed ^ hash64(self.asked.prompt.as_bytes()))
    }

    fn variant(&self) -> u64 {
        self.prompt_hash() % self.options.variants.max(1)
    }

    fn picture(&self, size: Size, which: u64) -> Arc<Picture> {
        self.pictures.picture(PictureKey {
            dimensions: self.model.dimensions(size, self.asked.ratio, self.options.tiny),
            jpeg: self.model.jpeg,
            tiny: self.options.tiny,
            // Drafts and further images are other pictures than the final one.
            variant: self.variant() + which * 1_000_003,
        })
    }

    fn signature(&self, of_image: bool) -> Option<Bytes> {
        let realistic = &self.model.signature_bytes;
        if realistic.is_empty() || !matches!(self.route.api, Api::Developer | Api::Vertex) {
            return None;
        }
        let variant = self.variant();
        let bytes = match self.options.signature_bytes {
            Some(bytes) if of_image => bytes,
            _ if self.options.tiny || !of_image => 48,
            _ => realistic[(variant % 3) as usize % realistic.len()],
        };
        Some(self.pictures.signature(signature_prefix(self.route.api), bytes, variant))
    }

    fn input_usage(&self) -> Usage {
        Usage::of_input(self.asked, self.model)
    }

    fn thoughts(&self) -> u64 {
        // Recorded responses spend 200 to 400 tokens thinking about one image.
        if self.model.thinks() { 200 + self.prompt_hash() % 200 } else { 0 }
    }

    fn empty(&self, finish: Option<&'static str>, usage: Usage) -> Content {
        Content {
            parts: Vec::new(),
            finish,
            finish_message: finish.and_then(finish_message),
            block: None,
            tail: Tail::Good,
            shape: self.options.shape,
            error_instead: false,
            usage,
            generated: true,
            charged: true,
        }
    }

    fn only_text(&self, text: &'static str, finish: &'static str, usage: Usage) -> Content {
        Content { parts: vec![Part::text(text)], ..self.empty(Some(finish), usage) }
    }

    fn good(&self, shape: Shape) -> Content {
        let mut usage = self.input_usage();
        usage.thoughts = self.thoughts();
        if !self.model.makes_images() {
            usage.text = 12;
            return self.only_text("A cat sits on a sunny wall and looks at you.", "STOP", usage);
        }
        let drafts = if self.model.thinks() { u64::from(shape.drafts) } else { 0 };
        let draft_size = if shape.drafts_small { Size::K1 } else { self.asked.size };
        let tokens = |size| self.model.image_tokens.get(&size).copied().unwrap_or_default();
        usage.image = tokens(self.asked.size) * self.asked.count;
        if self.options.drafts_charged {
            usage.image += drafts * tokens(draft_size);
        }

        let draft = |index: u64, thought: bool| Part {
            picture: Some(self.picture(draft_size, 100 + index)),
            thought,
            signature: if thought { None } else { self.signature(true) },
            ..Part::default()
        };
        let mut parts: Vec<_> =
            (0..drafts).map(|index| draft(index, shape.drafts_marked)).collect();
        let mut caption = None;
        if shape.text {
            usage.text = CAPTION_TOKENS;
            caption = Some(Part { signature: self.signature(false), ..Part::text(CAPTION) });
        }
        if !shape.text_last {
            // Drafts that are not marked stand right before their image: with text between them,
            // both are images of their own (Vertex AI documentation, interleaved output).
            let at = if shape.drafts_marked { parts.len() } else { 0 };
            parts.splice(at..at, caption.take());
        }
        if shape.empty_part {
            parts.push(Part::default());
        }
        parts.extend((0..self.asked.count).rev().map(|further| Part {
            picture: Some(self.picture(self.asked.size, further)),
            thought: shape.final_marked,
            signature: self.signature(true),
            is_final: further == 0,
            ..Part::default()
        }));
        parts.extend(caption);
        if shape.draft_after_final && drafts > 0 {
            parts.push(draft(drafts, true));
        }
        Content { parts, shape, ..self.empty(Some("STOP"), usage) }
    }

    /// Returns the content of a response with status 200 that meets this fault.
    pub(crate) fn content(&self, fault: &Fault) -> Content {
        let input = self.input_usage();
        let thought = Usage { thoughts: self.thoughts(), ..input };
        match *fault {
            Fault::Shaped(shape) => self.good(shape),
            Fault::Refused(refusal) => Content {
                // Imagen's refusal says that it is free.
                charged: self.route.verb != Verb::Predict,
                ..self.empty(Some(refusal.as_str()), thought)
            },
            Fault::PromptBlocked(block) => Content {
                block: Some(block.as_str()),
                generated: false,
                charged: self.blocked_prompts_charge,
                ..self.empty(None, input)
            },
            Fault::NoImage => {
                let usage = Usage { text: 9, ..thought };
                self.only_text("I could not make an image of that.", "NO_IMAGE", usage)
            }
            Fault::ImageOther { waived: true } => Content {
                finish_message: finish_message("IMAGE_OTHER_WAIVED"),
                charged: false,
                ..self.empty(Some("IMAGE_OTHER"), input)
            },
            Fault::ImageOther { waived: false } => {
                self.empty(Some("IMAGE_OTHER"), Usage { text: 11, ..thought })
            }
            Fault::MaxTokens => self.empty(Some("MAX_TOKENS"), thought),
            Fault::StopWithoutImage => self.only_text(
                "I imagine a cat on a sunny wall, looking straight at you.",
                "STOP",
                Usage { text: 20, image: 1290, ..thought },
            ),
            Fault::UnknownFinishReason => self.empty(Some("IMAGE_TOO_BEAUTIFUL"), thought),
            Fault::ErrorInOk => Content {
                error_instead: true,
                generated: false,
                charged: false,
                ..self.empty(None, input)
            },
            Fault::StreamErrorTail { charged } => self.broken(Tail::RawError, charged),
            Fault::StreamErrorEvent { charged } => self.broken(Tail::ErrorEvent, charged),
            Fault::NoFinishReason { charged } => self.broken(Tail::NoFinish, charged),
            _ => self.good(self.options.shape),
        }
    }

    fn broken(&self, tail: Tail, charged: bool) -> Content {
        let content = self.good(Shape::with_drafts(1));
        let error_instead = tail != Tail::NoFinish && self.route.framing == Framing::Whole;
        Content { tail, error_instead, generated: charged, charged, ..content }
    }

    /// Content type and body.
    pub(crate) fn print(&self, content: &Content) -> (&'static str, Vec<Bytes>) {
        let api = self.route.api;
        let content_type = if self.route.framing == Framing::Sse { SSE } else { JSON };
        if content.error_instead {
            return ApiError::mid_stream().print(api, self.route.framing);
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
            (Api::Interactions, _, Framing::Whole) => self.interaction_whole(content).pretty(),
            (Api::Interactions, _, _) => self.interaction_stream(content),
        };
        (content_type, body)
    }

    fn response_id(&self) -> String {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        letters(LETTERS, self.seed ^ self.number as u64, 22)
    }

    fn gemini_part(&self, part: &Part, shape: Shape) -> Json {
        let name = |camel, snake| if shape.snake_case { snake } else { camel };
        let data = part.picture.as_ref().map(|picture| {
            let mime = Json::from(picture.mime());
            let mut fields = [
                (name("mimeType", "mime_type"), mime),
                ("data", Json::from(picture.base64.clone())),
            ];
            if shape.data_first {
                fields.reverse();
            }
            Json::Obj(Fields::new(fields))
        });
        let thought = |after| (part.thought && shape.thought_after_data == after).then_some(true);
        obj! {
            "text": part.text,
            "thought": thought(false),
            (name("inlineData", "inline_data")): data,
            (name("thoughtSignature", "thought_signature")): part.signature.clone(),
            "thought": thought(true),
        }
    }

    fn candidate(&self, content: &Content, parts: Vec<Json>, last: bool) -> Json {
        let only_last = |text: Option<&'static str>| text.filter(|_| last);
        let shown = if !parts.is_empty() {
            Some(obj! { "parts": parts, "role": "model" })
        } else {
            (last && content.finish == Some("IMAGE_OTHER")).then(|| obj! {})
        };
        obj! {
            "content": shown,
            "finishReason": only_last(content.finish),
            "index": 0u64,
            "finishMessage": only_last(content.finish_message),
        }
    }

    /// A whole response or one event of it.
    fn gemini(&self, content: &Content, candidate: Option<Json>, usage: Usage) -> Json {
        let feedback = content.block.map(|reason| {
            let message = (self.route.api == Api::Vertex)
                .then_some("The prompt violated Prompt Injection and Jailbreak filters.");
            obj! { "blockReason": reason, "blockReasonMessage": message }
        });
        obj! {
            "candidates": candidate.map(|candidate| vec![candidate]),
            "promptFeedback": feedback,
            "usageMetadata": (!content.shape.no_usage).then(|| usage.json(self.route.api, self.named_tier())),
            "modelVersion": self.model_name(),
            "responseId": self.response_id(),
        }
    }

    /// A response to a line of a batch.
    pub(crate) fn of_line(&self, content: &Content) -> Json {
        match self.route.api {
            Api::OpenAiChat => self.chat_whole(content),
            _ => self.gemini_whole(content),
        }
    }

    fn gemini_whole(&self, content: &Content) -> Json {
        let candidate = content.block.is_none().then(|| {
            let parts = content.sent().map(|part| self.gemini_part(part, content.shape)).collect();
            self.candidate(content, parts, content.tail == Tail::Good)
        });
        self.gemini(content, candidate, content.usage)
    }

    fn gemini_events(&self, content: &Content) -> Vec<Json> {
        if content.block.is_some() {
            return vec![self.gemini(content, None, content.usage)];
        }
        let so_far = self.input_usage();
        let mut events: Vec<Json> = content
            .sent()
            .map(|part| {
                let parts = vec![self.gemini_part(part, content.shape)];
                self.gemini(content, Some(self.candidate(content, parts, false)), so_far)
            })
            .collect();
        if content.tail == Tail::Good {
            let closing =
                if content.parts.is_empty() { Vec::new() } else { vec![obj! { "text": "" }] };
            let candidate = self.candidate(content, closing, true);
            events.push(self.gemini(content, Some(candidate), content.usage));
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
            Tail::RawError => body.extend(ApiError::mid_stream().event(self.route.api).pretty()),
            Tail::ErrorEvent => push(&mut body, &ApiError::mid_stream().event(self.route.api)),
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
            events.push(ApiError::mid_stream().event(self.route.api));
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
            let reason = "Unable to show generated images. All images were filtered out because \
                they violated Vertex AI's usage guidelines. You will not be charged for blocked \
                images. Try rephrasing the prompt. If you think this was an error, send feedback.";
            return obj! { "predictions": vec![obj! { "raiFilteredReason": reason }] };
        }
        let pictures = content.sent().filter_map(|part| part.picture.as_ref());
        let images: Vec<Json> = pictures
            .map(|picture| {
                let base64 = picture.base64.clone();
                obj! { "mimeType": picture.mime(), "bytesBase64Encoded": base64 }
            })
            .collect();
        obj! { "predictions": images }
    }

    fn openai_finish(content: &Content) -> Json {
        match content.finish {
            _ if content.tail != Tail::Good => Json::Null,
            _ if content.block.is_some() => "content_filter".into(),
            Some("STOP" | "NO_IMAGE" | "IMAGE_OTHER") => "stop".into(),
            Some("MAX_TOKENS") => "length".into(),
            Some(_) => "content_filter".into(),
            None => Json::Null,
        }
    }

    /// Text and images of a message; no list of images where there is none.
    fn openai_message(content: &Content) -> (String, Option<Vec<Json>>) {
        let text = content.shown().filter_map(|part| part.text).collect();
        let images: Vec<Json> = content
            .shown_pictures()
            .enumerate()
            .map(|(index, picture)| {
                let prefix = format!("data:{};base64,", picture.mime());
                let url = Json::Blob(prefix, picture.base64.clone());
                let index = index as u64;
                obj! { "type": "image_url", "image_url": obj! { "url": url }, "index": index }
            })
            .collect();
        (text, (!images.is_empty()).then_some(images))
    }

    /// A whole response, or a chunk of one, around its only choice.
    fn chat(&self, object: &'static str, choice: Json, usage: Option<Json>) -> Json {
        obj! {
            "choices": vec![choice],
            "created": CREATED,
            "id": self.response_id(),
            "model": self.model_name(),
            "object": object,
            "usage": usage,
        }
    }

    fn chat_whole(&self, content: &Content) -> Json {
        let (text, images) = Self::openai_message(content);
        let message = obj! { "role": "assistant", "content": text, "images": images };
        let finish = Self::openai_finish(content);
        let choice = obj! { "finish_reason": finish, "index": 0u64, "message": message };
        self.chat("chat.completion", choice, Some(content.usage.openai()))
    }

    fn chat_events(&self, content: &Content) -> Vec<Json> {
        let (text, images) = Self::openai_message(content);
        let chunk = |delta: Json, finish: Json| {
            let choice = obj! { "delta": delta, "finish_reason": finish, "index": 0u64 };
            self.chat("chat.completion.chunk", choice, None)
        };
        let mut events = vec![chunk(obj! { "role": "assistant", "content": text }, Json::Null)];
        events.extend(images.map(|images| chunk(obj! { "images": images }, Json::Null)));
        if content.tail == Tail::Good {
            events.push(chunk(obj! {}, Self::openai_finish(content)));
        }
        events
    }

    fn images_api(&self, content: &Content) -> Json {
        let data: Vec<Json> = content
            .shown_pictures()
            .map(|picture| obj! { "b64_json": picture.base64.clone() })
            .collect();
        obj! { "created": CREATED, "data": data, "usage": content.usage.openai() }
    }

    fn interaction_outputs(content: &Content) -> Vec<Json> {
        let output = |part: &Part| match (&part.picture, part.text) {
            (Some(picture), _) => Some(obj! {
                "type": "image",
                "mime_type": picture.mime(),
                "data": picture.base64.clone(),
            }),
            (None, Some(text)) => Some(obj! { "type": "text", "text": text }),
            (None, None) => None,
        };
        content.shown().filter_map(output).collect()
    }

    pub(crate) fn interaction_id(&self) -> String {
        format!("v1_{}", self.response_id())
    }

    /// An interaction with this status: one that has not ended says no more.
    fn interaction(
        &self,
        status: &'static str,
        steps: Option<Json>,
        end: Option<&Content>,
    ) -> Json {
        let errors = end.and_then(Self::interaction_error);
        let usage = end.map(|content| content.usage).map(|usage| {
            obj! {
                "total_input_tokens": usage.input(),
                "total_output_tokens": usage.output(),
                "total_thought_tokens": usage.thoughts,
                "total_tokens": usage.total(),
            }
        });
        obj! {
            "id": self.interaction_id(),
            "object": "interaction",
            "model": self.model_name(),
            "status": status,
            "steps": steps,
            "errors": errors,
            "usage": usage,
        }
    }

    fn interaction_error(content: &Content) -> Option<Vec<Json>> {
        if content.tail != Tail::Good {
            return Some(vec![obj! { "code": "api_error" }]);
        }
        // Its name of a block is the reason in lower case.
        let code = content.block.or(content.finish).filter(|reason| *reason != "STOP")?;
        let message = content.finish_message;
        Some(vec![obj! { "code": code.to_ascii_lowercase(), "message": message }])
    }

    fn interaction_status(content: &Content) -> &'static str {
        if Self::interaction_error(content).is_some() { "failed" } else { "completed" }
    }

    fn interaction_whole(&self, content: &Content) -> Json {
        let output = Self::interaction_outputs(content);
        let steps = Json::from(vec![obj! { "type": "model_output", "content": output }]);
        self.interaction(Self::interaction_status(content), Some(steps), Some(content))
    }

    /// Every event with its name and id (ai.google.dev "Streaming interactions", 2026-10): the last
    /// has the usage and no steps.
    fn interaction_events(&self, content: &Content) -> Vec<Event> {
        let mut events = Vec::new();
        let mut push = |name: &'static str, field: &'static str, value: Json| {
            let id = format!("evt_{}", events.len());
            let index = name.starts_with("step.").then_some(0u64);
            let json =
                obj! { "event_type": name, "event_id": id.clone(), "index": index, field: value };
            let mut bytes = vec![Bytes::from(format!("event: {name}\r\ndata: "))];
            bytes.extend(json.compact());
            bytes.push(Bytes::from_static(b"\r\n\r\n"));
            events.push(Event { id, bytes });
        };
        push("interaction.created", "interaction", self.interaction("in_progress", None, None));
        push("step.start", "step", obj! { "type": "model_output" });
        for output in Self::interaction_outputs(content) {
            push("step.delta", "delta", output);
        }
        push("step.stop", "step", Json::Absent);
        let end = self.interaction(Self::interaction_status(content), None, Some(content));
        push("interaction.completed", "interaction", end);
        events
    }

    fn interaction_stream(&self, content: &Content) -> Vec<Bytes> {
        let mut events = self.interaction_events(content);
        let error = ApiError::mid_stream().event(self.route.api);
        let tail = match content.tail {
            Tail::Good => Vec::new(),
            Tail::RawError => error.pretty(),
            Tail::ErrorEvent => {
                let mut event = vec![Bytes::from_static(b"event: error\r\ndata: ")];
                event.extend(error.compact());
                event.push(Bytes::from_static(b"\r\n\r\n"));
                event
            }
            Tail::NoFinish => Vec::new(),
        };
        if content.tail != Tail::Good {
            events.pop();
        }
        events.into_iter().flat_map(|event| event.bytes).chain(tail).collect()
    }

    /// The interaction as the server stores it: it ends at `ends_at`.
    pub(crate) fn stored(&self, content: &Content, ends_at: Duration) -> Interaction {
        Interaction {
            ends_at,
            running: self.interaction("in_progress", None, None).pretty(),
            cancelled: self.interaction("cancelled", None, None).pretty(),
            whole: self.interaction_whole(content).pretty(),
            events: self.interaction_events(content),
            is_cancelled: false,
        }
    }
}

/// The time that OpenAI-style responses carry, and the day on which the clock begins unless
/// [`Builder::epoch`](crate::Builder::epoch) says another: 2026-10-01 00:00 UTC.
pub(crate) const CREATED: u64 = 1_790_812_800;
