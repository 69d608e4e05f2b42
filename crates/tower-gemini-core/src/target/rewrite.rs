//! Rewrites a request for a target.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Uri};

use super::body::{Change, SizeChange, edit};
use super::degradation::{Degradation, GivenUp, MustKeep, Signatures, Unfit};
use super::{Target, Upstream};
use crate::call::{Call, Dialect, ModelId, Verb, is_encoded};
use crate::catalog::{Catalog, Family, Model, Thinking};
use crate::size::{ImageSize, size_as, split_model_suffix, strip_model_prefix};

/// How requests are rewritten.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Rules<'a> {
    /// What is known of models.
    pub catalog: &'a Catalog,
    /// What must be kept.
    pub must_keep: MustKeep,
    /// What happens to thought signatures.
    pub signatures: Signatures,
}

impl<'a> Rules<'a> {
    /// Creates rules with the defaults: nothing must be kept, and signatures are replaced by the
    /// placeholder.
    #[must_use]
    pub fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, must_keep: MustKeep::nothing(), signatures: Signatures::default() }
    }

    /// Sets what must be kept.
    #[must_use]
    pub fn must_keep(mut self, must_keep: MustKeep) -> Self {
        self.must_keep = must_keep;
        self
    }

    /// Sets what happens to thought signatures.
    #[must_use]
    pub fn signatures(mut self, signatures: Signatures) -> Self {
        self.signatures = signatures;
        self
    }
}

/// A request rewritten for a target, and what that gives up.
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
    /// Returns what the rewritten request asks for.
    #[must_use]
    pub fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// Returns the upstream it goes to, where the target names one.
    #[must_use]
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.as_ref().map(|(upstream, _)| &**upstream)
    }

    /// Returns each difference from the request it was made from.
    #[must_use]
    pub fn given_up(&self) -> &[Degradation] {
        &self.given_up
    }

    /// Whether it is the request it was made from, byte for byte.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.given_up.is_empty()
    }

    /// Returns the body that goes with the changed head: its bytes in order (`None` where they do
    /// not change), and what it asks for.
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

/// Rewrites a request for a target. `body` returns the whole body in one piece, and is called only
/// where bytes of it may change.
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
    let from = rules.catalog.lookup(asked);
    let model = rules.catalog.lookup(target.model.as_str());
    let same_model = match (from, model) {
        (Some(a), Some(b)) => a.id == b.id,
        _ => strip_model_prefix(asked) == target.model.as_str(),
    };
    let upstream = target.upstream.as_ref();
    let unchanged = || Rewrite {
        uri: parts.uri.clone(),
        upstream: None,
        chunks: None,
        call: call.clone(),
        given_up: Vec::new(),
    };
    if call.model.is_none() && upstream.is_none() && target.size_cap.is_none() {
        return Ok(unchanged());
    }
    let dialect =
        upstream.map_or(Some(call.dialect), |to| to.dialect(call)).ok_or(Unfit::OtherApi)?;
    let same_backend = dialect == call.dialect;
    let is_foreign = !same_model || upstream.is_some();

    if !same_model {
        fits(call, from, model, rules)?;
    }
    if call.is_continuation && is_foreign {
        return Err(Unfit::Continuation);
    }
    let size = settle_size(call.size, target.size_cap, model, same_model);
    if !is_foreign && size == SizeChange::Keep {
        return Ok(unchanged());
    }
    // For the same model only a cap of the target changes anything: the server enforces the model's
    // own limits.
    let to = model.filter(|_| !same_model);
    let aspect = call.aspect.as_deref().zip(to).and_then(|(from, model)| {
        let nearest = model.nearest_ratio(from).filter(|nearest| *nearest != from)?;
        Some((from, nearest))
    });
    keeps(call, rules.must_keep, model, size, aspect.is_some())?;

    let gemini_shaped = call.dialect.is_gemini_shaped();
    let (base, named_size, named_ratio) =
        if call.wants_image { split_model_suffix(asked) } else { (asked, None, None) };
    let is_renamed = !same_model || (named_size.is_some() && size != SizeChange::Keep);
    let name = is_renamed.then(|| {
        let base_name = if same_model { base } else { target.model.as_str() };
        let suffix = asked.get(base.len()..).unwrap_or("");
        format!("{base_name}{}", new_suffix(suffix, size, model, aspect))
    });
    let thinks = model.is_none_or(|model| model.thinking != Thinking::None);
    let change = Change {
        model: name.as_deref(),
        to,
        asked_size: call.size,
        size,
        size_in_name: named_size.is_some(),
        aspect,
        aspect_in_name: named_ratio.is_some(),
        respell: gemini_shaped
            && (to.is_some_and(|model| !model.accepts_response_format) || !same_backend),
        leaves_vertex: call.dialect == Dialect::VertexAi && dialect != Dialect::VertexAi,
        signatures: match rules.signatures {
            _ if !call.multi_turn || !gemini_shaped || (same_model && same_backend) => None,
            Signatures::Placeholder if !thinks => Some(Signatures::Strip),
            policy => Some(policy),
        },
    };
    let mut given_up = Vec::new();
    let mut give_up = |what, from: &str, to: &str| {
        given_up.push(Degradation::new(what, from.to_owned(), Some(Cow::Owned(to.to_owned()))));
    };
    if !same_model {
        give_up(GivenUp::Model, asked, target.model.as_str());
        if let Some((from, to)) = other_vendor(from, model) {
            give_up(GivenUp::Vendor, from, to);
        }
    }
    if let Some(upstream) = upstream {
        let (from, to) = (parts.uri.host().unwrap_or(""), upstream.host());
        let name = upstream.id().name;
        give_up(GivenUp::Upstream, from, if from == to { &name } else { to });
    }
    if !is_readable(parts) {
        return Err(Unfit::Unreadable);
    }
    let body = body();
    belongs_elsewhere(&body, call, same_model, upstream.is_some(), gemini_shaped)?;
    let (edits, given_up) = edit(&body, &change, given_up)?;
    let (verb, path) = with_model(parts.uri.path(), name.as_deref(), call);
    let uri = match upstream {
        Some(upstream) => {
            let model = name.as_deref().unwrap_or(asked);
            upstream.uri(&upstream.path(call, model, verb, &path), parts.uri.query())?
        }
        None => with_path(&parts.uri, &path)?,
    };
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
        chunks: (!edits.is_empty()).then(|| edits.apply(&body)),
        call: Arc::new(derived),
        given_up,
    })
}

/// Checks that another model can answer such a call at all.
fn fits(
    call: &Call,
    from: Option<&Model>,
    to: Option<&Model>,
    rules: &Rules<'_>,
) -> Result<(), Unfit> {
    let draws = |model: Option<&Model>| model.is_some_and(|model| model.images);
    if (call.verb == Verb::Predict) != to.is_some_and(|model| model.family == Family::Imagen) {
        Err(Unfit::OtherApi)
    } else if !call.wants_image && draws(to) && (!draws(from) || other_vendor(from, to).is_some()) {
        Err(Unfit::MakesImages)
    } else if call.has_input_images && to.is_some_and(|model| !model.edits) {
        Err(Unfit::CannotEdit)
    } else if rules.must_keep.vendor
        && from.zip(to).is_none_or(|(from, to)| from.vendor != to.vendor)
    {
        Err(Unfit::KeepsVendor)
    } else if other_vendor(from, to).is_some() && call.multi_turn {
        Err(Unfit::OtherVendor)
    } else if other_vendor(from, to).is_some() && call.has_input_images {
        Err(Unfit::CannotEdit)
    } else {
        Ok(())
    }
}

/// Who makes either model, where that is not the same.
fn other_vendor<'a>(from: Option<&'a Model>, to: Option<&'a Model>) -> Option<(&'a str, &'a str)> {
    let vendors = (from?.vendor.as_str(), to?.vendor.as_str());
    (vendors.0 != vendors.1).then_some(vendors)
}

/// Checks what must be kept.
fn keeps(
    call: &Call,
    must_keep: MustKeep,
    model: Option<&Model>,
    size: SizeChange,
    new_aspect: bool,
) -> Result<(), Unfit> {
    let asked = call.size.unwrap_or(ImageSize::K1);
    let drawn = match size {
        SizeChange::Keep => asked,
        SizeChange::Set(size) => size,
        SizeChange::Drop => model.and_then(|model| model.drawn_size(None)).unwrap_or(ImageSize::K1),
    };
    if must_keep.size && call.wants_image && drawn != asked {
        return Err(Unfit::KeepsSize);
    }
    if must_keep.aspect && new_aspect { Err(Unfit::KeepsAspect) } else { Ok(()) }
}

fn settle_size(
    asked: Option<ImageSize>,
    cap: Option<ImageSize>,
    model: Option<&Model>,
    same_model: bool,
) -> SizeChange {
    let Some(asked) = asked else {
        // 1K is drawn where none is asked for: only a cap below that says anything.
        return match cap {
            Some(cap) if cap < ImageSize::K1 && model.is_none_or(|model| model.makes(cap)) => {
                SizeChange::Set(cap)
            }
            _ => SizeChange::Keep,
        };
    };
    let capped = cap.map_or(asked, |cap| asked.min(cap));
    let size = match model.filter(|_| !same_model || capped != asked) {
        Some(model) if !model.accepts_image_size => return SizeChange::Drop,
        Some(model) => model.nearest_size(capped).unwrap_or(asked),
        None => capped,
    };
    if size == asked { SizeChange::Keep } else { SizeChange::Set(size) }
}

/// Whether the body is text that can be edited.
fn is_readable(parts: &Parts) -> bool {
    let kind = parts.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let family = kind.trim_ascii_start().get(.."multipart/".len());
    let is_form = family.is_some_and(|family| family.eq_ignore_ascii_case(b"multipart/"));
    !is_encoded(&parts.headers) && !is_form && parts.method == Method::POST
}

/// Refuses a body with references that only the model and upstream of the original request know.
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

/// Returns what proxies write behind a model's name (`-4k-16x9`), as it is for the new model.
fn new_suffix(
    suffix: &str,
    size: SizeChange,
    model: Option<&Model>,
    aspect: Option<(&str, &str)>,
) -> String {
    let takes_size = model.is_none_or(|model| model.accepts_image_size);
    let parts = suffix.split('-').filter(|part| !part.is_empty()).filter_map(|part| {
        let is_size = part.ends_with(['k', 'K']);
        let part = match (is_size, size, aspect) {
            // No proxy writes 512 behind a name: it moves into the body.
            (true, SizeChange::Drop | SizeChange::Set(ImageSize::Px512), _) => return None,
            (true, SizeChange::Set(to), _) => size_as(to, part, to),
            (true, SizeChange::Keep, _) if !takes_size => return None,
            (false, _, Some((_, to))) => to.replace(':', "x"),
            _ => part.to_owned(),
        };
        Some(format!("-{part}"))
    });
    parts.collect()
}

/// Returns the verb of a path, and the path with another model in it. A path that names no model
/// has no verb and stays as it is.
fn with_model<'p>(path: &'p str, model: Option<&str>, call: &Call) -> (&'p str, Cow<'p, str>) {
    let colon = [":", "%3A", "%3a"].into_iter().find_map(|colon| path.rsplit_once(colon));
    let in_path = call.dialect.is_gemini_shaped();
    let Some((resource, verb)) = colon.filter(|_| in_path) else { return ("", path.into()) };
    let tail = path.get(resource.len()..).unwrap_or("");
    let verb = verb.trim_end_matches('/');
    let Some(model) = model else { return (verb, path.into()) };
    let behind = |slash: &&str| resource.rfind(*slash).map(|at| at + slash.len());
    let start = ["/", "%2F", "%2f"].iter().filter_map(behind).max().unwrap_or(0);
    let front = resource.get(..start).unwrap_or("");
    // `tunedModels/x` and `endpoints/123` are other collections than `models`.
    let asked = call.model.as_ref().and_then(|asked| asked.as_str().split_once('/'));
    let models = match asked {
        Some(("tunedModels" | "dynamic", _)) => "models/",
        Some(("endpoints", _)) => "publishers/google/models/",
        _ => return (verb, format!("{front}{model}{tail}").into()),
    };
    let parent = front.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
    (verb, format!("{parent}/{models}{model}{tail}").into())
}

fn with_path(uri: &Uri, path: &str) -> Result<Uri, Unfit> {
    let mut parts = uri.clone().into_parts();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    parts.path_and_query = Some(format!("{path}{query}").parse().map_err(|_| Unfit::BadAddress)?);
    Uri::from_parts(parts).map_err(|_| Unfit::BadAddress)
}

fn version_of(uri: &Uri) -> Option<Cow<'static, str>> {
    Call::parse(&Method::POST, uri, &http::HeaderMap::new(), None).version
}
