//! Which bytes of a request's body change for another model: pure.

use std::borrow::Cow;
use std::ops::Range;

use super::spans::{Edits, Member, Text};
use super::words::{Degradation, GivenUp, Signatures, Unfit};
use crate::call::ImageSize;
use crate::catalog::{Model, Thinking};

/// What is to become of the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SizeChange {
    Keep,
    /// The model has one size and answers 400 to the field.
    Drop,
    Set(ImageSize),
}

/// What changes.
#[derive(Debug)]
pub(super) struct Change<'a> {
    /// The id that takes the place of the model's in the body.
    pub(super) model: Option<&'a str>,
    /// What is known of the model, where it is another one than asked for.
    pub(super) to: Option<&'a Model>,
    pub(super) asked_size: Option<ImageSize>,
    pub(super) size: SizeChange,
    /// From and to.
    pub(super) aspect: Option<(&'a str, &'a str)>,
    /// `responseFormat.image` becomes `imageConfig`.
    pub(super) respell: bool,
    /// Members of `imageConfig` that only Vertex AI takes are dropped.
    pub(super) leaves_vertex: bool,
    /// Signatures must not be sent on as they are.
    pub(super) signatures: Option<Signatures>,
}

/// Only Vertex AI takes these (google-genai 2.19 raises before sending them to the Gemini API,
/// which answers 400 to them).
const VERTEX_ONLY: [&str; 5] = [
    "personGeneration",
    "prominentPeople",
    "outputMimeType",
    "compressionQuality",
    "imageOutputOptions",
];

/// The edits, and what they give up.
pub(super) fn edit(body: &[u8], change: &Change<'_>) -> Result<(Edits, Vec<Degradation>), Unfit> {
    let text = Text(body);
    let root = text.root().filter(|root| text.is(root, b'{')).ok_or(Unfit::Unreadable)?;
    let mut editor = Editor {
        text,
        change,
        edits: Edits::default(),
        given_up: Vec::new(),
        sized: false,
        signatures: 0,
        added: 0,
    };
    editor.request(&root, 2)?;
    editor.insert_size(&root)?;
    if editor.signatures + editor.added > 0 {
        let to = match change.signatures {
            Some(Signatures::Strip) | None => None,
            Some(_) => Some(Cow::Borrowed(Signatures::PLACEHOLDER)),
        };
        let from = match (editor.signatures, editor.added) {
            (changed, 0) => format!("{changed}"),
            (changed, added) => format!("{changed} ({added} missing)"),
        };
        editor.given_up.push(Degradation::new(GivenUp::Signatures, from, to));
    }
    Ok((editor.edits, editor.given_up))
}

struct Editor<'a> {
    text: Text<'a>,
    change: &'a Change<'a>,
    edits: Edits,
    given_up: Vec<Degradation>,
    /// Whether a size stood anywhere.
    sized: bool,
    signatures: usize,
    added: usize,
}

/// The members of one object, and what becomes of them.
struct Object {
    span: Range<usize>,
    members: Vec<Member>,
    gone: Vec<bool>,
    new: Vec<String>,
}

impl Object {
    fn drop(&mut self, index: usize) {
        if let Some(gone) = self.gone.get_mut(index) {
            *gone = true;
        }
    }

    fn close(self, edits: &mut Edits) {
        if self.new.is_empty() && !self.gone.contains(&true) {
            return;
        }
        let spans: Vec<_> =
            self.members.iter().map(|member| member.start..member.value.end).collect();
        edits.reshape(&self.span, &spans, &self.gone, &self.new);
    }
}

impl<'a> Editor<'a> {
    /// `None` where the value is no object: whatever it is, it is not ours to change.
    fn open(&self, value: &Range<usize>) -> Result<Option<Object>, Unfit> {
        if !self.text.is(value, b'{') {
            return Ok(None);
        }
        let members = self.text.members(value).ok_or(Unfit::Unreadable)?;
        let gone = vec![false; members.len()];
        Ok(Some(Object { span: value.clone(), members, gone, new: Vec::new() }))
    }

    fn give_up(
        &mut self,
        what: GivenUp,
        from: impl Into<Cow<'static, str>>,
        to: Option<Cow<'static, str>>,
    ) {
        let degradation = Degradation::new(what, from, to);
        // Sizes and ratios may stand in two places at once, in both spellings: given up once.
        if !self.given_up.contains(&degradation) {
            self.given_up.push(degradation);
        }
    }

    /// The whole request, and `extra_body` objects inside it, as OpenAI's clients send Google's own
    /// options.
    fn request(&mut self, value: &Range<usize>, deeper: u8) -> Result<(), Unfit> {
        let Some(mut object) = self.open(value)? else { return Ok(()) };
        for (index, member) in object.members.clone().iter().enumerate() {
            let value = &member.value;
            match member.name.as_str() {
                "model" => self.model(value),
                "contents" => self.contents(value)?,
                "generationConfig" => self.generation_config(value)?,
                "imageConfig" | "parameters" => self.image_options(value)?,
                "responseFormat" => self.response_format(value)?,
                "thinkingConfig" => self.thinking(&mut object, index)?,
                "extraBody" | "google" if deeper > 0 => self.request(value, deeper - 1)?,
                _ => self.image_option(&mut object, index, member, false),
            }
        }
        object.close(&mut self.edits);
        Ok(())
    }

    fn model(&mut self, value: &Range<usize>) {
        let (Some(model), Some(asked)) = (self.change.model, self.text.text(value)) else { return };
        // `models/`, `google/`, a whole resource name: what stood in front stays.
        let bare = crate::size::strip_model_prefix(&asked);
        let front = asked.strip_suffix(bare).unwrap_or("");
        self.edits.replace(value.clone(), quoted(&format!("{front}{model}")));
    }

    fn generation_config(&mut self, value: &Range<usize>) -> Result<(), Unfit> {
        let Some(mut object) = self.open(value)? else { return Ok(()) };
        let has_config = object.members.iter().any(|member| member.name == "imageConfig");
        let mut respelled = Options::default();
        for (index, member) in object.members.clone().iter().enumerate() {
            match member.name.as_str() {
                "responseFormat" if self.change.respell => {
                    self.respell(&member.value, &mut respelled)?;
                    object.drop(index);
                    let to = has_image(&respelled).then_some(Cow::Borrowed("imageConfig"));
                    self.give_up(GivenUp::Spelling, "responseFormat", to);
                    respelled.snake = member.snake;
                }
                "responseFormat" => self.response_format(&member.value)?,
                "thinkingConfig" => self.thinking(&mut object, index)?,
                _ => {}
            }
        }
        for member in object.members.clone() {
            if member.name == "imageConfig" {
                self.image_config(&member.value, std::mem::take(&mut respelled))?;
            }
        }
        if !has_config && has_image(&respelled) {
            let name = if respelled.snake { "image_config" } else { "imageConfig" };
            object.new.push(format!("\"{name}\":{{{}}}", respelled.members().join(",")));
        }
        object.close(&mut self.edits);
        Ok(())
    }

    /// Reads what `responseFormat.image` asks for, as the target is to be asked for it in
    /// `imageConfig`.
    fn respell(&mut self, value: &Range<usize>, options: &mut Options) -> Result<(), Unfit> {
        for entry in self.text.elements(value).ok_or(Unfit::Unreadable)? {
            let Some(entry) = self.open(&entry)? else { continue };
            for member in entry.members {
                let Some(image) = (member.name == "image")
                    .then(|| self.open(&member.value))
                    .transpose()?
                    .flatten()
                else {
                    self.give_up(GivenUp::ImageOption, member.name, None);
                    continue;
                };
                for option in image.members {
                    match option.name.as_str() {
                        "imageSize" => {
                            self.sized = true;
                            let size = match self.change.size {
                                SizeChange::Keep => self.change.asked_size,
                                SizeChange::Drop => None,
                                SizeChange::Set(size) => Some(size),
                            };
                            self.say_size();
                            options.size = size.map(ImageSize::as_str);
                        }
                        "aspectRatio" => {
                            let asked = self.text.text(&option.value).unwrap_or_default();
                            let plain = crate::size::parse_aspect(&asked)
                                .unwrap_or_else(|| asked.clone().into_owned().into());
                            let ratio = self
                                .new_aspect(&plain)
                                .map_or(plain, |to| Cow::Owned(to.to_owned()));
                            options.aspect = Some(ratio.into_owned());
                        }
                        name => self.give_up(GivenUp::ImageOption, name.to_owned(), None),
                    }
                }
            }
        }
        Ok(())
    }

    /// `imageConfig`, and what a `responseFormat` beside it said: that one counts where both say
    /// something.
    fn image_config(&mut self, value: &Range<usize>, other: Options) -> Result<(), Unfit> {
        let Some(mut object) = self.open(value)? else { return Ok(()) };
        for (index, member) in object.members.clone().iter().enumerate() {
            match member.name.as_str() {
                "aspectRatio" if other.aspect.is_some() => object.drop(index),
                "imageSize" if other.size.is_some() => object.drop(index),
                _ => self.image_option(&mut object, index, member, true),
            }
        }
        object.new.extend(other.members());
        object.close(&mut self.edits);
        Ok(())
    }

    fn image_options(&mut self, value: &Range<usize>) -> Result<(), Unfit> {
        let Some(mut object) = self.open(value)? else { return Ok(()) };
        for (index, member) in object.members.clone().iter().enumerate() {
            self.image_option(&mut object, index, member, false);
        }
        object.close(&mut self.edits);
        Ok(())
    }

    /// An object, or a list, of `{"image": {…}}`, or of the options themselves as the Interactions
    /// API has them.
    fn response_format(&mut self, value: &Range<usize>) -> Result<(), Unfit> {
        for entry in self.text.elements(value).ok_or(Unfit::Unreadable)? {
            let Some(mut object) = self.open(&entry)? else { continue };
            for (index, member) in object.members.clone().iter().enumerate() {
                match member.name.as_str() {
                    "image" => self.image_options(&member.value)?,
                    _ => self.image_option(&mut object, index, member, false),
                }
            }
            object.close(&mut self.edits);
        }
        Ok(())
    }

    fn image_option(
        &mut self,
        object: &mut Object,
        index: usize,
        member: &Member,
        in_config: bool,
    ) {
        let value = &member.value;
        match member.name.as_str() {
            "size" | "imageSize" | "imageResolution" | "resolution" | "sampleImageSize" => {
                let raw = self.text.raw(value);
                let asked = self.text.text(value).unwrap_or(Cow::Borrowed(raw));
                let Some((size, ratio)) = crate::size::parse_size(&asked) else { return };
                self.sized = true;
                match self.change.size {
                    SizeChange::Keep => {}
                    // Pixels say the ratio as well, and clients that speak in pixels have no other
                    // way to: 1K of the same shape.
                    SizeChange::Drop if ratio.is_some() => {
                        self.say_size();
                        self.set_size(value, &asked, size, ImageSize::K1);
                    }
                    SizeChange::Drop => {
                        self.say_size();
                        object.drop(index);
                    }
                    SizeChange::Set(to) => {
                        self.say_size();
                        self.set_size(value, &asked, size, to);
                    }
                }
            }
            "aspectRatio" => {
                let Some(asked) = self.text.text(value) else { return };
                let Some(plain) = crate::size::parse_aspect(&asked) else { return };
                if let Some(to) = self.new_aspect(&plain) {
                    let spelled = crate::size::ratio_as(to, &asked);
                    self.edits.replace(value.clone(), quoted(&spelled));
                }
            }
            name if in_config && self.change.leaves_vertex && VERTEX_ONLY.contains(&name) => {
                object.drop(index);
                self.give_up(GivenUp::ImageOption, name.to_owned(), None);
            }
            _ => {}
        }
    }

    fn say_size(&mut self) {
        let to = match self.change.size {
            SizeChange::Keep => return,
            SizeChange::Drop => None,
            SizeChange::Set(to) if Some(to) == self.change.asked_size => return,
            SizeChange::Set(to) => Some(Cow::Borrowed(to.as_str())),
        };
        let from = self.change.asked_size.map_or("default", ImageSize::as_str);
        self.give_up(GivenUp::Size, from, to);
    }

    fn set_size(&mut self, value: &Range<usize>, asked: &str, from: ImageSize, to: ImageSize) {
        if from == to {
            return;
        }
        let spelled = crate::size::size_as(to, asked, from);
        let as_text = self.text.is(value, b'"');
        self.edits.replace(value.clone(), if as_text { quoted(&spelled) } else { spelled });
    }

    /// The ratio in place of this one, said once.
    fn new_aspect(&mut self, plain: &str) -> Option<&'a str> {
        let (from, to) = self.change.aspect.filter(|(from, _)| *from == plain)?;
        self.give_up(GivenUp::Aspect, from.to_owned(), Some(Cow::Owned(to.to_owned())));
        Some(to)
    }

    /// `thinkingConfig`, by what the new model can do.
    fn thinking(&mut self, outer: &mut Object, index: usize) -> Result<(), Unfit> {
        let (Some(model), Some(member)) = (self.change.to, outer.members.get(index)) else {
            return Ok(());
        };
        let value = member.value.clone();
        if model.thinking == Thinking::None {
            outer.drop(index);
            let asked = self.text.raw(&value).chars().take(80).collect::<String>();
            self.give_up(GivenUp::Thinking, asked, None);
            return Ok(());
        }
        let Some(mut object) = self.open(&value)? else { return Ok(()) };
        for (index, member) in object.members.clone().iter().enumerate() {
            let asked = self
                .text
                .text(&member.value)
                .unwrap_or(Cow::Borrowed(self.text.raw(&member.value)));
            let level = match (member.name.as_str(), model.thinking) {
                ("thinkingLevel", Thinking::Levels) => nearest_level(&asked, model),
                // Those that think always have nothing to choose, and budgets belong to the 2.5
                // line of text models.
                ("thinkingLevel" | "thinkingBudget", _) => None,
                _ => continue,
            };
            if level.is_some_and(|level| level.eq_ignore_ascii_case(&asked)) {
                continue;
            }
            self.give_up(
                GivenUp::Thinking,
                format!("{} {asked}", member.name),
                level.map(|level| Cow::Owned(level.to_owned())),
            );
            match level {
                Some(level) => self.edits.replace(member.value.clone(), quoted(level)),
                None => object.drop(index),
            }
        }
        object.close(&mut self.edits);
        Ok(())
    }

    fn contents(&mut self, value: &Range<usize>) -> Result<(), Unfit> {
        if self.change.signatures.is_none() {
            return Ok(());
        }
        for turn in self.text.elements(value).ok_or(Unfit::Unreadable)? {
            let Some(turn) = self.open(&turn)? else { continue };
            let of_model = turn.members.iter().any(|member| {
                member.name == "role"
                    && self
                        .text
                        .text(&member.value)
                        .is_some_and(|role| role.eq_ignore_ascii_case("model"))
            });
            for parts in turn.members.iter().filter(|member| member.name == "parts") {
                for part in self.text.elements(&parts.value).ok_or(Unfit::Unreadable)? {
                    self.part(&part, of_model)?;
                }
            }
        }
        Ok(())
    }

    fn part(&mut self, value: &Range<usize>, of_model: bool) -> Result<(), Unfit> {
        let Some(mut part) = self.open(value)? else { return Ok(()) };
        let placeholder = match self.change.signatures {
            Some(Signatures::Strip) | None => None,
            Some(Signatures::Refuse) => {
                let signed = part.members.iter().any(|member| member.name == "thoughtSignature");
                return if signed { Err(Unfit::Signatures) } else { Ok(()) };
            }
            Some(Signatures::Placeholder) => Some(quoted(Signatures::PLACEHOLDER)),
        };
        let mut has_image = false;
        let mut signed = false;
        for (index, member) in part.members.clone().iter().enumerate() {
            match member.name.as_str() {
                "inlineData" | "fileData" => has_image = true,
                "thoughtSignature" => {
                    signed = true;
                    match &placeholder {
                        Some(text) if self.text.raw(&member.value) == text => continue,
                        Some(text) => self.edits.replace(member.value.clone(), text.clone()),
                        None => part.drop(index),
                    }
                    self.signatures += 1;
                }
                _ => {}
            }
        }
        if let (true, true, false, Some(text)) = (of_model, has_image, signed, placeholder) {
            part.new.push(format!("\"thoughtSignature\":{text}"));
            self.added += 1;
        }
        part.close(&mut self.edits);
        Ok(())
    }

    /// A size where none stood, for the step below what is made when none is asked for.
    fn insert_size(&mut self, root: &Range<usize>) -> Result<(), Unfit> {
        let SizeChange::Set(size) = self.change.size else { return Ok(()) };
        if self.sized || self.change.asked_size.is_some() {
            return Ok(());
        }
        let member = format!("\"imageSize\":\"{size}\"");
        let Some(mut object) = self.open(root)? else { return Ok(()) };
        let config = object
            .members
            .iter()
            .find(|member| member.name == "generationConfig")
            .map(|member| member.value.clone());
        // Other edits may stand in these objects: only a request in which nothing else changes gets
        // a size put in.
        if !self.edits.is_empty() || !object.members.iter().any(|member| member.name == "contents")
        {
            return Err(Unfit::Unreadable);
        }
        let Some(config) = config else {
            object.new.push(format!("\"generationConfig\":{{\"imageConfig\":{{{member}}}}}"));
            return self.put_in(object);
        };
        let Some(mut config) = self.open(&config)? else { return Err(Unfit::Unreadable) };
        let image = config
            .members
            .iter()
            .find(|member| member.name == "imageConfig")
            .map(|member| member.value.clone());
        let Some(image) = image else {
            config.new.push(format!("\"imageConfig\":{{{member}}}"));
            return self.put_in(config);
        };
        let Some(mut image) = self.open(&image)? else { return Err(Unfit::Unreadable) };
        image.new.push(member);
        self.put_in(image)
    }

    fn put_in(&mut self, object: Object) -> Result<(), Unfit> {
        object.close(&mut self.edits);
        self.say_size();
        Ok(())
    }
}

/// Returns the level that a model knows nearest to the one asked for; what has no name counts as
/// `high`.
fn nearest_level<'m>(asked: &str, model: &'m Model) -> Option<&'m str> {
    const LEVELS: [&str; 4] = ["minimal", "low", "medium", "high"];
    let rank = |level: &str| {
        LEVELS.iter().position(|known| known.eq_ignore_ascii_case(level)).unwrap_or(3)
    };
    let asked = rank(asked);
    model.thinking_levels.iter().min_by_key(|level| rank(level).abs_diff(asked)).map(String::as_str)
}

/// What `responseFormat.image` asked for.
#[derive(Debug, Default)]
struct Options {
    size: Option<&'static str>,
    aspect: Option<String>,
    snake: bool,
}

impl Options {
    fn members(&self) -> Vec<String> {
        let name =
            |camel: &'static str, snake: &'static str| if self.snake { snake } else { camel };
        let aspect = self
            .aspect
            .as_ref()
            .map(|ratio| format!("\"{}\":{}", name("aspectRatio", "aspect_ratio"), quoted(ratio)));
        let size =
            self.size.map(|size| format!("\"{}\":\"{size}\"", name("imageSize", "image_size")));
        aspect.into_iter().chain(size).collect()
    }
}

fn has_image(options: &Options) -> bool {
    options.size.is_some() || options.aspect.is_some()
}

fn quoted(text: &str) -> String {
    // A string always serialises.
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}
