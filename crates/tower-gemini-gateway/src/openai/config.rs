//! `generationConfig`, and what else of a request stands beside its contents.

use std::borrow::Cow;

use serde_json::Number;

use super::error::OpenAiError;
use super::json::{Json, Members, object};
use super::target::{Target, Wishes};

/// What is asked besides the words.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    config: Members<'a>,
    /// Members of the request itself.
    beside: Members<'a>,
}

/// Members of a request that Gemini has nothing for, and that would be paid for in vain.
const REFUSED: [(&str, &str); 5] = [
    ("tools", "tools are not translated"),
    ("functions", "functions are not translated"),
    ("web_search_options", "a search is not translated"),
    ("audio", "no audio is made"),
    ("prediction", "predictions are not translated"),
];

impl<'a> Asked<'a> {
    /// Reads `asked`, a request of either API. `only_image` where nothing but an image can be told.
    pub(super) fn of(
        asked: &'a Json<'_>,
        target: &Target,
        only_image: bool,
    ) -> Result<Self, OpenAiError> {
        let extra = asked.get("extra_body");
        let googles: Vec<&'a Json<'_>> = [Some(asked), extra]
            .into_iter()
            .flatten()
            .filter_map(|source| source.get("google"))
            .collect();
        let mut sources: Vec<&'a Json<'_>> = vec![asked];
        sources.extend(extra);
        for (name, what) in REFUSED {
            if asked.get(name).is_some_and(|value| !is_empty(value)) {
                let message = format!(
                    "`{name}`: {what} by this gateway; leave it out, or ask `{}` in Gemini's own words",
                    target.path(false)
                );
                return Err(OpenAiError::unsupported(name, message));
            }
        }
        few_members(None, asked)?;
        one_answer(asked)?;
        let mut this = Self::default();
        this.sampling(asked, target)?;
        this.modalities(&sources, only_image)?;
        let mut wishing = sources.clone();
        wishing.extend(&googles);
        let image = target.image_config(&Wishes::of(&wishing, only_image))?;
        if !image.is_empty() {
            this.set("imageConfig", Json::Object(image));
        }
        for source in &sources {
            this.own_words(source, false)?;
        }
        for google in &googles {
            this.own_words(google, true)?;
        }
        let count = this
            .config
            .iter()
            .find(|(name, _)| name == "candidateCount")
            .and_then(|(_, count)| count.number());
        if count.is_some_and(|count| count > 1.0) {
            return Err(many("candidateCount"));
        }
        Ok(this)
    }

    /// The request's body, with these contents in front.
    pub(super) fn into_body(self, mut members: Members<'a>) -> Json<'a> {
        if !self.config.is_empty() {
            members.push((Cow::Borrowed("generationConfig"), Json::Object(self.config)));
        }
        members.extend(self.beside);
        Json::Object(members)
    }

    fn set(&mut self, name: impl Into<Cow<'a, str>>, value: Json<'a>) {
        put(&mut self.config, name.into(), value);
    }

    fn sampling(&mut self, asked: &'a Json<'_>, target: &Target) -> Result<(), OpenAiError> {
        for (theirs, ours) in [
            ("temperature", "temperature"),
            ("top_p", "topP"),
            ("top_k", "topK"),
            ("max_tokens", "maxOutputTokens"),
            ("max_completion_tokens", "maxOutputTokens"),
            ("seed", "seed"),
        ] {
            match asked.get(theirs) {
                None => {}
                Some(number @ Json::Number(_)) => self.set(ours, number.borrowed()),
                // A form has only texts.
                Some(Json::Text(text)) if text.trim().parse::<Number>().is_ok() => {
                    self.set(ours, text.trim().parse().map_or(Json::Null, Json::Number));
                }
                Some(_) => return Err(OpenAiError::of(theirs, format!("`{theirs}` is no number"))),
            }
        }
        match asked.get("stop") {
            None => {}
            Some(Json::List(stops)) if stops.is_empty() => {}
            Some(stop @ Json::Text(_)) => {
                self.set("stopSequences", Json::List(vec![stop.borrowed()]))
            }
            Some(Json::List(stops)) if stops.iter().all(|stop| stop.text().is_some()) => {
                self.set("stopSequences", Json::List(stops.iter().map(Json::borrowed).collect()));
            }
            Some(_) => {
                return Err(OpenAiError::of(
                    "stop",
                    "`stop` is neither a text nor a list of texts",
                ));
            }
        }
        self.response_format(asked)?;
        if let Some(level) =
            asked.text_of(&["reasoning_effort"]).and_then(|effort| target.thinking_level(effort))
        {
            self.set("thinkingConfig", object([("thinkingLevel", level.into())]));
        }
        // The tier changes the price: flex costs half, priority up to twice as much.
        match asked.text_of(&["service_tier"]) {
            None | Some("auto") => {}
            Some("default") => {
                put(&mut self.beside, Cow::Borrowed("serviceTier"), "standard".into())
            }
            Some(tier @ ("flex" | "priority" | "standard")) => {
                put(&mut self.beside, Cow::Borrowed("serviceTier"), tier.into());
            }
            Some(_) => {
                return Err(OpenAiError::of(
                    "service_tier",
                    "`service_tier` is auto, default, flex or priority",
                ));
            }
        }
        Ok(())
    }

    /// Of a chat. In the images API the same member says how the image is given back.
    fn response_format(&mut self, asked: &'a Json<'_>) -> Result<(), OpenAiError> {
        let Some(format @ Json::Object(_)) = asked.get("response_format") else { return Ok(()) };
        match format.text_of(&["type"]) {
            Some("text") | None => {}
            Some("json_object") => self.set("responseMimeType", "application/json".into()),
            Some("json_schema") => {
                let schema = format.at(&["json_schema", "schema"]);
                let schema = schema.ok_or_else(|| {
                    OpenAiError::of(
                        "response_format",
                        "`response_format` has no `json_schema.schema`",
                    )
                })?;
                self.set("responseMimeType", "application/json".into());
                self.set("responseJsonSchema", schema.borrowed());
            }
            Some(_) => {
                return Err(OpenAiError::of(
                    "response_format",
                    "`response_format` is text, json_object or json_schema",
                ));
            }
        }
        Ok(())
    }

    fn modalities(
        &mut self,
        sources: &[&'a Json<'_>],
        only_image: bool,
    ) -> Result<(), OpenAiError> {
        let said = sources.iter().find_map(|source| {
            source.any(&["modalities", "response_modalities", "responseModalities"])
        });
        let list = match said {
            // A text could not be told, and is paid for.
            _ if only_image => vec!["IMAGE".into()],
            None => return Ok(()),
            Some(Json::List(list)) => {
                let mut words = Vec::new();
                for word in list {
                    let word = word.text().unwrap_or_default().to_ascii_uppercase();
                    if !matches!(word.as_str(), "TEXT" | "IMAGE") {
                        return Err(OpenAiError::of(
                            "modalities",
                            "`modalities` are text and image; nothing else is made",
                        ));
                    }
                    words.push(Json::from(word));
                }
                words
            }
            Some(_) => {
                return Err(OpenAiError::of(
                    "modalities",
                    "`modalities` is a list of text and image",
                ));
            }
        };
        if !list.is_empty() {
            self.set("responseModalities", Json::List(list));
        }
        Ok(())
    }

    /// What is said in Gemini's own words wins over what was made of OpenAI's. Of a `google` object
    /// everything is meant for Gemini: what it does not know it refuses, and that is free.
    fn own_words(&mut self, source: &'a Json<'_>, all: bool) -> Result<(), OpenAiError> {
        for (name, value) in
            source.members().unwrap_or_default().iter().filter(|(_, value)| *value != Json::Null)
        {
            let spelled = camel(name);
            match &*spelled {
                "generationConfig" => {
                    for (name, value) in value.members().unwrap_or_default() {
                        self.set(camel(name), nested(name, value));
                    }
                }
                // Read already, size and ratio apart.
                "imageConfig" => {
                    let known = ["imageSize", "aspectRatio"];
                    let others = value
                        .members()
                        .unwrap_or_default()
                        .iter()
                        .filter(|(name, _)| !known.contains(&&*camel(name)));
                    let others: Members<'a> =
                        others.map(|(name, value)| (camel(name), value.borrowed())).collect();
                    if !others.is_empty() {
                        self.set("imageConfig", Json::Object(others));
                    }
                }
                "thinkingConfig" => self.set("thinkingConfig", camel_members(value)),
                "safetySettings" | "cachedContent" => {
                    put(&mut self.beside, camel(name), value.borrowed())
                }
                "imageSize" | "aspectRatio" | "size" => {}
                "contents" | "systemInstruction" | "model" if all => {
                    return Err(OpenAiError::of(
                        "google",
                        format!("`google.{name}` is said by the request itself; leave it out"),
                    ));
                }
                _ if all => put(&mut self.beside, camel(name), value.borrowed()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Objects are merged by looking each name up among the others: many thousands of them would take
/// minutes.
const MOST_MEMBERS: usize = 1024;

fn few_members(name: Option<&str>, value: &Json<'_>) -> Result<(), OpenAiError> {
    let Some(members) = value.members() else { return Ok(()) };
    if members.len() > MOST_MEMBERS {
        return Err(match name {
            None => OpenAiError::new(format!("the request has more than {MOST_MEMBERS} members")),
            Some(name) => {
                let name: String = name.chars().take(40).collect();
                OpenAiError::of(
                    name.clone(),
                    format!("`{name}` has more than {MOST_MEMBERS} members"),
                )
            }
        });
    }
    members.iter().try_for_each(|(name, value)| few_members(Some(name), value))
}

/// `n`: the image models of Gemini give one answer to a request.
fn one_answer(asked: &Json<'_>) -> Result<(), OpenAiError> {
    match asked.get("n").map(Json::number) {
        None | Some(Some(1.0)) => Ok(()),
        Some(Some(n)) if n > 1.0 => Err(many("n")),
        Some(_) => {
            Err(OpenAiError::of("n", "`n` is 1: Gemini's image models make one image a request"))
        }
    }
}

fn many(param: &str) -> OpenAiError {
    let message = format!(
        "`{param}` above 1 is not supported: Gemini's image models make one image a request, so send as many requests"
    );
    OpenAiError::unsupported(param, message)
}

fn is_empty(value: &Json<'_>) -> bool {
    match value {
        Json::List(list) => list.is_empty(),
        Json::Object(members) => members.is_empty(),
        Json::Bool(value) => !value,
        _ => false,
    }
}

/// A member of `generationConfig`, its own members in one spelling where they may meet ours.
fn nested<'a>(name: &str, value: &'a Json<'_>) -> Json<'a> {
    match &*camel(name) {
        "imageConfig" | "thinkingConfig" => camel_members(value),
        _ => value.borrowed(),
    }
}

fn camel_members<'a>(value: &'a Json<'_>) -> Json<'a> {
    match value.members() {
        Some(members) => Json::Object(
            members.iter().map(|(name, value)| (camel(name), value.borrowed())).collect(),
        ),
        None => value.borrowed(),
    }
}

fn put<'a>(members: &mut Members<'a>, name: Cow<'a, str>, value: Json<'a>) {
    match members.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => merge(old, value),
        None => members.push((name, value)),
    }
}

/// A newer value over an older one; objects member by member.
fn merge<'a>(old: &mut Json<'a>, new: Json<'a>) {
    match (old, new) {
        (Json::Object(old), Json::Object(new)) => {
            for (name, value) in new {
                match old.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, old)) => *old = value,
                    None => old.push((name, value)),
                }
            }
        }
        (old, new) => *old = new,
    }
}

/// A name in the spelling of JSON: both are allowed, but not both at once.
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
