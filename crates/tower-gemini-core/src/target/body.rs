//! Finds the bytes of a request's body that change for another model.

use std::borrow::Cow;
use std::ops::Range;

use super::degradation::{Degradation, GivenUp, Signatures, Unfit};
use crate::catalog::{Model, Thinking};
use crate::json::{Cursor, Edits, Kind, Member};
use crate::size::{ImageSize, parse_aspect, parse_size, ratio_as, size_as, strip_model_prefix};

/// What happens to the size.
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
    /// Whether the model's name says the size.
    pub(super) size_in_name: bool,
    /// From and to.
    pub(super) aspect: Option<(&'a str, &'a str)>,
    /// Whether the model's name says the aspect ratio.
    pub(super) aspect_in_name: bool,
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

/// Returns the edits, and what they give up after what is given up already.
pub(super) fn edit(
    body: &[u8],
    change: &Change<'_>,
    given_up: Vec<Degradation>,
) -> Result<(Edits, Vec<Degradation>), Unfit> {
    let mut cursor = Cursor::new(body);
    let is_object = cursor.kind() == Kind::Object;
    let root = cursor.span();
    if !is_object || cursor.is_broken() || !cursor.is_at_end() {
        return Err(Unfit::Unreadable);
    }
    let mut editor = Editor {
        body,
        change,
        edits: Edits::default(),
        given_up,
        sized: false,
        signatures: 0,
        added: 0,
    };
    if change.size_in_name {
        editor.report_size();
    }
    if let (true, Some((from, _))) = (change.aspect_in_name, change.aspect) {
        editor.new_aspect(from);
    }
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
    body: &'a [u8],
    change: &'a Change<'a>,
    edits: Edits,
    given_up: Vec<Degradation>,
    /// Whether a size stood anywhere.
    sized: bool,
    signatures: usize,
    added: usize,
}

/// What happens to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
}

type Edited = Result<Fate, Unfit>;

impl<'a> Editor<'a> {
    fn at(&self, value: &Range<usize>) -> Cursor<'a> {
        Cursor::at(self.body, value.start)
    }

    /// Returns none where the value is no object: then there is nothing that we may change.
    fn members(&self, object: &Range<usize>) -> Result<Vec<Member>, Unfit> {
        self.at(object).members().ok_or(Unfit::Unreadable)
    }

    /// Returns a string's text, or any other value as it is written.
    fn word(&self, value: &Range<usize>) -> Cow<'a, str> {
        let raw = || self.body.get(value.clone()).and_then(|raw| std::str::from_utf8(raw).ok());
        let text = self.at(value).text().and_then(|text| text.name());
        text.or_else(|| raw().map(Cow::Borrowed)).unwrap_or_default()
    }

    /// Decides about each member of an object, and puts `new` ones in front of those that stay.
    fn object(
        &mut self,
        object: &Range<usize>,
        new: &[String],
        mut edit: impl FnMut(&mut Self, &Member) -> Edited,
    ) -> Edited {
        if self.at(object).kind() != Kind::Object {
            return Ok(Fate::Stays);
        }
        let members = self.members(object)?;
        let mut gone = Vec::with_capacity(members.len());
        for member in &members {
            gone.push(edit(self, member)? == Fate::Goes);
        }
        if !new.is_empty() || gone.contains(&true) {
            let spans: Vec<_> = members.into_iter().map(|member| member.span).collect();
            self.edits.reshape(object, &spans, &gone, new);
        }
        Ok(Fate::Stays)
    }

    fn elements(
        &mut self,
        array: &Range<usize>,
        mut edit: impl FnMut(&mut Self, &Range<usize>) -> Edited,
    ) -> Edited {
        for element in self.at(array).elements().ok_or(Unfit::Unreadable)? {
            edit(self, &element)?;
        }
        Ok(Fate::Stays)
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
    fn request(&mut self, value: &Range<usize>, deeper: u8) -> Edited {
        self.object(value, &[], |e, member| {
            let value = &member.value;
            match member.name.as_str() {
                "model" => e.model(value),
                "contents" => e.contents(value),
                "generationConfig" => e.generation_config(value),
                "imageConfig" | "parameters" => e.image_options(value),
                "responseFormat" => e.response_format(value),
                "thinkingConfig" => e.thinking(value),
                "extraBody" | "google" if deeper > 0 => e.request(value, deeper - 1),
                _ => e.image_option(member),
            }
        })
    }

    fn model(&mut self, value: &Range<usize>) -> Edited {
        let asked = self.at(value).text().and_then(|text| text.name());
        if let (Some(model), Some(asked)) = (self.change.model, asked) {
            // `models/`, `google/`, a whole resource name: what stood in front stays.
            let front = asked.strip_suffix(strip_model_prefix(&asked)).unwrap_or("");
            self.edits.replace(value.clone(), quoted(&format!("{front}{model}")));
        }
        Ok(Fate::Stays)
    }

    fn generation_config(&mut self, value: &Range<usize>) -> Edited {
        let members = self.members(value)?;
        let respell = self.change.respell;
        let (mut options, mut is_snake) = (Vec::new(), false);
        for format in members.iter().filter(|m| respell && m.name == "responseFormat") {
            self.respell(&format.value, &mut options)?;
            is_snake = format.is_snake;
            let to = (!options.is_empty()).then_some(Cow::Borrowed("imageConfig"));
            self.give_up(GivenUp::Spelling, "responseFormat", to);
        }
        let config = member_texts(&options, is_snake);
        let is_new = !options.is_empty() && !members.iter().any(|m| m.name == "imageConfig");
        let new = [("imageConfig", format!("{{{}}}", config.join(",")))];
        let new = if is_new { member_texts(&new, is_snake) } else { Vec::new() };
        self.object(value, &new, |e, member| match member.name.as_str() {
            "responseFormat" if respell => Ok(Fate::Goes),
            "responseFormat" => e.response_format(&member.value),
            "thinkingConfig" => e.thinking(&member.value),
            // The options of a `responseFormat` beside it win over its own.
            "imageConfig" => e.object(&member.value, &config, |e, member| {
                let name = member.name.as_str();
                if options.iter().any(|option| option.0 == name) {
                    return Ok(Fate::Goes);
                }
                if e.change.leaves_vertex && VERTEX_ONLY.contains(&name) {
                    e.give_up(GivenUp::ImageOption, name.to_owned(), None);
                    return Ok(Fate::Goes);
                }
                e.image_option(member)
            }),
            _ => e.image_option(member),
        })
    }

    /// Reads what `responseFormat.image` asks for, as the target is to be asked for it in
    /// `imageConfig`.
    fn respell(&mut self, value: &Range<usize>, options: &mut Options) -> Edited {
        self.elements(value, |e, entry| {
            for member in e.members(entry)? {
                if member.name != "image" || e.at(&member.value).kind() != Kind::Object {
                    e.give_up(GivenUp::ImageOption, member.name, None);
                    continue;
                }
                for option in e.members(&member.value)? {
                    match option.name.as_str() {
                        "imageSize" => {
                            e.sized = true;
                            e.report_size();
                            let size = match e.change.size {
                                SizeChange::Keep => e.change.asked_size,
                                SizeChange::Drop => None,
                                SizeChange::Set(size) => Some(size),
                            };
                            options.retain(|option| option.0 != "imageSize");
                            options.extend(size.map(|size| ("imageSize", quoted(size.as_str()))));
                        }
                        "aspectRatio" => {
                            let first = e.at(&option.value).elements().unwrap_or_default();
                            let asked = e.word(first.first().unwrap_or(&option.value));
                            let plain = parse_aspect(&asked).unwrap_or(Cow::Owned(asked.into()));
                            let ratio = e.new_aspect(&plain).unwrap_or(&plain);
                            options.retain(|option| option.0 != "aspectRatio");
                            options.push(("aspectRatio", quoted(ratio)));
                        }
                        _ => e.give_up(GivenUp::ImageOption, option.name, None),
                    }
                }
            }
            Ok(Fate::Stays)
        })
    }

    fn image_options(&mut self, value: &Range<usize>) -> Edited {
        self.object(value, &[], Self::image_option)
    }

    /// An object, or a list, of `{"image": {…}}`, or of the options themselves as the Interactions
    /// API has them.
    fn response_format(&mut self, value: &Range<usize>) -> Edited {
        self.elements(value, |e, entry| {
            e.object(entry, &[], |e, member| match member.name.as_str() {
                "image" => e.image_options(&member.value),
                _ => e.image_option(member),
            })
        })
    }

    fn image_option(&mut self, member: &Member) -> Edited {
        let value = &member.value;
        let asked = match member.name.as_str() {
            "size" | "imageSize" | "imageResolution" | "resolution" | "sampleImageSize" => {
                self.word(value)
            }
            "aspectRatio" => {
                // Also where it is a list of one.
                return self.elements(value, |e, value| {
                    let asked = e.at(value).text().and_then(|text| text.name()).unwrap_or_default();
                    let to = parse_aspect(&asked).and_then(|plain| e.new_aspect(&plain));
                    if let Some(to) = to {
                        e.edits.replace(value.clone(), quoted(&ratio_as(to, &asked)));
                    }
                    Ok(Fate::Stays)
                });
            }
            _ => return Ok(Fate::Stays),
        };
        let Some((size, ratio)) = parse_size(&asked) else { return Ok(Fate::Stays) };
        self.sized = true;
        self.report_size();
        let to = match self.change.size {
            SizeChange::Keep => size,
            // Pixels give the ratio as well, and clients that send pixels have no other way to:
            // 1K of the same shape.
            SizeChange::Drop if ratio.is_some() => ImageSize::K1,
            SizeChange::Drop => return Ok(Fate::Goes),
            SizeChange::Set(to) => to,
        };
        if to != size {
            let spelled = size_as(to, &asked, size);
            let is_text = self.at(value).kind() == Kind::Text;
            self.edits.replace(value.clone(), if is_text { quoted(&spelled) } else { spelled });
        }
        Ok(Fate::Stays)
    }

    fn report_size(&mut self) {
        let to = match self.change.size {
            SizeChange::Keep => return,
            SizeChange::Drop => None,
            SizeChange::Set(to) if Some(to) == self.change.asked_size => return,
            SizeChange::Set(to) => Some(Cow::Borrowed(to.as_str())),
        };
        let from = self.change.asked_size.map_or("default", ImageSize::as_str);
        self.give_up(GivenUp::Size, from, to);
    }

    /// Returns the ratio in place of this one, and reports it once.
    fn new_aspect(&mut self, plain: &str) -> Option<&'a str> {
        let (from, to) = self.change.aspect.filter(|(from, _)| *from == plain)?;
        self.give_up(GivenUp::Aspect, from.to_owned(), Some(Cow::Owned(to.to_owned())));
        Some(to)
    }

    /// `thinkingConfig`, by what the new model can do.
    fn thinking(&mut self, value: &Range<usize>) -> Edited {
        let Some(model) = self.change.to else { return Ok(Fate::Stays) };
        if model.thinking == Thinking::None {
            let raw = self.body.get(value.clone()).unwrap_or_default();
            let asked: String = String::from_utf8_lossy(raw).chars().take(80).collect();
            self.give_up(GivenUp::Thinking, asked, None);
            return Ok(Fate::Goes);
        }
        self.object(value, &[], |e, member| {
            let asked = e.word(&member.value);
            let level = match (member.name.as_str(), model.thinking) {
                ("thinkingLevel", Thinking::Levels) => nearest_level(&asked, model),
                // Those that think always have nothing to choose, and budgets belong to the 2.5
                // line of text models.
                ("thinkingLevel" | "thinkingBudget", _) => None,
                _ => return Ok(Fate::Stays),
            };
            if level.is_some_and(|level| level.eq_ignore_ascii_case(&asked)) {
                return Ok(Fate::Stays);
            }
            let to = level.map(|level| Cow::Owned(level.to_owned()));
            e.give_up(GivenUp::Thinking, format!("{} {asked}", member.name), to);
            let Some(level) = level else { return Ok(Fate::Goes) };
            e.edits.replace(member.value.clone(), quoted(level));
            Ok(Fate::Stays)
        })
    }

    fn contents(&mut self, value: &Range<usize>) -> Edited {
        if self.change.signatures.is_none() {
            return Ok(Fate::Stays);
        }
        self.elements(value, |e, turn| {
            let turn = e.members(turn)?;
            let is_model = |member: &Member| {
                let role = e.at(&member.value).text();
                member.name == "role" && role.is_some_and(|role| role.is("model"))
            };
            let of_model = turn.iter().any(is_model);
            for parts in turn.iter().filter(|member| member.name == "parts") {
                e.elements(&parts.value, |e, part| e.part(part, of_model))?;
            }
            Ok(Fate::Stays)
        })
    }

    fn part(&mut self, value: &Range<usize>, of_model: bool) -> Edited {
        let members = self.members(value)?;
        let has = |names: &[&str]| members.iter().any(|m| names.contains(&m.name.as_str()));
        let is_signed = has(&["thoughtSignature"]);
        let placeholder = match self.change.signatures {
            Some(Signatures::Refuse) if is_signed => return Err(Unfit::Signatures),
            Some(Signatures::Refuse) => return Ok(Fate::Stays),
            Some(Signatures::Placeholder) => Some(quoted(Signatures::PLACEHOLDER)),
            Some(Signatures::Strip) | None => None,
        };
        let lacks_one = of_model && !is_signed && has(&["inlineData", "fileData"]);
        let new = placeholder.as_ref().filter(|_| lacks_one);
        let new: Vec<_> =
            new.map(|text| format!("\"thoughtSignature\":{text}")).into_iter().collect();
        self.added += new.len();
        self.object(value, &new, |e, member| {
            let is_placed = placeholder
                .as_ref()
                .is_some_and(|text| e.body.get(member.value.clone()) == Some(text.as_bytes()));
            if member.name != "thoughtSignature" || is_placed {
                return Ok(Fate::Stays);
            }
            e.signatures += 1;
            let Some(text) = &placeholder else { return Ok(Fate::Goes) };
            e.edits.replace(member.value.clone(), text.clone());
            Ok(Fate::Stays)
        })
    }

    /// A size where none stood, for the step below what is drawn when none is asked for.
    fn insert_size(&mut self, root: &Range<usize>) -> Result<(), Unfit> {
        let SizeChange::Set(size) = self.change.size else { return Ok(()) };
        // No proxy writes 512 behind a name: such a size moves into the body.
        let moves = self.change.size_in_name && size == ImageSize::Px512;
        if self.sized || (self.change.asked_size.is_some() && !moves) {
            return Ok(());
        }
        // Other edits may touch the same objects: a size is inserted only where nothing else
        // changes.
        let is_gemini = self.members(root)?.iter().any(|member| member.name == "contents");
        if !self.edits.is_empty() || !is_gemini {
            return Err(Unfit::Unreadable);
        }
        let (mut object, mut path) = (root.clone(), &["generationConfig", "imageConfig"][..]);
        while let Some((name, rest)) = path.split_first() {
            let members = self.members(&object)?;
            let Some(member) = members.into_iter().find(|member| member.name == *name) else {
                break;
            };
            if self.at(&member.value).kind() != Kind::Object {
                return Err(Unfit::Unreadable);
            }
            (object, path) = (member.value, rest);
        }
        // Whatever is missing is put around it.
        let size = format!("\"imageSize\":\"{size}\"");
        let new = path.iter().rev().fold(size, |inner, name| format!("\"{name}\":{{{inner}}}"));
        self.object(&object, &[new], |_, _| Ok(Fate::Stays))?;
        self.report_size();
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
    let levels = model.thinking_levels.iter();
    levels.min_by_key(|level| rank(level).abs_diff(rank(asked))).map(String::as_str)
}

/// Members by their names in camel case, with their values as JSON.
type Options = Vec<(&'static str, String)>;

/// Spells each member.
fn member_texts(members: &[(&'static str, String)], is_snake: bool) -> Vec<String> {
    let spelled = |name: &'static str| match name {
        "imageConfig" if is_snake => "image_config",
        "imageSize" if is_snake => "image_size",
        "aspectRatio" if is_snake => "aspect_ratio",
        _ => name,
    };
    members.iter().map(|(name, value)| format!("\"{}\":{value}", spelled(name))).collect()
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
