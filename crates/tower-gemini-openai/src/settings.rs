//! Translates everything of a request but its contents: `generationConfig` and its siblings.

use std::borrow::Cow;

use serde_json::Number;

use super::error::OpenAiError;
use super::json::{Json, Members, object};
use super::model::{RequestedImage, RequestedModel};

/// The settings of a Gemini request.
#[derive(Debug, Default)]
pub(super) struct Settings<'a> {
    config: Members<'a>,
    /// Members next to `generationConfig`.
    siblings: Members<'a>,
    /// `n`.
    pub(super) count: usize,
}

/// Members that Gemini has no equivalent for; a response that ignored them would be charged in
/// vain.
const REJECTED: [(&str, &str); 5] = [
    ("tools", "tools are not translated"),
    ("functions", "functions are not translated"),
    ("web_search_options", "searches are not translated"),
    ("audio", "no audio is made"),
    ("prediction", "predictions are not translated"),
];

const SAMPLING: [(&str, &str); 6] = [
    ("temperature", "temperature"),
    ("top_p", "topP"),
    ("top_k", "topK"),
    ("max_tokens", "maxOutputTokens"),
    ("max_completion_tokens", "maxOutputTokens"),
    ("seed", "seed"),
];

/// The most members of one object. Merging looks each name up among the others, which would take
/// minutes for many thousands.
const MAX_MEMBERS: usize = 1024;

/// The most responses to one request: what OpenAI's images API allows.
const MAX_COUNT: usize = 10;

fn invalid<T>(param: &str, message: &str) -> Result<T, OpenAiError> {
    Err(OpenAiError::invalid(param, message))
}

impl<'a> Settings<'a> {
    /// Reads a request to either API; `image_only` where the response has room for an image only.
    pub(super) fn parse(
        request: &'a Json<'_>,
        model: &RequestedModel,
        image_only: bool,
    ) -> Result<Self, OpenAiError> {
        for (name, what) in REJECTED {
            if request.get(name).is_some_and(|value| !is_empty(value)) {
                let message = format!(
                    "`{name}`: {what}; leave it out, or send a Gemini request to `{}`",
                    model.path(false)
                );
                return Err(OpenAiError::unsupported(name, message));
            }
        }
        check_member_counts(None, request)?;
        let count = read_count(request)?;
        let sources: Vec<_> =
            [Some(request), request.get("extra_body")].into_iter().flatten().collect();
        let google: Vec<_> = sources.iter().filter_map(|source| source.get("google")).collect();
        let mut settings = Self { count, ..Self::default() };
        settings.read_generation(request, model)?;
        settings.read_modalities(&sources, image_only)?;
        let all = [sources.as_slice(), &google].concat();
        let image = model.image_config(&RequestedImage::parse(&all, image_only))?;
        if !image.is_empty() {
            settings.set("imageConfig", Json::Object(image));
        }
        for source in sources {
            settings.read_native(source, false)?;
        }
        for source in google {
            settings.read_native(source, true)?;
        }
        let count = settings.config.iter().find(|(name, _)| name == "candidateCount");
        if count.and_then(|(_, count)| count.number()).is_some_and(|count| count > 1.0) {
            let message = "`candidateCount` above 1 is not supported: Gemini's image models make \
                           one image per request; send `n`";
            return Err(OpenAiError::unsupported("candidateCount", message));
        }
        Ok(settings)
    }

    /// Makes the body of the Gemini request, with these members first.
    pub(super) fn into_body(self, mut members: Members<'a>) -> Json<'a> {
        if !self.config.is_empty() {
            members.push((Cow::Borrowed("generationConfig"), Json::Object(self.config)));
        }
        members.extend(self.siblings);
        Json::Object(members)
    }

    fn set(&mut self, name: impl Into<Cow<'a, str>>, value: Json<'a>) {
        put(&mut self.config, name.into(), value);
    }

    fn read_generation(
        &mut self,
        request: &'a Json<'_>,
        model: &RequestedModel,
    ) -> Result<(), OpenAiError> {
        for (openai, gemini) in SAMPLING {
            let number = match request.get(openai) {
                None => continue,
                Some(number @ Json::Number(_)) => Some(number.borrowed()),
                // The fields of a form are texts.
                Some(Json::Text(text)) => text.trim().parse::<Number>().ok().map(Json::Number),
                Some(_) => None,
            };
            match number {
                Some(number) => self.set(gemini, number),
                None => return invalid(openai, &format!("`{openai}` is not a number")),
            }
        }
        match request.get("stop") {
            None => {}
            Some(Json::List(stops)) if stops.is_empty() => {}
            Some(stop @ Json::Text(_)) => {
                self.set("stopSequences", Json::List(vec![stop.borrowed()]));
            }
            Some(stops @ Json::List(list)) if list.iter().all(|stop| stop.text().is_some()) => {
                self.set("stopSequences", stops.borrowed());
            }
            Some(_) => return invalid("stop", "`stop` is neither a text nor a list of texts"),
        }
        self.read_response_format(request)?;
        let effort = request.text_of(&["reasoning_effort"]);
        if let Some(level) = effort.and_then(|effort| model.thinking_level(effort)) {
            self.set("thinkingConfig", object([("thinkingLevel", level.into())]));
        }
        // The tier changes the price: flex costs half, priority up to twice as much.
        let tier = match request.text_of(&["service_tier"]) {
            None | Some("auto") => return Ok(()),
            Some("default") => "standard",
            Some(tier @ ("flex" | "priority" | "standard")) => tier,
            Some(_) => {
                let message = "`service_tier` is auto, default, flex or priority";
                return invalid("service_tier", message);
            }
        };
        put(&mut self.siblings, Cow::Borrowed("serviceTier"), tier.into());
        Ok(())
    }

    /// Reads `response_format` of a chat. In the images API it is a text and means something else.
    fn read_response_format(&mut self, request: &'a Json<'_>) -> Result<(), OpenAiError> {
        const NAME: &str = "response_format";
        let Some(format @ Json::Object(_)) = request.get(NAME) else { return Ok(()) };
        match format.text_of(&["type"]) {
            Some("text") | None => return Ok(()),
            Some("json_object") => {}
            Some("json_schema") => {
                let Some(schema) = format.at(&["json_schema", "schema"]) else {
                    return invalid(NAME, "`response_format` has no `json_schema.schema`");
                };
                self.set("responseJsonSchema", schema.borrowed());
            }
            Some(_) => {
                return invalid(NAME, "`response_format` is text, json_object or json_schema");
            }
        }
        self.set("responseMimeType", "application/json".into());
        Ok(())
    }

    fn read_modalities(
        &mut self,
        sources: &[&'a Json<'_>],
        image_only: bool,
    ) -> Result<(), OpenAiError> {
        const NAMES: [&str; 3] = ["modalities", "response_modalities", "responseModalities"];
        if image_only {
            // A text could not be delivered, and is charged.
            self.set("responseModalities", Json::List(vec!["IMAGE".into()]));
            return Ok(());
        }
        let Some(stated) = sources.iter().find_map(|source| source.any(&NAMES)) else {
            return Ok(());
        };
        let Json::List(list) = stated else {
            return invalid("modalities", "`modalities` is a list of text and image");
        };
        let mut modalities = Vec::new();
        for modality in list {
            let modality = modality.text().unwrap_or_default().to_ascii_uppercase();
            if !matches!(modality.as_str(), "TEXT" | "IMAGE") {
                return invalid(
                    "modalities",
                    "`modalities` are text and image; nothing else is made",
                );
            }
            modalities.push(Json::from(modality));
        }
        if !modalities.is_empty() {
            self.set("responseModalities", Json::List(modalities));
        }
        Ok(())
    }

    /// Copies Gemini's own settings over those derived from OpenAI's. Everything in a `google`
    /// object is meant for Gemini: what it does not know it rejects, which is free.
    fn read_native(&mut self, source: &'a Json<'_>, is_google: bool) -> Result<(), OpenAiError> {
        let members = source.members().unwrap_or_default();
        for (name, value) in members.iter().filter(|(_, value)| *value != Json::Null) {
            match &*camel(name) {
                "generationConfig" => {
                    for (name, value) in value.members().unwrap_or_default() {
                        let value = match &*camel(name) {
                            "imageConfig" | "thinkingConfig" => camel_members(value),
                            _ => value.borrowed(),
                        };
                        self.set(camel(name), value);
                    }
                }
                "imageConfig" => {
                    // Size and ratio have been read already.
                    let known = ["imageSize", "aspectRatio"];
                    let Json::Object(mut others) = camel_members(value) else { continue };
                    others.retain(|(name, _)| !known.contains(&&**name));
                    if !others.is_empty() {
                        self.set("imageConfig", Json::Object(others));
                    }
                }
                "thinkingConfig" => self.set("thinkingConfig", camel_members(value)),
                "safetySettings" | "cachedContent" => {
                    put(&mut self.siblings, camel(name), value.borrowed());
                }
                "imageSize" | "aspectRatio" | "size" => {}
                "contents" | "systemInstruction" | "model" if is_google => {
                    let message = format!("`google.{name}` repeats the request; leave it out");
                    return invalid("google", &message);
                }
                _ if is_google => put(&mut self.siblings, camel(name), value.borrowed()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_member_counts(name: Option<&str>, value: &Json<'_>) -> Result<(), OpenAiError> {
    let Some(members) = value.members() else { return Ok(()) };
    if members.len() > MAX_MEMBERS {
        let Some(name) = name else {
            let message = format!("the request has more than {MAX_MEMBERS} members");
            return Err(OpenAiError::new(message));
        };
        let name: String = name.chars().take(40).collect();
        return invalid(&name, &format!("`{name}` has more than {MAX_MEMBERS} members"));
    }
    members.iter().try_for_each(|(name, value)| check_member_counts(Some(name), value))
}

/// Reads `n`. Gemini's image models make one image per request, so it says how many requests.
fn read_count(request: &Json<'_>) -> Result<usize, OpenAiError> {
    let Some(n) = request.get("n") else { return Ok(1) };
    let known = (1..=MAX_COUNT).find(|&count| n.number() == Some(count as f64));
    known.map_or_else(|| invalid("n", &format!("`n` is a number from 1 to {MAX_COUNT}")), Ok)
}

fn is_empty(value: &Json<'_>) -> bool {
    match value {
        Json::List(list) => list.is_empty(),
        Json::Object(members) => members.is_empty(),
        Json::Bool(value) => !value,
        _ => false,
    }
}

fn camel_members<'a>(value: &'a Json<'_>) -> Json<'a> {
    let Some(members) = value.members() else { return value.borrowed() };
    Json::Object(members.iter().map(|(name, value)| (camel(name), value.borrowed())).collect())
}

/// Sets a member, or merges an object into the object that is there.
fn put<'a>(members: &mut Members<'a>, name: Cow<'a, str>, value: Json<'a>) {
    match (members.iter_mut().find(|(known, _)| *known == name), value) {
        (None, value) => members.push((name, value)),
        (Some((_, Json::Object(old))), Json::Object(new)) => {
            for (name, value) in new {
                match old.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, old)) => *old = value,
                    None => old.push((name, value)),
                }
            }
        }
        (Some((_, old)), value) => *old = value,
    }
}

/// Spells a name in camel case: Gemini takes either spelling, but not both at once.
fn camel(name: &str) -> Cow<'_, str> {
    if !name.contains('_') {
        return Cow::Borrowed(name);
    }
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    Cow::Owned(camel)
}
