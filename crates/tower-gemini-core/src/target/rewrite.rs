//! A request as it will be sent to a target.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Uri};

use super::body::{Change, SizeChange, edit};
use super::words::{Degradation, GivenUp, MustKeep, Signatures, Unfit};
use super::{Target, Upstream};
use crate::call::{
    Call, Dialect, ImageSize, ModelId, Verb, split_model_suffix, strip_model_prefix,
};
use crate::catalog::{Catalog, Family, Model, Thinking};

/// How requests are rewritten.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Rules<'a> {
    /// What is known of models.
    pub catalog: &'a Catalog,
    /// What the caller insists on.
    pub must_keep: MustKeep,
    /// What becomes of thought signatures.
    pub signatures: Signatures,
}

impl<'a> Rules<'a> {
    /// Nothing must be kept, and signatures are replaced by the placeholder.
    #[must_use]
    pub fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, must_keep: MustKeep::nothing(), signatures: Signatures::default() }
    }

    /// What the caller insists on.
    #[must_use]
    pub fn must_keep(mut self, must_keep: MustKeep) -> Self {
        self.must_keep = must_keep;
        self
    }

    /// What becomes of thought signatures.
    #[must_use]
    pub fn signatures(mut self, signatures: Signatures) -> Self {
        self.signatures = signatures;
        self
    }
}

/// A kept request as it would be sent to a target, and what that gives up.
///
/// Made by [`rewrite`]: [`apply_to_head`](Self::apply_to_head) changes the head of the request it
/// was made from, [`into_body`](Self::into_body) gives the body that goes with it.
#[derive(Debug)]
pub struct Rewrite {
    uri: Uri,
    /// `None` leaves them as they are.
    upstream: Option<(Arc<Upstream>, Dialect)>,
    /// `None` leaves the body as it is.
    chunks: Option<Vec<Bytes>>,
    call: Arc<Call>,
    given_up: Vec<Degradation>,
}

impl Rewrite {
    /// What it asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// Everything in which it differs from the request it was made from.
    #[must_use]
    pub fn given_up(&self) -> &[Degradation] {
        &self.given_up
    }

    /// Whether it is the request it was made from, byte for byte.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.given_up.is_empty()
    }

    /// The body that goes with the changed head: its bytes in order (`None` where they stay as they
    /// are), and what it asks for.
    #[must_use]
    pub fn into_body(self) -> (Option<Vec<Bytes>>, Arc<Call>) {
        (self.chunks, self.call)
    }

    /// Changes a head: address and credentials, and removes a length that is no longer true.
    pub fn apply_to_head(&self, parts: &mut Parts) {
        if self.is_unchanged() {
            return;
        }
        parts.uri = self.uri.clone();
        if self.chunks.is_some() {
            // A rewritten body under the caller's length is cut short, or hangs, in hyper and
            // reqwest alike.
            parts.headers.remove(CONTENT_LENGTH);
            parts.headers.remove(TRANSFER_ENCODING);
        }
        if let Some((upstream, dialect)) = &self.upstream {
            upstream.head(&mut parts.headers, *dialect);
        }
    }
}

/// Rewrites a request for a target. `body` gives the whole body in one piece, and is asked only
/// where bytes of it change.
///
/// # Errors
///
/// [`Unfit`] says what the target lacks, or what the caller [must keep](MustKeep).
pub fn rewrite(
    parts: &Parts,
    call: &Arc<Call>,
    target: &Target,
    rules: &Rules<'_>,
    body: impl FnOnce() -> Bytes,
) -> Result<Rewrite, Unfit> {
    let asked = call.model.as_ref().map_or("", ModelId::as_str);
    let known = rules.catalog.lookup(asked);
    let wanted = rules.catalog.lookup(target.model.as_str());
    let same_model = match (known, wanted) {
        (Some(a), Some(b)) => a.id == b.id,
        _ => strip_model_prefix(asked) == target.model.as_str(),
    };
    let upstream = target.upstream.as_ref();
    let dialect = match upstream {
        Some(upstream) => upstream.dialect(call).ok_or(Unfit::OtherApi)?,
        None => call.dialect,
    };
    let same_backend = dialect == call.dialect;
    if (same_model || call.model.is_none()) && upstream.is_none() && target.size_cap.is_none() {
        return Ok(unchanged(parts, call));
    }

    fits(call, known, wanted, same_model, rules)?;
    if call.is_continuation && (!same_model || upstream.is_some()) {
        return Err(Unfit::Continuation);
    }
    // Of a model that stays, only what the target caps changes: its own limits are the server's to
    // tell.
    let to = wanted.filter(|_| !same_model);
    let size = settle_size(call.size, target.size_cap, wanted, same_model);
    let result_size = match size {
        SizeChange::Keep => call.size.unwrap_or(ImageSize::K1),
        SizeChange::Set(size) => size,
        SizeChange::Drop => {
            wanted.and_then(|model| model.nearest_size(ImageSize::K1)).unwrap_or(ImageSize::K1)
        }
    };
    if rules.must_keep.size && call.wants_image && result_size != call.size.unwrap_or(ImageSize::K1)
    {
        return Err(Unfit::KeepsSize);
    }
    let aspect = match (call.aspect.as_deref(), to) {
        (Some(from), Some(model)) if !model.takes_ratio(from) => {
            model.nearest_ratio(from).map(|nearest| (from, nearest))
        }
        _ => None,
    };
    if rules.must_keep.aspect && aspect.is_some() {
        return Err(Unfit::KeepsAspect);
    }

    let names = Names::new(call, asked, target, same_model, size, wanted, aspect);
    let gemini_shaped = matches!(call.dialect, Dialect::GeminiApi | Dialect::VertexAi);
    let foreign = !same_model || upstream.is_some();
    let change = Change {
        model: names.model.as_deref(),
        to,
        asked_size: call.size,
        size,
        aspect,
        respell: gemini_shaped
            && (to.is_some_and(|model| !model.accepts_response_format) || !same_backend),
        leaves_vertex: call.dialect == Dialect::VertexAi && dialect != Dialect::VertexAi,
        signatures: (call.multi_turn && gemini_shaped && (!same_model || !same_backend)).then(
            || {
                let thinks = wanted.is_none_or(|model| model.thinking != Thinking::None);
                match rules.signatures {
                    Signatures::Placeholder if !thinks => Signatures::Strip,
                    policy => policy,
                }
            },
        ),
    };
    let body = readable(parts, foreign, &change).map(|needed| needed.then(body))?;
    let (mut given_up, mut chunks) = (Vec::new(), None);
    if let Some(body) = body {
        belongs_elsewhere(&body, call, same_model, upstream.is_some(), gemini_shaped)?;
        let (edits, gone) = edit(&body, &change)?;
        given_up = gone;
        if !edits.is_empty() {
            chunks = Some(edits.apply(&body));
        }
    }
    let (path, same_path) = names.path(parts.uri.path(), call);
    let uri = match upstream {
        Some(upstream) => {
            let model = names.model.as_deref().unwrap_or(asked);
            let verb = path.map_or("", |path| path.verb);
            upstream.uri(&upstream.path(call, model, verb, &same_path), parts.uri.query())?
        }
        None => with_path(&parts.uri, &same_path)?,
    };
    let named_size = names.size_given_up(call);
    if named_size && !given_up.iter().any(|given| given.what == GivenUp::Size) {
        if let (Some(from), false) = (call.size, matches!(size, SizeChange::Keep)) {
            let to = if let SizeChange::Set(to) = size {
                Some(Cow::Borrowed(to.as_str()))
            } else {
                None
            };
            given_up.push(Degradation::new(GivenUp::Size, from.as_str(), to));
        }
    }
    if let (true, Some((from, to))) = (names.ratio_in_name, aspect) {
        if !given_up.iter().any(|given| given.what == GivenUp::Aspect) {
            given_up.push(Degradation::new(
                GivenUp::Aspect,
                from.to_owned(),
                Some(Cow::Owned(to.to_owned())),
            ));
        }
    }
    if let Some(upstream) = upstream {
        let from = parts.uri.host().unwrap_or("").to_owned();
        given_up.insert(
            0,
            Degradation::new(GivenUp::Upstream, from, Some(Cow::Owned(upstream.host().to_owned()))),
        );
    }
    if !same_model {
        let to = Some(Cow::Owned(target.model.as_str().to_owned()));
        given_up.insert(0, Degradation::new(GivenUp::Model, asked.to_owned(), to));
    }
    let gave = |what| given_up.iter().any(|given| given.what == what);
    let derived = Call {
        dialect,
        model: if same_model { call.model.clone() } else { Some(target.model.clone()) },
        version: if upstream.is_some() { version_of(&uri) } else { call.version.clone() },
        size: match size {
            SizeChange::Set(size) if gave(GivenUp::Size) => Some(size),
            SizeChange::Drop if gave(GivenUp::Size) => None,
            _ => call.size,
        },
        aspect: match aspect {
            Some((_, to)) if gave(GivenUp::Aspect) => Some(Cow::Owned(to.to_owned())),
            _ => call.aspect.clone(),
        },
        ..Call::clone(call)
    };
    Ok(Rewrite {
        uri,
        upstream: upstream.map(|upstream| (upstream.clone(), dialect)),
        chunks,
        call: Arc::new(derived),
        given_up,
    })
}

fn unchanged(parts: &Parts, call: &Arc<Call>) -> Rewrite {
    let (uri, call) = (parts.uri.clone(), call.clone());
    Rewrite { uri, upstream: None, chunks: None, call, given_up: Vec::new() }
}

/// Whether the model can answer such a call at all, and whether the caller lets it.
fn fits(
    call: &Call,
    known: Option<&Model>,
    wanted: Option<&Model>,
    same: bool,
    rules: &Rules<'_>,
) -> Result<(), Unfit> {
    if same {
        return Ok(());
    }
    let predicts =
        |model: Option<&Model>| model.is_some_and(|model| model.family == Family::Imagen);
    if (call.verb == Verb::Predict) != predicts(wanted) {
        return Err(Unfit::OtherApi);
    }
    let draws = |model: Option<&Model>| model.is_some_and(|model| model.images);
    if !call.wants_image && draws(wanted) && !draws(known) {
        return Err(Unfit::MakesImages);
    }
    if call.has_input_images && wanted.is_some_and(|model| !model.edits) {
        return Err(Unfit::CannotEdit);
    }
    if rules.must_keep.vendor {
        match (known, wanted) {
            (Some(known), Some(wanted)) if known.vendor == wanted.vendor => {}
            _ => return Err(Unfit::KeepsVendor),
        }
    }
    Ok(())
}

fn settle_size(
    asked: Option<ImageSize>,
    cap: Option<ImageSize>,
    model: Option<&Model>,
    same_model: bool,
) -> SizeChange {
    let Some(asked) = asked else {
        // Nothing is asked for, and 1K is what is made then: only a cap below that says anything.
        return match cap {
            Some(cap) if cap < ImageSize::K1 && model.is_none_or(|model| model.makes(cap)) => {
                SizeChange::Set(cap)
            }
            _ => SizeChange::Keep,
        };
    };
    let capped = cap.map_or(asked, |cap| asked.min(cap));
    let Some(model) = model.filter(|_| !same_model || capped != asked) else {
        return if capped == asked { SizeChange::Keep } else { SizeChange::Set(capped) };
    };
    if !model.accepts_image_size {
        return SizeChange::Drop;
    }
    match model.nearest_size(capped) {
        Some(size) if size != asked => SizeChange::Set(size),
        _ => SizeChange::Keep,
    }
}

/// Whether the body must be looked at; an error where it must be and cannot.
fn readable(parts: &Parts, foreign: bool, change: &Change<'_>) -> Result<bool, Unfit> {
    if !foreign && change.size == SizeChange::Keep {
        return Ok(false);
    }
    let header =
        |name| parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let encoded =
        header(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"));
    let form = header(CONTENT_TYPE)
        .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("multipart/"));
    if encoded || form || parts.method != Method::POST { Err(Unfit::Unreadable) } else { Ok(true) }
}

/// Things that only the place and the model they were made for know.
fn belongs_elsewhere(
    body: &[u8],
    call: &Call,
    same_model: bool,
    leaves: bool,
    gemini_shaped: bool,
) -> Result<(), Unfit> {
    // The names with their quotes cannot stand inside base64, and in a text their quotes would be
    // escaped.
    let has = |names: [&str; 2]| {
        names.iter().any(|name| memchr::memmem::find(body, name.as_bytes()).is_some())
    };
    if has(["\"cachedContent\"", "\"cached_content\""]) {
        return Err(Unfit::CachedContent);
    }
    if leaves && has(["\"fileData\"", "\"file_data\""]) {
        return Err(Unfit::UploadedFiles);
    }
    let signed = || has(["\"thoughtSignature\"", "\"thought_signature\""]);
    if call.multi_turn && !gemini_shaped && !same_model && signed() {
        return Err(Unfit::Signatures);
    }
    Ok(())
}

/// The model's name where the request spells it, with what proxies hang onto it.
struct Names {
    /// `None` where it stays.
    model: Option<String>,
    size_in_name: bool,
    ratio_in_name: bool,
}

/// The parts of a path whose last segment is `{model}:{verb}`.
struct Verbed<'a> {
    verb: &'a str,
}

impl Names {
    fn new(
        call: &Call,
        asked: &str,
        target: &Target,
        same_model: bool,
        size: SizeChange,
        wanted: Option<&Model>,
        aspect: Option<(&str, &str)>,
    ) -> Self {
        let (base, size_suffix, ratio_suffix) =
            if call.wants_image { split_model_suffix(asked) } else { (asked, None, None) };
        let (size_in_name, ratio_in_name) = (size_suffix.is_some(), ratio_suffix.is_some());
        let resized = size_in_name && size != SizeChange::Keep;
        if same_model && !resized {
            return Self { model: None, size_in_name, ratio_in_name };
        }
        let mut name = if same_model { base.to_owned() } else { target.model.as_str().to_owned() };
        for part in asked.get(base.len()..).unwrap_or("").split('-').filter(|part| !part.is_empty())
        {
            let is_size = part.ends_with(['k', 'K']);
            let part = match (is_size, size) {
                (true, SizeChange::Drop) => continue,
                // No proxy writes 512 behind a name.
                (true, SizeChange::Set(ImageSize::Px512)) => continue,
                (true, SizeChange::Set(to)) if part.ends_with('k') => {
                    Cow::Owned(to.as_str().to_ascii_lowercase())
                }
                (true, SizeChange::Set(to)) => Cow::Borrowed(to.as_str()),
                (true, SizeChange::Keep)
                    if wanted.is_some_and(|model| !model.accepts_image_size) =>
                {
                    continue;
                }
                (false, _) => match aspect {
                    Some((_, to)) => Cow::Owned(to.replace(':', "x")),
                    None => Cow::Borrowed(part),
                },
                (true, SizeChange::Keep) => Cow::Borrowed(part),
            };
            name.push('-');
            name.push_str(&part);
        }
        Self { model: Some(name), size_in_name, ratio_in_name }
    }

    fn size_given_up(&self, call: &Call) -> bool {
        self.size_in_name && call.size.is_some()
    }

    /// The path with the model put in, and its verb. A path that names no model stays as it is.
    fn path<'a>(&self, path: &'a str, call: &Call) -> (Option<Verbed<'a>>, String) {
        let model_in_path = matches!(call.dialect, Dialect::GeminiApi | Dialect::VertexAi);
        let colon = path
            .rfind(':')
            .map(|at| (at, 1))
            .or_else(|| path.rfind("%3A").or(path.rfind("%3a")).map(|at| (at, 3)));
        let Some((colon, width)) = colon.filter(|_| model_in_path) else {
            return (None, path.to_owned());
        };
        let (resource, verb) =
            (path.get(..colon).unwrap_or(""), path.get(colon + width..).unwrap_or(""));
        let method = Some(Verbed { verb: verb.trim_end_matches('/') });
        let Some(model) = &self.model else { return (method, path.to_owned()) };
        let slash = |text: &str| {
            let encoded = text.rfind("%2F").max(text.rfind("%2f")).map(|at| at + 3);
            encoded.max(text.rfind('/').map(|at| at + 1))
        };
        let start = slash(resource).unwrap_or(0);
        let front = resource.get(..start).unwrap_or("");
        let asked = call.model.as_ref().map_or("", ModelId::as_str);
        // `tunedModels/x` and `endpoints/123` are other collections than `models`.
        let front = match asked.split_once('/').map(|(collection, _)| collection) {
            Some("tunedModels" | "dynamic") => format!("{}models/", before_last_segment(front)),
            Some("endpoints") => format!("{}publishers/google/models/", before_last_segment(front)),
            _ => front.to_owned(),
        };
        (method, format!("{front}{model}{}", path.get(colon..).unwrap_or("")))
    }
}

fn before_last_segment(front: &str) -> &str {
    let front = front.trim_end_matches('/');
    front.rfind('/').and_then(|slash| front.get(..=slash)).unwrap_or("")
}

fn with_path(uri: &Uri, path: &str) -> Result<Uri, Unfit> {
    if path == uri.path() {
        return Ok(uri.clone());
    }
    let mut parts = uri.clone().into_parts();
    let path = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    parts.path_and_query = Some(path.parse().map_err(|_| Unfit::BadAddress)?);
    Uri::from_parts(parts).map_err(|_| Unfit::BadAddress)
}

fn version_of(uri: &Uri) -> Option<Cow<'static, str>> {
    Call::parse(&Method::POST, uri, &http::HeaderMap::new(), None).version
}
