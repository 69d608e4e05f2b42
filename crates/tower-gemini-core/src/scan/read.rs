//! Builds an [`Answer`] from the tokens that the lexer passes on.
//!
//! Nothing here collects more than small strings: an image's base64 goes to the [`Store`] in the
//! pieces it arrives in.

use bytes::Bytes;

use super::answer::{Answer, Image, PartSpan, TokenCount, Usage};
use super::error::{ErrorKind, ScanError};
use super::paths::{Field, Member, Node, is_image, member};
use super::signatures::{PartKey, PartSignature};
use super::store::{Found, Mode, Store};
use super::uri::{Piece, UriReader, is_blank, is_link};

/// `Answer::text` and `finishMessage` are cut here.
const MAX_TEXT: usize = 8 << 10;
/// Names, reasons, ids.
const MAX_NAME: usize = 1 << 10;
/// `Answer::error` is cut here.
const MAX_ERROR: usize = 64 << 10;
/// Signatures are kept up to here: the largest recorded has 2.91 MB, and CLIProxyAPI stops at 32
/// MiB.
const MAX_SIGNATURE: usize = 32 << 20;
/// All listed signatures of one response together: ten drafts with one each have been seen.
const MAX_SIGNATURES: usize = 64 << 20;
/// Parts with a signature that are listed; no model makes more than a dozen.
const MAX_SIGNED: usize = 64;
/// Spans and addresses are listed up to here; no model makes more than a handful.
const MAX_LISTED: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Frame {
    /// What it is; of an array, what each of its objects is.
    node: Node,
    is_array: bool,
    member: Member,
    /// One bit a member that has been met.
    seen: u64,
    /// Values begun.
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
    said: Said,
    image: Progress,
    /// Whether it has opened a candidate in the store.
    began: bool,
    /// Whether its data were skipped, since its type was not an image's.
    passed: bool,
    urls: Vec<String>,
    text: Vec<u8>,
    /// Words have been read since its last image.
    has_words: bool,
    /// The text as it is, with the images that it shows, where signatures are kept.
    whole_text: Vec<u8>,
    signature: Option<Vec<u8>>,
    /// The key of its image.
    key: Option<PartKey>,
    /// An image further in, of which only this element's type says what it is.
    pending: Option<Found>,
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
        /// How much of `data:` it begins with, as some relays' base64 does.
        scheme: usize,
    },
    /// An address; `in_text` for a text that may show images.
    Uri {
        reader: UriReader,
        at: u64,
        in_text: bool,
    },
}

/// A text that shows an image, cut by the deltas of a stream.
#[derive(Debug)]
struct Carried {
    reader: UriReader,
    at: u64,
    /// The type of the image whose base64 has begun.
    mime: Option<String>,
}

/// Short texts, by the member that said them last.
#[derive(Debug, Default)]
struct Said(Vec<(Field, String)>);

impl Said {
    fn get(&self, field: Field) -> Option<&str> {
        self.0.iter().find(|said| said.0 == field).map(|said| &*said.1)
    }

    fn set(&mut self, field: Field, text: String) {
        self.take(field);
        self.0.push((field, text));
    }

    fn take(&mut self, field: Field) -> Option<String> {
        let at = self.0.iter().position(|said| said.0 == field)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// What one document said, kept apart until it ends, so that a repeated member can retract it.
#[derive(Debug, Default)]
struct Document {
    said: Said,
    usage: Option<Usage>,
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
    pub(super) answer: Answer,
    /// Documents that have ended.
    pub(super) events: u64,
    pub(super) has_content: bool,
    /// Whether the response itself said that it had ended.
    pub(super) ended: bool,
    /// Whether the event came that is the last one of a stream.
    pub(super) closed: bool,
    /// Whether `[DONE]` may stand in place of a value.
    pub(super) takes_done: bool,
    /// Whether data count as an image even where their base64 is corrupt.
    pub(super) takes_any: bool,
    /// Whether the ends of this document were added by a repair, so that they end nothing.
    pub(super) is_cut: bool,
    document: Document,
    frames: Vec<Frame>,
    elements: Vec<Element>,
    text: Text,
    carried: Option<Carried>,
    raw: Option<Raw>,
    /// Where the token just read was a comma.
    comma: Option<u64>,
    /// The span that the token just read has ended.
    ended_span: Option<usize>,
    /// A text stands behind the last image, or the beginning of another candidate.
    pub(super) after_text: bool,
}

impl Reader {
    pub(super) fn new(mode: Mode) -> Self {
        // No deeper than an image in its part: one allocation, of a few hundred bytes.
        Self { store: Store::new(mode), frames: Vec::with_capacity(8), ..Self::default() }
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
        if let Some(carried) = self.carried.take() {
            self.elements.push(Element { node: Node::Message, ..Element::default() });
            let mut text = self.resume(carried);
            if let Text::Uri { reader, at, .. } = &mut text {
                let at = *at;
                // Nothing reports a second fault.
                let _ = reader.finish(&mut |found| self.found(found, at, true));
            }
            let _ = self.end_element(0);
        }
        if let Some(at) = failed_at {
            // An image that was complete has been paid for. Its part is not.
            let parts = self.answer.parts.len();
            while !self.elements.is_empty() {
                // Nothing reports a second fault.
                let _ = self.end_element(at);
            }
            self.answer.parts.truncate(parts);
        }
        self.end_document(false);
        let mut answer = self.answer;
        for Found { image, part } in self.store.end_response() {
            if let Some(part) = part.and_then(|part| answer.parts.get_mut(part)) {
                part.is_final = true;
            }
            answer.earlier_images.extend(answer.image.replace(image));
        }
        answer
    }

    /// Abandons the current document, which broke off in the middle.
    pub(super) fn abandon(&mut self) {
        self.frames.clear();
        self.elements.clear();
        let _ = self.store.cancel(0);
        self.text = Text::Skip;
        self.carried = None;
        self.raw = None;
        self.end_document(false);
    }

    /// Goes on reading a text that the deltas of a stream have cut.
    fn resume(&mut self, carried: Carried) -> Text {
        if let Some(element) = self.elements.last_mut() {
            if let Some(mime) = carried.mime {
                element.said.set(Field::Mime, mime);
                element.image = Progress::Reading;
                element.began = true;
            }
        }
        Text::Uri { reader: carried.reader, at: carried.at, in_text: true }
    }

    /// Whether it is a candidate behind the first.
    fn is_other(&self) -> bool {
        self.frames.iter().any(|it| matches!(it.node, Node::OtherCandidate | Node::OtherChoice))
    }

    /// Whether the text that is being read is one of a stream's deltas, which go on where the one
    /// before ended.
    fn is_delta(&self) -> bool {
        let outer = self.frames.len().checked_sub(2).and_then(|outer| self.frames.get(outer));
        outer.is_some_and(|frame| frame.node == Node::Choice && frame.member.field == Field::Delta)
    }

    fn mark(&self) -> Mark {
        Mark {
            text: self.answer.text.len(),
            images: self.answer.images,
            thought_images: self.answer.thought_images,
            urls: self.answer.image_urls.len(),
            parts: self.answer.parts.len(),
            had_image: !self.store.is_empty(),
            corrupt: self.document.corrupt,
        }
    }

    /// Retracts everything since a mark.
    fn roll_back(&mut self, mark: Mark, at: u64) -> Result<(), ScanError> {
        if self.answer.images != mark.images {
            // Candidates have no marks of their own.
            if mark.had_image || self.is_other() {
                return Err(ScanError::new(ErrorKind::Duplicate, at));
            }
            self.store.clear();
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
        use Field as F;
        let document = std::mem::take(&mut self.document);
        let mut said = document.said;
        let answer = &mut self.answer;
        answer.has_candidates |= said.get(F::Code).is_some();
        if let Some(status) = said.get(F::Status) {
            answer.status = Some(status.to_owned());
        }
        if !document.is_interaction || matches!(said.get(F::Status), Some("in_progress" | "queued"))
        {
            said.take(F::Status);
        }
        if counts {
            answer.event_id = said.take(F::EventId).or(answer.event_id.take());
        }
        self.closed |= counts && (document.completed || document.has_error);
        let reasons = [F::NativeReason, F::FinishReason, F::Code, F::Status];
        let says = |field: &F| said.get(*field).is_some();
        self.ended |= reasons.iter().any(says) || says(&F::BlockReason) || document.has_error;
        self.ended |= counts && (document.has_list || document.completed);
        self.has_content |= self.ended;
        for (to, fields) in [
            (&mut answer.finish_reason, &reasons[..]),
            (&mut answer.finish_message, &[F::FinishMessage]),
            (&mut answer.block_reason, &[F::BlockReason]),
            (&mut answer.block_reason_message, &[F::BlockMessage]),
            (&mut answer.rai_filtered_reason, &[F::Rai]),
            (&mut answer.model_version, &[F::ModelVersion, F::Model]),
            (&mut answer.service_tier, &[F::Tier]),
            (&mut answer.response_id, &[F::Id]),
        ] {
            if let Some(text) = fields.iter().find_map(|field| said.take(*field)) {
                *to = Some(text);
            }
        }
        if document.usage.is_some() {
            answer.usage = document.usage;
        }
        self.events += u64::from(counts);
    }

    /// Returns the id of the response, as soon as it was read.
    pub(super) fn response_id(&self) -> Option<&str> {
        self.document.said.get(Field::Id).or(self.answer.response_id.as_deref())
    }

    /// Returns the model that the response names, as soon as it was read.
    pub(super) fn model_version(&self) -> Option<&str> {
        let said = &self.document.said;
        let now = said.get(Field::ModelVersion).or_else(|| said.get(Field::Model));
        now.or(self.answer.model_version.as_deref())
    }

    /// Returns whether an object that is a document has begun and not ended.
    pub(super) fn is_in_document(&self) -> bool {
        self.frames.iter().any(|frame| !frame.is_array)
    }

    /// Returns whether documents stand in an array.
    pub(super) fn is_array(&self) -> bool {
        self.frames.first().is_some_and(|frame| frame.is_array)
    }

    /// The object that is being read, and its current member.
    fn top(&self) -> (Node, Field) {
        let object = self.frames.last().filter(|frame| !frame.is_array);
        object.map(|frame| (frame.node, frame.member.field)).unwrap_or_default()
    }

    /// Retracts what a member said that is now repeated.
    fn forget(&mut self, field: Field, at: u64) -> Result<(), ScanError> {
        use Field as F;
        self.count(field, 0);
        let Some(element) = self.elements.last_mut() else { return Ok(()) };
        let said = match field {
            F::Feedback => &[F::BlockReason, F::BlockMessage][..],
            F::Errors => &[F::Code],
            F::Provider => &[F::NativeReason],
            F::Candidates | F::Choices => &[F::FinishReason, F::NativeReason, F::FinishMessage],
            F::Inline => &[F::Mime],
            F::File => &[F::FileMime, F::FileUri],
            _ => std::slice::from_ref(&field),
        };
        for field in said {
            self.document.said.take(*field);
            element.said.take(*field);
        }
        match field {
            F::Usage => self.document.usage = None,
            F::Details => {
                if let Some(usage) = &mut self.document.usage {
                    usage.candidates_details.clear();
                }
            }
            F::Error => {
                self.raw = None;
                if std::mem::take(&mut self.document.has_error) {
                    self.answer.error = None;
                }
            }
            F::Candidates
            | F::Choices
            | F::Predictions
            | F::DataList
            | F::Items
            | F::Delta
            | F::Content
            | F::Response
            | F::Interaction
            | F::Summary
            | F::Parts
            | F::Message
            | F::Markdown
            | F::Images => {
                element.pending = None;
                let mark = element.mark;
                self.roll_back(mark, at)?;
            }
            F::Inline | F::Data | F::Base64 | F::Uri => {
                element.image = Progress::None;
                element.key = None;
                element.passed = false;
                element.urls.clear();
            }
            F::Text => {
                element.text.clear();
                element.has_words = false;
                let mark = element.mark;
                self.roll_back(mark, at)?;
            }
            F::Thought => element.thought = None,
            F::Signature => element.signature = None,
            _ => {}
        }
        Ok(())
    }

    /// Returns whether the innermost element is known to be a draft, or known not to be.
    fn is_thought(&self) -> Option<bool> {
        let element = self.elements.last()?;
        match element.node {
            Node::Part => element.thought,
            Node::Root => element.said.get(Field::Type).map(|kind| kind.contains("partial_image")),
            Node::Item => {
                let mut items = self.elements.iter().filter(|item| item.node == Node::Item);
                let is_marked = |item: &Element| {
                    let kind = item.said.get(Field::Type);
                    item.thought == Some(true) || kind.is_some_and(|kind| kind.contains("thought"))
                };
                if items.clone().any(is_marked) {
                    return Some(true);
                }
                items.next()?.said.get(Field::Type).map(|_| false)
            }
            _ => Some(false),
        }
    }

    /// The first bytes of an image's base64. A text may only look like one until it ends.
    fn begin_image(&mut self, at: u64, in_text: bool) {
        let is_thought = self.is_thought();
        for element in &mut self.elements {
            element.image = Progress::None;
        }
        let Some(element) = self.elements.last_mut() else { return };
        let is_image = match element.node {
            _ if in_text => false,
            Node::Part | Node::Item => element.said.get(Field::Mime).is_some_and(is_image),
            _ => true,
        };
        element.image = Progress::Reading;
        element.began = true;
        self.has_content = true;
        self.store.begin(at, is_image, is_thought);
    }

    fn end_image(&mut self) -> Result<(), ScanError> {
        let end = self.store.end()?;
        if let Some(element) = self.elements.last_mut() {
            let takes_any = self.takes_any;
            element.image = end.map_or(Progress::None, |good| Progress::Done(!good && !takes_any));
            element.key = self.store.key().filter(|_| end == Some(true));
        }
        Ok(())
    }

    fn end_element(&mut self, end: u64) -> Result<(), ScanError> {
        let known = self.is_thought();
        let Some(mut element) = self.elements.pop() else { return Ok(()) };
        self.list_signature(&element);
        let is_thought = known.unwrap_or(false);
        let is_picture = is_picture(&element);
        // The outermost item's type, where it stands behind, says what those in it are.
        let waits = element.node == Node::Item && known.is_none();
        let outer = self.elements.iter().position(|outer| waits && outer.node == Node::Item);

        if element.passed && is_picture {
            return Err(ScanError::new(ErrorKind::Duplicate, end));
        }
        if let (Progress::Done(corrupt), true) = (element.image, is_picture) {
            self.answer.images += 1;
            self.answer.thought_images += u32::from(is_thought);
            if corrupt {
                self.document.corrupt.get_or_insert(element.at);
                // What it was written over is lost with it.
                let _ = self.store.cancel(end);
                return Ok(());
            }
            let signature = element.signature.take().filter(|_| self.keep_signature);
            let found = Found {
                image: Image {
                    mime: element.said.take(Field::Mime).unwrap_or_default(),
                    signature: signature.map(Bytes::from),
                    is_thought,
                    ..Image::default()
                },
                part: self.list_span(&element, end, is_thought),
            };
            match outer.and_then(|outer| self.elements.get_mut(outer)) {
                Some(outer) => {
                    outer.pending = Some(found);
                    outer.began = true;
                }
                None => self.store.commit(found, end)?,
            }
            // Each entry of a list of results is one of what was asked for.
            if element.node == Node::Entry && self.document.has_list {
                self.settle();
            }
        } else if let Some(mut found) = element.pending.take() {
            let parts = self.answer.parts.iter_mut().skip(element.mark.parts);
            for part in parts.filter(|part| is_thought && !part.is_thought) {
                part.is_thought = true;
                self.answer.thought_images += 1;
            }
            found.image.is_thought = is_thought;
            self.store.commit(found, end)?;
        } else if element.began && self.carried.is_none() {
            self.store.cancel(end)?;
        }

        if element.said.get(Field::FileMime).is_some_and(is_image) {
            element.urls.extend(element.said.take(Field::FileUri));
        }
        let shows = element.node != Node::Item
            || element.said.get(Field::Type) == Some("image")
            || is_picture;
        if shows && !is_thought {
            self.has_content |= !element.urls.is_empty();
            let room = MAX_LISTED.saturating_sub(self.answer.image_urls.len());
            self.answer.image_urls.extend(element.urls.into_iter().take(room));
        }
        let is_read = !self.is_other();
        match outer.and_then(|outer| self.elements.get_mut(outer)) {
            Some(outer) => {
                append(&mut outer.text, &element.text, MAX_TEXT);
                outer.has_words |= element.has_words;
            }
            None if is_thought => {}
            None => {
                let room = MAX_TEXT.saturating_sub(self.answer.text.len());
                let text = &element.text[..element.text.len().min(room)];
                if is_read {
                    self.answer.text.push_str(valid(text));
                }
                if element.has_words {
                    // Text behind an image: the model goes on to the next.
                    self.settle();
                }
            }
        }
        if element.node == Node::Root {
            let kind = element.said.get(Field::Type).unwrap_or_default();
            self.document.completed |= kind.ends_with(".completed") || kind.ends_with(".complete");
        }
        Ok(())
    }

    /// Lists the signature of a part that ends.
    fn list_signature(&mut self, part: &Element) {
        let (Node::Part, Some(keyer), Some(signature)) =
            (part.node, &self.store.keyer, part.signature.as_deref())
        else {
            return;
        };
        // A text that shows an image is known by all of it.
        let text = Some(valid(&part.whole_text)).filter(|text| !text.is_empty());
        let key = text.map(|text| keyer.text(text)).or(part.key);
        let listed = &mut self.answer.signatures;
        let bytes: usize = listed.iter().map(|listed| listed.signature.len()).sum();
        let fits = listed.len() < MAX_SIGNED && bytes + signature.len() <= MAX_SIGNATURES;
        if let Some(part) = key.filter(|_| fits && !signature.is_empty()) {
            let signature = Bytes::copy_from_slice(signature);
            listed.push(PartSignature { part, signature });
        }
    }

    /// The image so far is final, unless it is a draft: a text follows, or another candidate.
    fn settle(&mut self) {
        self.store.settle();
        self.after_text = true;
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
            after_text: std::mem::take(&mut self.after_text),
        });
        self.ended_span = Some(self.answer.parts.len() - 1);
        self.ended_span
    }

    fn take_text(&mut self, text: String) {
        use Field as F;
        let (node, field) = self.top();
        match field {
            F::Object => self.document.is_interaction |= text == "interaction",
            F::Modality => {
                let usage = self.document.usage.as_mut();
                if let Some(item) = usage.and_then(|usage| usage.candidates_details.last_mut()) {
                    item.modality = text;
                }
            }
            F::Signature => {
                if let Some(element) = self.elements.last_mut() {
                    element.signature = Some(text.into_bytes());
                }
            }
            _ => {
                self.document.is_interaction |= (node, field) == (Node::Root, F::Type)
                    && ["interaction.", "step.", "content."].iter().any(|it| text.starts_with(it));
                if let Ok(count) = text.parse() {
                    self.count(field, count);
                }
                let element = self.elements.last_mut();
                let is_its = matches!(field, F::Type | F::Mime | F::FileMime | F::FileUri);
                let said = element.filter(|_| is_its).map(|element| &mut element.said);
                said.unwrap_or(&mut self.document.said).set(field, text);
            }
        }
    }

    fn count(&mut self, field: Field, count: u64) {
        use Field as F;
        let Some(usage) = &mut self.document.usage else { return };
        match field {
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
            F::CountTokens => {
                if let Some(item) = usage.candidates_details.last_mut() {
                    item.tokens = count;
                }
            }
            _ => {}
        }
    }

    /// Takes what was found in an address or a Markdown text.
    fn found(&mut self, piece: Piece<'_>, at: u64, in_text: bool) -> Result<(), ScanError> {
        match piece {
            Piece::Text(text) | Piece::Alt(text) => {
                self.has_content |= !text.is_empty();
                let Some(element) = self.elements.last_mut() else { return Ok(()) };
                append(&mut element.text, text, MAX_TEXT);
                element.has_words |= matches!(piece, Piece::Text(_)) && !is_blank(text);
            }
            Piece::Begin(mime) => {
                if let Some(element) = self.elements.last_mut() {
                    element.said.set(Field::Mime, mime);
                    let has_words = std::mem::take(&mut element.has_words);
                    if has_words && element.thought != Some(true) {
                        self.settle();
                    }
                }
                self.begin_image(at, in_text);
            }
            Piece::Base64(base64) => self.store.piece(base64)?,
            Piece::End => {
                self.end_image()?;
                if !in_text {
                    return Ok(());
                }
                let Some(element) = self.elements.last_mut() else { return Ok(()) };
                let mime = element.said.take(Field::Mime).unwrap_or_default();
                let is_thought = element.thought == Some(true);
                if std::mem::replace(&mut element.image, Progress::None) == Progress::Done(false) {
                    element.began = false;
                    self.answer.images += 1;
                    self.answer.thought_images += u32::from(is_thought);
                    let image = Image { mime, is_thought, ..Image::default() };
                    self.store.commit(Found { image, part: None }, at)?;
                } else {
                    // A text that only looks like an image is a text.
                    self.store.cancel(at)?;
                }
            }
            Piece::Url(url) => {
                let is_link = is_link(&url) || !in_text;
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
    match (element.node, element.said.get(Field::Mime)) {
        (Node::Item, None | Some("")) => {
            matches!(element.said.get(Field::Type), Some("image" | "image_generation_call"))
        }
        // Without a type, data in a part can only be the image that was asked for.
        (Node::Part, None | Some("")) => true,
        (Node::Part | Node::Item, Some(mime)) => is_image(mime),
        _ => true,
    }
}

/// Nodes of which each is an [`Element`].
fn is_element(node: Node) -> bool {
    matches!(node, Node::Root | Node::Part | Node::Entry | Node::Message | Node::Item)
}

/// What the lexer found. Offsets count from the response's first byte.
impl Reader {
    pub(super) fn begin(&mut self, object: bool, at: u64) {
        use Field as F;
        let parent = self.frames.last().copied();
        self.begin_value();
        let (node, in_array) = match parent {
            None => (Node::Root, false),
            Some(Frame { node, is_array: true, count, .. }) => {
                let node = match node {
                    Node::Candidate | Node::Choice if object && count > 0 => {
                        // Another candidate: its images are results too, and its words are not read.
                        self.settle();
                        if node == Node::Candidate {
                            Node::OtherCandidate
                        } else {
                            Node::OtherChoice
                        }
                    }
                    _ if object => node,
                    _ => Node::Skip,
                };
                (node, true)
            }
            Some(Frame { member, .. }) => (if object { member.object } else { member.each }, false),
        };
        let (place, field) = self.top();
        match node {
            Node::Root if object && parent.is_none_or(|parent| parent.is_array) => {
                self.document = Document::default();
            }
            Node::Usage => self.document.usage = Some(Usage::default()),
            Node::UsageItem if object => {
                let usage = self.document.usage.as_mut();
                let details = usage.map(|usage| &mut usage.candidates_details);
                if let Some(details) = details.filter(|details| details.len() < MAX_LISTED) {
                    details.push(TokenCount::default());
                }
            }
            // A function call, code and the like.
            Node::Skip if object && place == Node::Part => self.has_content = true,
            _ => {}
        }
        if !object && matches!(field, F::DataList | F::Predictions) {
            self.answer.has_candidates = true;
            self.document.has_list = true;
        }
        if field == F::Error {
            self.begin_error(at);
        }
        if object && is_element(node) {
            let (comma, mark) = (self.comma, self.mark());
            let element = Element { node, at, comma, in_array, mark, ..Element::default() };
            self.elements.push(element);
        }
        self.frames.push(Frame {
            node,
            is_array: !object,
            member: Member::default(),
            seen: 0,
            count: 0,
        });
        self.comma = None;
    }

    /// `end` is one past the closing bracket.
    pub(super) fn end(&mut self, end: u64) -> Result<(), ScanError> {
        self.comma = None;
        self.ended_span = None;
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        if !frame.is_array && is_element(frame.node) {
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
        let is_outermost = self.frames.last().is_none_or(|outer| outer.is_array);
        if frame.node == Node::Root && !frame.is_array && is_outermost {
            if let Some(at) = self.document.corrupt {
                return Err(ScanError::new(ErrorKind::Base64, at));
            }
            self.end_document(!self.is_cut);
        }
        Ok(())
    }

    pub(super) fn comma(&mut self, at: u64) {
        self.comma = Some(at);
        if let Some(part) = self.ended_span.take().and_then(|part| self.answer.parts.get_mut(part))
        {
            part.comma_after = Some(at);
        }
    }

    /// `None` for a key longer than any that means something.
    pub(super) fn key(&mut self, key: Option<&[u8]>, end: u64) -> Result<(), ScanError> {
        self.comma = None;
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        frame.member = key.map(|key| member(frame.node, key)).unwrap_or_default();
        let field = frame.member.field;
        if field == Field::Unknown {
            return Ok(());
        }
        let bit = 1_u64 << (field as u8);
        let repeated = frame.seen & bit != 0;
        frame.seen |= bit;
        if frame.node == Node::Root {
            use Field as F;
            self.answer.has_candidates |= matches!(
                field,
                F::Candidates
                    | F::Choices
                    | F::Predictions
                    | F::Items
                    | F::Delta
                    | F::Base64
                    | F::FinishReason
            );
            self.document.is_interaction |= matches!(field, F::Items | F::Interaction);
        }
        if repeated { self.forget(field, end) } else { Ok(()) }
    }

    fn begin_value(&mut self) {
        self.ended_span = None;
        if let Some(frame) = self.frames.last_mut() {
            frame.count += 1;
        }
    }

    pub(super) fn string_begin(&mut self, at: u64) {
        use Field as F;
        self.comma = None;
        self.begin_value();
        let capture = |max| Text::Capture { bytes: Vec::new(), max };
        let (node, field) = self.top();
        self.text = match field {
            F::Unknown => Text::Skip,
            F::Data if node == Node::Inline => {
                let element = self.elements.last_mut();
                let is_foreign = element.is_some_and(|element| {
                    let mime = element.said.get(F::Mime).unwrap_or_default();
                    element.passed = !mime.is_empty() && !is_image(mime);
                    element.passed
                });
                if is_foreign { Text::Skip } else { Text::Data { at, began: false, scheme: 0 } }
            }
            F::Data | F::Base64 => Text::Data { at, began: false, scheme: 0 },
            F::Markdown if self.carried.is_some() && self.is_delta() => match self.carried.take() {
                Some(carried) => self.resume(carried),
                None => Text::Skip,
            },
            F::Markdown | F::Refusal | F::Text => {
                Text::Uri { reader: UriReader::markdown(), at, in_text: true }
            }
            F::Uri => Text::Uri { reader: UriReader::address(), at, in_text: false },
            F::FinishMessage | F::BlockMessage | F::Rai | F::FileUri => capture(MAX_TEXT),
            F::Signature if self.keep_signature || self.store.keyer.is_some() => {
                capture(MAX_SIGNATURE)
            }
            F::Signature => Text::Skip,
            F::Error if node == Node::Root => {
                self.begin_error(at);
                Text::Skip
            }
            _ => capture(MAX_NAME),
        };
    }

    /// Takes as many bytes of base64 as `input` begins with, in whole or in part, where base64 is
    /// wanted; else none. Looking for the string's end first would mean reading an image twice.
    pub(super) fn string_base64(&mut self, input: &[u8]) -> Result<usize, ScanError> {
        if !matches!(self.text, Text::Data { .. }) || matches!(input[0], b'"' | b'\\') {
            return Ok(0);
        }
        match self.begin_data(input)? {
            // It goes on as an address, which is not read in bulk.
            taken if !matches!(self.text, Text::Data { .. }) => Ok(taken),
            0 => self.store.run(input),
            taken => Ok(taken),
        }
    }

    /// The first bytes of a string of base64: an empty one is no image. Returns how many of them
    /// were its scheme, which is no base64.
    fn begin_data(&mut self, input: &[u8]) -> Result<usize, ScanError> {
        const SCHEME: &[u8] = b"data:";
        let Text::Data { at, began: began @ false, scheme } = &mut self.text else { return Ok(0) };
        let at = *at;
        let is_next = |byte: &u8| SCHEME.get(*scheme) == Some(byte);
        if input.first().is_some_and(is_next) {
            *scheme += 1;
            if *scheme == SCHEME.len() {
                let reader = UriReader::data_address();
                self.text = Text::Uri { reader, at, in_text: false };
            }
            return Ok(1);
        }
        *began = true;
        let begun = &SCHEME[..*scheme];
        self.begin_image(at, false);
        if !begun.is_empty() {
            self.store.piece(begun)?;
        }
        Ok(0)
    }

    /// A run of the string, its escapes undone.
    pub(super) fn string_piece(&mut self, piece: &[u8]) -> Result<(), ScanError> {
        if piece.is_empty() {
            return Ok(());
        }
        match &mut self.text {
            Text::Skip => {}
            Text::Capture { bytes, max } => append(bytes, piece, *max),
            Text::Data { .. } => {
                let mut piece = piece;
                while !piece.is_empty() && matches!(self.text, Text::Data { .. }) {
                    match self.begin_data(piece)? {
                        0 => return self.store.piece(piece),
                        taken => piece = &piece[taken..],
                    }
                }
                return self.string_piece(piece);
            }
            Text::Uri { .. } => {
                if let (Some(element), Some(_)) = (self.elements.last_mut(), &self.store.keyer) {
                    // As it is, with the images that it shows.
                    append(&mut element.whole_text, piece, MAX_TEXT);
                }
                if let Text::Uri { mut reader, at, in_text } = std::mem::take(&mut self.text) {
                    reader.push(piece, &mut |found| self.found(found, at, in_text))?;
                    self.text = Text::Uri { reader, at, in_text };
                }
            }
        }
        Ok(())
    }

    pub(super) fn string_end(&mut self, end: u64) -> Result<(), ScanError> {
        match std::mem::take(&mut self.text) {
            Text::Skip => {
                if self.top() == (Node::Root, Field::Error) {
                    match self.raw.as_ref().map(|raw| raw.from + 2 == end) {
                        Some(true) => self.raw = None,
                        _ => self.end_error(end),
                    }
                }
            }
            Text::Capture { bytes, .. } => {
                let text = String::from_utf8(bytes);
                let text = text.unwrap_or_else(|error| valid(error.as_bytes()).to_owned());
                self.take_text(text);
            }
            Text::Data { began, .. } => {
                if began {
                    self.end_image()?;
                }
            }
            Text::Uri { reader, at, in_text: true } if self.is_delta() && reader.is_open() => {
                let element = self.elements.last_mut();
                let mime = element.filter(|element| element.image == Progress::Reading);
                let mime = mime.map(|it| it.said.take(Field::Mime).unwrap_or_default());
                self.carried = Some(Carried { reader, at, mime });
            }
            Text::Uri { mut reader, at, in_text } => {
                reader.finish(&mut |found| self.found(found, at, in_text))?;
            }
        }
        Ok(())
    }

    /// A value that is neither a container nor a string, as spelled; a number is cut after 32
    /// bytes.
    pub(super) fn scalar(&mut self, word: &[u8]) {
        use Field as F;
        self.comma = None;
        self.begin_value();
        let (_, field) = self.top();
        let word = std::str::from_utf8(word).unwrap_or_default();
        match (word, field) {
            ("true" | "false", F::Thought) => {
                if let Some(element) = self.elements.last_mut() {
                    element.thought = Some(word == "true");
                }
            }
            ("true" | "false" | "null", _) => {}
            (_, F::FinishReason | F::NativeReason | F::BlockReason | F::Code) => {
                self.take_text(word.to_owned());
            }
            _ => {
                // Some gateways write counts as floats.
                let count = word.parse().or_else(|_| word.parse::<f64>().map(|count| count as u64));
                self.count(field, count.unwrap_or(0));
            }
        }
    }
}

/// Appends as much as a bound leaves room for.
fn append(to: &mut Vec<u8>, bytes: &[u8], max: usize) {
    let room = max.saturating_sub(to.len());
    to.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// The text without a character that a bound has cut.
fn valid(text: &[u8]) -> &str {
    text.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}
