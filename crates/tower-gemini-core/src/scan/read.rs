//! Builds an [`Answer`] from the tokens that the lexer passes on.
//!
//! Nothing here collects more than small strings: an image's base64 goes to the [`Store`] in the
//! pieces it arrives in.

use bytes::Bytes;

use super::answer::{Answer, Image, PartSpan, TokenCount, Usage};
use super::error::{ErrorKind, ScanError};
use super::json::{Scalar, Sink};
use super::paths::{Field, Node, child, field, is_image};
use super::signatures::Collector;
use super::store::{Meta, Mode, Store};
use super::uri::{Found, UriReader};

/// `Answer::text` and `finishMessage` are cut here.
const MAX_TEXT: usize = 8 << 10;
/// Names, reasons, ids.
const MAX_NAME: usize = 1 << 10;
/// `Answer::error` is cut here.
const MAX_ERROR: usize = 64 << 10;
/// Signatures are kept up to here: the largest recorded has 2.91 MB, and CLIProxyAPI stops at 32
/// MiB.
const MAX_SIGNATURE: usize = 32 << 20;
/// Spans and addresses are listed up to here; no model makes more than a handful.
const MAX_LISTED: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Frame {
    node: Node,
    field: Field,
    /// One bit a member that has been met.
    seen: u64,
    /// Elements begun, of an array.
    count: u32,
}

/// How far the response was before something that a repeated member can retract.
#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    text: usize,
    images: u32,
    thought_images: u32,
    urls: usize,
    parts: usize,
    had_image: bool,
    corrupt: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Progress {
    #[default]
    None,
    Reading,
    /// Complete; `true` when its base64 is corrupt.
    Done(bool),
}

/// Something that can be or hold an image: a part, a prediction, an entry of a list.
#[derive(Debug, Default)]
struct Element {
    node: Node,
    at: u64,
    comma: Option<u64>,
    in_array: bool,
    thought: Option<bool>,
    kind: Option<String>,
    mime: Option<String>,
    image: Progress,
    /// Whether it has opened a candidate in the store.
    began: bool,
    /// Whether its data were skipped, since its type was not an image's.
    passed: bool,
    urls: Vec<String>,
    file_mime: Option<String>,
    file_uri: Option<String>,
    text: Vec<u8>,
    signature: Option<Vec<u8>>,
    /// An image further in, of which only this element's type says what it is.
    pending: Option<Meta>,
    mark: Mark,
}

/// What is done with the current string.
#[derive(Debug, Default)]
enum Text {
    #[default]
    Skip,
    Capture {
        bytes: Vec<u8>,
        max: usize,
    },
    Data {
        at: u64,
        began: bool,
    },
    Uri {
        reader: UriReader,
        at: u64,
    },
}

/// What one document said, kept apart until it ends, so that a repeated member can retract it.
#[derive(Debug, Default)]
struct Document {
    finish_reason: Option<String>,
    /// Google's own reason, where a gateway kept it beside its translation.
    native_reason: Option<String>,
    finish_message: Option<String>,
    block_reason: Option<String>,
    block_reason_message: Option<String>,
    rai: Option<String>,
    usage: Option<Usage>,
    model: Option<String>,
    model_version: Option<String>,
    id: Option<String>,
    status: Option<String>,
    code: Option<String>,
    is_interaction: bool,
    has_error: bool,
    /// Images API and Imagen: a complete list, which needs no reason to have ended.
    has_list: bool,
    completed: bool,
    /// Where an image with corrupt base64 stands. Reported when the document ends, since a repeated
    /// member can retract it.
    corrupt: Option<u64>,
}

/// An error on its way through, copied as it is spelled.
#[derive(Debug)]
struct Raw {
    from: u64,
    to: Option<u64>,
    depth: usize,
    bytes: Vec<u8>,
}

/// Reads one response, in one document or many.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) store: Store,
    pub(super) keep_signature: bool,
    pub(super) collector: Option<Box<Collector>>,
    pub(super) answer: Answer,
    /// Documents that have ended.
    pub(super) events: u64,
    pub(super) has_content: bool,
    /// Whether the response itself said that it had ended.
    pub(super) ended: bool,
    /// Whether data count as an image even where their base64 is corrupt.
    pub(super) takes_any: bool,
    /// Whether the ends of this document were added by a repair, so that they end nothing.
    pub(super) is_cut: bool,
    document: Document,
    frames: Vec<Frame>,
    elements: Vec<Element>,
    text: Text,
    raw: Option<Raw>,
    /// Where the token just read was a comma.
    comma: Option<u64>,
    /// The span that the token just read has ended.
    ended_span: Option<usize>,
}

impl Reader {
    pub(super) fn new(mode: Mode) -> Self {
        Self { store: Store::new(mode), ..Self::default() }
    }

    /// Copies what `bytes` hold of an error. Called after every piece.
    pub(super) fn copy_raw(&mut self, bytes: &[u8], at: u64) {
        let Some(raw) = &mut self.raw else { return };
        let end = at + bytes.len() as u64;
        let from = raw.from.clamp(at, end) - at;
        let to = raw.to.unwrap_or(end).clamp(at, end) - at;
        if from < to {
            let room = MAX_ERROR.saturating_sub(raw.bytes.len());
            let piece = &bytes[from as usize..to as usize];
            raw.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        if raw.to.is_some() {
            if let Some(raw) = self.raw.take() {
                self.answer.error = Some([b"{\"error\":", &raw.bytes[..], b"}"].concat().into());
            }
        }
    }

    /// A line end that the framing put between two pieces of an error.
    pub(super) fn copy_newline(&mut self) {
        if let Some(raw) =
            self.raw.as_mut().filter(|raw| raw.to.is_none() && raw.bytes.len() < MAX_ERROR)
        {
            raw.bytes.push(b'\n');
        }
    }

    /// Returns what was read, as far as it got. `failed_at` is where it broke.
    pub(super) fn finish(mut self, failed_at: Option<u64>) -> Answer {
        if let Some(at) = failed_at {
            self.salvage(at);
        }
        self.end_document(false);
        let mut answer = self.answer;
        answer.signatures =
            self.collector.take().map(|collector| collector.finish()).unwrap_or_default();
        let intact = self.store.is_intact();
        if let Some(kept) = self.store.kept.take() {
            if let Some(part) = kept.meta.part.and_then(|part| answer.parts.get_mut(part)) {
                part.is_final = true;
            }
            if intact {
                answer.image = Some(Image {
                    bytes: Bytes::from(self.store.into_bytes()),
                    len: kept.len,
                    mime: kept.meta.mime,
                    is_thought: kept.is_thought,
                    width: kept.size.map(|(width, _)| width),
                    height: kept.size.map(|(_, height)| height),
                    signature: kept.meta.signature.map(Bytes::from),
                });
            }
        }
        answer
    }

    /// Keeps an image that was complete when the response broke: it has been paid for.
    fn salvage(&mut self, at: u64) {
        while let Some(element) = self.elements.pop() {
            let is_thought = self.is_thought(&element).unwrap_or(element.thought == Some(true));
            if element.image == Progress::Done(false) && is_picture(&element) {
                self.answer.images += 1;
                self.answer.thought_images += u32::from(is_thought);
                let signature = element.signature.filter(|_| self.keep_signature);
                let meta = Meta { mime: element.mime.unwrap_or_default(), signature, part: None };
                // Nothing reports a second fault.
                let _ = self.store.commit(meta, is_thought, at);
            } else if let Some(meta) = element.pending {
                let _ = self.store.commit(meta, is_thought, at);
            }
        }
    }

    /// Abandons the current document, which broke off in the middle.
    pub(super) fn abandon(&mut self) {
        self.frames.clear();
        self.elements.clear();
        self.text = Text::Skip;
        self.raw = None;
        self.end_document(false);
    }

    fn mark(&self) -> Mark {
        Mark {
            text: self.answer.text.len(),
            images: self.answer.images,
            thought_images: self.answer.thought_images,
            urls: self.answer.image_urls.len(),
            parts: self.answer.parts.len(),
            had_image: self.store.kept.is_some(),
            corrupt: self.document.corrupt,
        }
    }

    /// Retracts everything since a mark.
    fn roll_back(&mut self, mark: Mark, at: u64) -> Result<(), ScanError> {
        if self.answer.images != mark.images {
            if mark.had_image {
                return Err(ScanError::new(ErrorKind::Duplicate, at));
            }
            self.store.kept = None;
        }
        self.answer.text.truncate(mark.text);
        self.answer.images = mark.images;
        self.answer.thought_images = mark.thought_images;
        self.answer.image_urls.truncate(mark.urls);
        self.answer.parts.truncate(mark.parts);
        self.document.corrupt = mark.corrupt;
        self.ended_span = None;
        Ok(())
    }

    /// Moves what a document said into the response. `counts` is whether the document is complete.
    fn end_document(&mut self, counts: bool) {
        let document = std::mem::take(&mut self.document);
        let answer = &mut self.answer;
        let status = document.status.filter(|status| {
            document.is_interaction && !matches!(&**status, "in_progress" | "queued")
        });
        answer.has_candidates |= document.code.is_some();
        let finish_reason =
            document.native_reason.or(document.finish_reason).or(document.code).or(status);
        self.ended |=
            finish_reason.is_some() || document.block_reason.is_some() || document.has_error;
        self.ended |= counts && (document.has_list || document.completed);
        self.has_content |= self.ended;
        for (to, from) in [
            (&mut answer.finish_reason, finish_reason),
            (&mut answer.finish_message, document.finish_message),
            (&mut answer.block_reason, document.block_reason),
            (&mut answer.block_reason_message, document.block_reason_message),
            (&mut answer.rai_filtered_reason, document.rai),
            (&mut answer.model_version, document.model_version.or(document.model)),
            (&mut answer.response_id, document.id),
        ] {
            if from.is_some() {
                *to = from;
            }
        }
        if document.usage.is_some() {
            answer.usage = document.usage;
        }
        self.events += u64::from(counts);
    }

    fn top(&self) -> (Node, Field) {
        self.frames.last().map_or((Node::Skip, Field::Unknown), |frame| (frame.node, frame.field))
    }

    /// Retracts what a member said that is now repeated.
    fn forget(&mut self, node: Node, member: Field, at: u64) -> Result<(), ScanError> {
        use Field as F;
        if let Some(slot) = self.slot(node, member) {
            *slot = None;
            return Ok(());
        }
        let document = &mut self.document;
        match (node, member) {
            (Node::Root, F::Feedback) => {
                document.block_reason = None;
                document.block_reason_message = None;
            }
            (Node::Root, F::Usage) => document.usage = None,
            (_, F::Error) => {
                self.raw = None;
                if std::mem::take(&mut document.has_error) {
                    self.answer.error = None;
                }
            }
            (Node::Root, F::Errors) => document.code = None,
            (_, F::Provider) => document.native_reason = None,
            (Node::Usage, F::Details) => {
                if let Some(usage) = &mut document.usage {
                    usage.candidates_details.clear();
                }
            }
            (Node::Usage | Node::UsageItem | Node::UsageOutput, _) => self.count(0),
            (
                Node::Root,
                F::Candidates
                | F::Choices
                | F::Predictions
                | F::Data
                | F::Items
                | F::Delta
                | F::Content
                | F::Response
                | F::Interaction,
            )
            | (Node::Candidate | Node::Item | Node::Message, F::Content)
            | (Node::Item, F::Summary)
            | (Node::Content, F::Parts)
            | (Node::Choice, F::Message | F::Delta)
            | (Node::Message, F::Images) => {
                if node == Node::Root && matches!(member, F::Candidates | F::Choices) {
                    document.finish_reason = None;
                    document.native_reason = None;
                    document.finish_message = None;
                }
                if let Some(element) = self.elements.last_mut() {
                    element.pending = None;
                    let mark = element.mark;
                    self.roll_back(mark, at)?;
                }
            }
            _ => {
                if let Some(element) = self.elements.last_mut() {
                    match member {
                        F::Inline => {
                            element.image = Progress::None;
                            element.passed = false;
                            element.mime = None;
                        }
                        F::Data | F::Base64 | F::Uri => {
                            element.image = Progress::None;
                            element.passed = false;
                            element.urls.clear();
                        }
                        F::File => {
                            element.file_uri = None;
                            element.file_mime = None;
                        }
                        F::Thought => element.thought = None,
                        F::Text => element.text.clear(),
                        F::Signature => element.signature = None,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns whether an element is known to be a draft, or known not to be.
    fn is_thought(&self, element: &Element) -> Option<bool> {
        let of_type = |kind: &str| kind.contains("thought");
        match element.node {
            Node::Part => element.thought,
            Node::Root => element.kind.as_deref().map(|kind| kind.contains("partial_image")),
            Node::Item => {
                let outer = self
                    .elements
                    .iter()
                    .filter(|outer| outer.node == Node::Item && outer.at != element.at);
                let mut chain: Vec<&Element> = outer.collect();
                chain.push(element);
                if chain.iter().any(|item| {
                    item.thought == Some(true) || item.kind.as_deref().is_some_and(of_type)
                }) {
                    return Some(true);
                }
                chain[0].kind.is_some().then_some(false)
            }
            _ => Some(false),
        }
    }

    /// The first bytes of an image's base64.
    fn begin_image(&mut self, at: u64) -> Result<(), ScanError> {
        let Some(last) = self.elements.last() else { return Ok(()) };
        let is_image = match last.node {
            Node::Part | Node::Item => last.mime.as_deref().is_some_and(is_image),
            _ => true,
        };
        let is_thought = self.is_thought(last);
        for element in &mut self.elements {
            element.image = Progress::None;
        }
        if let Some(element) = self.elements.last_mut() {
            element.image = Progress::Reading;
            element.began = true;
        }
        self.has_content = true;
        self.store.begin(at, is_image, is_thought)
    }

    fn end_image(&mut self) -> Result<(), ScanError> {
        let end = self.store.end()?;
        if let Some(element) = self.elements.last_mut() {
            let takes_any = self.takes_any;
            element.image = end.map_or(Progress::None, |good| Progress::Done(!good && !takes_any));
        }
        Ok(())
    }

    fn begin_element(&mut self, node: Node, at: u64, in_array: bool) {
        let (comma, mark) = (self.comma, self.mark());
        let element = Element { node, at, comma, in_array, mark, ..Element::default() };
        self.elements.push(element);
        if let (Node::Part, Some(collector)) = (node, &mut self.collector) {
            collector.begin_part();
        }
    }

    fn end_element(&mut self, end: u64) -> Result<(), ScanError> {
        let Some(mut element) = self.elements.pop() else { return Ok(()) };
        if let (Node::Part, Some(collector)) = (element.node, &mut self.collector) {
            collector.end_part(&element.text, element.signature.as_ref());
        }
        let known = self.is_thought(&element);
        let outer = self.elements.iter().position(|outer| outer.node == Node::Item);
        let waits = element.node == Node::Item && known.is_none() && outer.is_some();
        let is_thought = known.unwrap_or(false);

        if element.passed && is_picture(&element) {
            return Err(ScanError::new(ErrorKind::Duplicate, end));
        }
        if let (Progress::Done(corrupt), true) = (element.image, is_picture(&element)) {
            self.answer.images += 1;
            self.answer.thought_images += u32::from(is_thought);
            if corrupt {
                self.document.corrupt.get_or_insert(element.at);
                self.store.discard();
                return Ok(());
            }
            let part = self.list_span(&element, end, is_thought);
            let mime = element.mime.take().unwrap_or_default();
            let meta = Meta {
                mime,
                signature: element.signature.take().filter(|_| self.keep_signature),
                part,
            };
            match outer.and_then(|outer| self.elements.get_mut(outer)).filter(|_| waits) {
                Some(outer) => {
                    outer.pending = Some(meta);
                    outer.began = true;
                }
                None => self.store.commit(meta, is_thought, end)?,
            }
        } else if let Some(meta) = element.pending.take() {
            if is_thought {
                for part in self
                    .answer
                    .parts
                    .iter_mut()
                    .skip(element.mark.parts)
                    .filter(|part| !part.is_thought)
                {
                    part.is_thought = true;
                    self.answer.thought_images += 1;
                }
            }
            self.store.commit(meta, is_thought, end)?;
        } else if element.began && self.store.is_open() {
            self.store.cancel(end)?;
        }

        if let (Some(uri), Some(mime)) = (element.file_uri.take(), &element.file_mime) {
            if is_image(mime) {
                element.urls.push(uri);
            }
        }
        let shows = element.node != Node::Item
            || element.kind.as_deref() == Some("image")
            || is_picture(&element);
        if shows && !is_thought {
            self.has_content |= !element.urls.is_empty();
            let room = MAX_LISTED.saturating_sub(self.answer.image_urls.len());
            self.answer.image_urls.extend(element.urls.into_iter().take(room));
        }
        if waits {
            if let Some(outer) = outer.and_then(|outer| self.elements.get_mut(outer)) {
                let room = MAX_TEXT.saturating_sub(outer.text.len());
                outer.text.extend_from_slice(&element.text[..element.text.len().min(room)]);
            }
        } else if !is_thought {
            self.append_text(&element.text);
        }
        if element.node == Node::Root {
            let kind = element.kind.as_deref().unwrap_or_default();
            self.document.completed |= kind.ends_with(".completed") || kind.ends_with(".complete");
        }
        Ok(())
    }

    fn list_span(&mut self, element: &Element, end: u64, is_thought: bool) -> Option<usize> {
        if self.answer.parts.len() == MAX_LISTED {
            return None;
        }
        self.answer.parts.push(PartSpan {
            span: element.at..end,
            is_thought,
            is_final: false,
            in_array: element.in_array,
            comma_before: element.comma,
            comma_after: None,
        });
        self.ended_span = Some(self.answer.parts.len() - 1);
        self.ended_span
    }

    fn append_text(&mut self, text: &[u8]) {
        let room = MAX_TEXT.saturating_sub(self.answer.text.len());
        let text = &text[..text.len().min(room)];
        let valid = match std::str::from_utf8(text) {
            Ok(text) => text,
            // Only a character that the bound has cut.
            Err(error) => std::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default(),
        };
        self.answer.text.push_str(valid);
    }

    /// Returns where the text of a member is kept that stands for itself.
    fn slot(&mut self, node: Node, member: Field) -> Option<&mut Option<String>> {
        use Field as F;
        let document = &mut self.document;
        let element = self.elements.last_mut();
        Some(match member {
            F::FinishReason => &mut document.finish_reason,
            F::NativeReason => &mut document.native_reason,
            F::FinishMessage => &mut document.finish_message,
            F::BlockReason => &mut document.block_reason,
            F::BlockMessage => &mut document.block_reason_message,
            F::Rai => &mut document.rai,
            F::Model => &mut document.model,
            F::ModelVersion => &mut document.model_version,
            F::Id => &mut document.id,
            F::Status => &mut document.status,
            F::Code => &mut document.code,
            F::Type => &mut element?.kind,
            F::Mime if node == Node::File => &mut element?.file_mime,
            F::Mime => &mut element?.mime,
            F::Uri if node == Node::File => &mut element?.file_uri,
            _ => return None,
        })
    }

    fn capture_into(&mut self, text: String) {
        use Field as F;
        let (node, member) = self.top();
        match (node, member) {
            (_, F::Object) => self.document.is_interaction |= text == "interaction",
            (_, F::Modality) => {
                let usage = self.document.usage.as_mut();
                if let Some(item) = usage.and_then(|usage| usage.candidates_details.last_mut()) {
                    item.modality = text;
                }
            }
            (Node::Usage | Node::UsageItem | Node::UsageOutput, _) => {
                if let Ok(count) = text.parse() {
                    self.count(count);
                }
            }
            (_, F::Signature | F::Text) => {
                self.has_content |= member == F::Text && !text.is_empty();
                match self.elements.last_mut() {
                    Some(element) if member == F::Text => element.text = text.into_bytes(),
                    Some(element) => element.signature = Some(text.into_bytes()),
                    None => {}
                }
            }
            _ => {
                self.document.is_interaction |= (node, member) == (Node::Root, F::Type)
                    && ["interaction.", "step.", "content."].iter().any(|it| text.starts_with(it));
                if let Some(slot) = self.slot(node, member) {
                    *slot = Some(text);
                }
            }
        }
    }

    fn count(&mut self, count: u64) {
        use Field as F;
        let (_, member) = self.top();
        let Some(usage) = &mut self.document.usage else { return };
        match member {
            F::CountPrompt => usage.prompt = count,
            F::CountCandidates => usage.candidates = count,
            F::CountThoughts => usage.thoughts = count,
            F::CountTotal => usage.total = count,
            F::CountImages => {
                usage.candidates_details.retain(|item| item.modality != "IMAGE");
                usage
                    .candidates_details
                    .push(TokenCount { modality: "IMAGE".to_owned(), tokens: count });
            }
            F::Tokens => {
                if let Some(item) = usage.candidates_details.last_mut() {
                    item.tokens = count;
                }
            }
            _ => {}
        }
    }

    /// Takes what was found in an address or a Markdown text.
    fn found(&mut self, found: Found<'_>, at: u64) -> Result<(), ScanError> {
        let in_text = self.top().0 == Node::Message;
        match found {
            Found::Text(text) => {
                self.has_content |= !text.is_empty();
                if let Some(element) = self.elements.last_mut() {
                    let room = MAX_TEXT.saturating_sub(element.text.len());
                    element.text.extend_from_slice(&text[..text.len().min(room)]);
                }
            }
            Found::Begin(mime) => {
                if let Some(element) = self.elements.last_mut() {
                    element.mime = Some(mime);
                }
                self.begin_image(at)?;
            }
            Found::Base64(piece) => {
                self.store.piece(piece)?;
            }
            Found::End => {
                self.end_image()?;
                if !in_text {
                    return Ok(());
                }
                let Some(element) = self.elements.last_mut() else { return Ok(()) };
                let mime = element.mime.take().unwrap_or_default();
                if std::mem::replace(&mut element.image, Progress::None) == Progress::Done(false) {
                    self.answer.images += 1;
                    self.store.commit(Meta { mime, ..Meta::default() }, false, at)?;
                } else {
                    // A text that only looks like an image is a text.
                    self.store.cancel(at)?;
                }
            }
            Found::Url(url) => {
                let is_link = url.starts_with("http") || !in_text;
                if let Some(element) = self
                    .elements
                    .last_mut()
                    .filter(|element| is_link && element.urls.len() < MAX_LISTED)
                {
                    element.urls.push(url);
                }
            }
        }
        Ok(())
    }

    fn begin_error(&mut self, at: u64) {
        self.raw = Some(Raw { from: at, to: None, depth: self.frames.len(), bytes: Vec::new() });
    }

    fn end_error(&mut self, end: u64) {
        if let Some(raw) = &mut self.raw {
            raw.to = Some(end);
            self.document.has_error = true;
            self.has_content = true;
        }
    }
}

/// Returns whether an element with data in it is an image by what it says of its type.
fn is_picture(element: &Element) -> bool {
    match (element.node, element.mime.as_deref()) {
        (Node::Item, None | Some("")) => {
            matches!(element.kind.as_deref(), Some("image" | "image_generation_call"))
        }
        // Without a type, data in a part can only be the image that was asked for.
        (Node::Part, None | Some("")) => true,
        (Node::Part | Node::Item, Some(mime)) => is_image(mime),
        _ => true,
    }
}

/// Nodes of which each is an [`Element`].
fn is_element(node: Node) -> bool {
    matches!(
        node,
        Node::Root
            | Node::Part
            | Node::Prediction
            | Node::ImageEntry
            | Node::Message
            | Node::MessagePart
            | Node::DataItem
            | Node::Item
    )
}

impl Sink for Reader {
    fn begin(&mut self, object: bool, at: u64) -> Result<(), ScanError> {
        let (parent, member) = self.top();
        let in_array = matches!(
            parent,
            Node::RootArray
                | Node::Parts
                | Node::Candidates
                | Node::Predictions
                | Node::Choices
                | Node::Images
                | Node::MessageParts
                | Node::DataList
                | Node::Items
                | Node::UsageList
                | Node::Errors
        );
        let node = match self.frames.last_mut() {
            None if object => Node::Root,
            None => Node::RootArray,
            Some(frame) => {
                let first = frame.count == 0;
                frame.count += 1;
                child(parent, member, object, first)
            }
        };
        match (node, parent) {
            (Node::Root, Node::Skip | Node::RootArray) => self.document = Document::default(),
            (Node::Usage, _) => self.document.usage = Some(Usage::default()),
            (Node::UsageItem, _) => {
                if let Some(usage) = self
                    .document
                    .usage
                    .as_mut()
                    .filter(|usage| usage.candidates_details.len() < MAX_LISTED)
                {
                    usage.candidates_details.push(TokenCount::default());
                }
            }
            (Node::DataList | Node::Predictions, _) => {
                self.answer.has_candidates = true;
                self.document.has_list = true;
            }
            (Node::Other, _) => self.has_content = true,
            _ => {}
        }
        if member == Field::Error {
            self.begin_error(at);
        }
        if is_element(node) {
            self.begin_element(node, at, in_array);
        }
        self.frames.push(Frame { node, field: Field::Unknown, seen: 0, count: 0 });
        self.comma = None;
        self.ended_span = None;
        Ok(())
    }

    fn end(&mut self, end: u64) -> Result<(), ScanError> {
        self.comma = None;
        self.ended_span = None;
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        if is_element(frame.node) {
            self.end_element(end)?;
        }
        if self.raw.as_ref().is_some_and(|raw| raw.to.is_none() && raw.depth == self.frames.len()) {
            if frame.count == 0 {
                // `"error": {}` says that there is none.
                self.raw = None;
            } else {
                self.end_error(end);
            }
        }
        if frame.node == Node::Root && matches!(self.top().0, Node::Skip | Node::RootArray) {
            if let Some(at) = self.document.corrupt {
                return Err(ScanError::new(ErrorKind::Base64, at));
            }
            self.end_document(!self.is_cut);
        }
        Ok(())
    }

    fn comma(&mut self, at: u64) {
        self.comma = Some(at);
        if let Some(part) = self.ended_span.take().and_then(|part| self.answer.parts.get_mut(part))
        {
            part.comma_after = Some(at);
        }
    }

    fn key(&mut self, key: Option<&[u8]>, end: u64) -> Result<(), ScanError> {
        self.comma = None;
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        let member = key.map_or(Field::Unknown, |key| field(frame.node, key));
        frame.field = member;
        if member == Field::Unknown {
            return Ok(());
        }
        let node = frame.node;
        let bit = 1_u64 << (member as u8);
        let repeated = frame.seen & bit != 0;
        frame.seen |= bit;
        if node == Node::Root {
            use Field as F;
            self.answer.has_candidates |= matches!(
                member,
                F::Candidates
                    | F::Choices
                    | F::Predictions
                    | F::Items
                    | F::Delta
                    | F::Base64
                    | F::FinishReason
            );
            self.document.is_interaction |= matches!(member, F::Items | F::Interaction);
        }
        if repeated { self.forget(node, member, end) } else { Ok(()) }
    }

    fn string_begin(&mut self, at: u64) -> Result<(), ScanError> {
        use Field as F;
        self.comma = None;
        self.ended_span = None;
        if let Some(frame) = self.frames.last_mut() {
            frame.count += 1;
        }
        let capture = |max| Text::Capture { bytes: Vec::new(), max };
        let (node, member) = self.top();
        self.text = match (node, member) {
            (_, F::Unknown) | (Node::Skip, _) => Text::Skip,
            (Node::Inline, F::Data) => {
                let foreign = self
                    .elements
                    .last()
                    .and_then(|element| element.mime.as_deref())
                    .is_some_and(|mime| !mime.is_empty() && !is_image(mime));
                if let (false, Some(collector)) = (foreign, &mut self.collector) {
                    collector.begin_data();
                }
                if let Some(element) = self.elements.last_mut() {
                    element.passed = foreign;
                }
                if foreign { Text::Skip } else { Text::Data { at, began: false } }
            }
            (Node::Item, F::Data)
            | (Node::Prediction | Node::DataItem | Node::ImageEntry | Node::Root, F::Base64) => {
                Text::Data { at, began: false }
            }
            (Node::Message, F::Content | F::Refusal) => {
                Text::Uri { reader: UriReader::markdown(), at }
            }
            (Node::File, F::Uri) => capture(MAX_TEXT),
            (_, F::Uri) => Text::Uri { reader: UriReader::address(), at },
            (_, F::Text | F::FinishMessage | F::BlockMessage | F::Rai) => capture(MAX_TEXT),
            (_, F::Signature) if self.keep_signature || self.collector.is_some() => {
                capture(MAX_SIGNATURE)
            }
            (_, F::Signature) => Text::Skip,
            (Node::Root, F::Error) => {
                self.begin_error(at);
                Text::Skip
            }
            _ => capture(MAX_NAME),
        };
        Ok(())
    }

    fn string_base64(&mut self, input: &[u8]) -> Result<usize, ScanError> {
        if let Text::Data { at, began: false } = self.text {
            // Anything but a symbol goes the long way.
            if !input[0].is_ascii_alphanumeric() {
                return Ok(0);
            }
            self.text = Text::Data { at, began: true };
            self.begin_image(at)?;
        }
        if !matches!(self.text, Text::Data { .. }) {
            return Ok(0);
        }
        let taken = self.store.run(input)?;
        if let Some(collector) = &mut self.collector {
            collector.data(input.get(..taken).unwrap_or_default());
        }
        Ok(taken)
    }

    fn checks_string(&self) -> bool {
        matches!(self.text, Text::Data { .. })
    }

    fn string_piece(&mut self, piece: &[u8]) -> Result<bool, ScanError> {
        if piece.is_empty() {
            return Ok(true);
        }
        match &mut self.text {
            Text::Skip => {}
            Text::Capture { bytes, max } => {
                let room = max.saturating_sub(bytes.len());
                bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            Text::Data { at, began } => {
                let (at, first) = (*at, !std::mem::replace(began, true));
                if first {
                    self.begin_image(at)?;
                }
                if let Some(collector) = &mut self.collector {
                    collector.data(piece);
                }
                return self.store.piece(piece);
            }
            Text::Uri { .. } => {
                if let Text::Uri { mut reader, at } = std::mem::replace(&mut self.text, Text::Skip)
                {
                    reader.push(piece, &mut |found| self.found(found, at))?;
                    self.text = Text::Uri { reader, at };
                }
            }
        }
        Ok(false)
    }

    fn string_escape(&mut self, c: char) -> Result<(), ScanError> {
        if let Text::Data { at, began } = &mut self.text {
            let (at, first) = (*at, !std::mem::replace(began, true));
            if first {
                self.begin_image(at)?;
            }
            if let Some(collector) = &mut self.collector {
                // Base64 is ASCII; whatever else is spelled here makes it corrupt in both decoders.
                collector.data(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            return self.store.escape(c);
        }
        let mut buffer = [0; 4];
        self.string_piece(c.encode_utf8(&mut buffer).as_bytes()).map(|_| ())
    }

    fn string_end(&mut self, end: u64) -> Result<(), ScanError> {
        match std::mem::replace(&mut self.text, Text::Skip) {
            Text::Skip => {
                if self.top() == (Node::Root, Field::Error) {
                    match self.raw.as_ref().map(|raw| raw.from + 2 == end) {
                        Some(true) => self.raw = None,
                        _ => self.end_error(end),
                    }
                }
            }
            Text::Capture { bytes, .. } => {
                let text = String::from_utf8(bytes).unwrap_or_else(|error| {
                    // Only a character that the bound has cut.
                    let valid = error.utf8_error().valid_up_to();
                    let mut bytes = error.into_bytes();
                    bytes.truncate(valid);
                    String::from_utf8(bytes).unwrap_or_default()
                });
                self.capture_into(text);
            }
            Text::Data { began, .. } => {
                if began {
                    self.end_image()?;
                }
                if let Some(collector) = &mut self.collector {
                    collector.end_data();
                }
            }
            Text::Uri { mut reader, at } => reader.finish(&mut |found| self.found(found, at))?,
        }
        Ok(())
    }

    fn scalar(&mut self, scalar: Scalar<'_>) -> Result<(), ScanError> {
        use Field as F;
        self.comma = None;
        self.ended_span = None;
        if let Some(frame) = self.frames.last_mut() {
            frame.count += 1;
        }
        let (node, member) = self.top();
        match scalar {
            Scalar::Bool(thought) if member == F::Thought => {
                if let Some(element) = self.elements.last_mut() {
                    element.thought = Some(thought);
                }
            }
            Scalar::Number(digits) => match (node, member) {
                (_, F::FinishReason | F::NativeReason | F::BlockReason | F::Code) => {
                    self.capture_into(String::from_utf8_lossy(digits).into_owned());
                }
                (Node::Usage | Node::UsageItem | Node::UsageOutput, _) => {
                    let spelled = std::str::from_utf8(digits).unwrap_or_default();
                    // Some gateways write counts as floats.
                    let count = spelled
                        .parse()
                        .or_else(|_| spelled.parse::<f64>().map(|count| count as u64));
                    self.count(count.unwrap_or(0));
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }
}
