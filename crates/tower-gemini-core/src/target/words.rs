//! What a rewrite gave up, and why a target is out of the question.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

/// Which part of a request a rewrite changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GivenUp {
    /// The model.
    Model,
    /// Where it is sent, and whose credentials go with it.
    Upstream,
    /// The size of the image.
    Size,
    /// The aspect ratio.
    Aspect,
    /// How the model is asked to think.
    Thinking,
    /// Another image option (`mimeType`, `personGeneration` …).
    ImageOption,
    /// Thought signatures of earlier turns. The numbers say how many.
    Signatures,
    /// Nothing but the spelling of the image options (`responseFormat.image` became `imageConfig`).
    Spelling,
}

impl GivenUp {
    /// The word used in trails and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Upstream => "upstream",
            Self::Size => "size",
            Self::Aspect => "aspect",
            Self::Thinking => "thinking",
            Self::ImageOption => "image option",
            Self::Signatures => "signatures",
            Self::Spelling => "spelling",
        }
    }
}

/// One thing in which a rewritten request differs from the one that the caller made. Where no
/// `Degradation` says so, not a byte of it differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Degradation {
    /// Which part.
    pub what: GivenUp,
    /// What the caller asked for.
    pub from: Cow<'static, str>,
    /// What is sent in its place; `None` where it was dropped.
    pub to: Option<Cow<'static, str>>,
}

impl Degradation {
    pub(crate) fn new(
        what: GivenUp,
        from: impl Into<Cow<'static, str>>,
        to: Option<Cow<'static, str>>,
    ) -> Self {
        Self { what, from: from.into(), to }
    }

    /// Whether the image may differ because of it: spelling and place do not change what is drawn.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        !matches!(self.what, GivenUp::Spelling | GivenUp::Upstream)
    }
}

impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Some(to) => write!(f, "{} {} → {to}", self.what.as_str(), self.from),
            None => write!(f, "{} {} dropped", self.what.as_str(), self.from),
        }
    }
}

/// What the caller insists on: a target that cannot keep it is passed over, and the trail says so.
///
/// Set it with `CallOptions::must_keep`. The reference
/// images of an edit are kept always: without them another picture would be made.
///
/// ```
/// use tower_gemini_core::{context::CallOptions, target::MustKeep};
///
/// let options = CallOptions::new().must_keep(MustKeep::nothing().size().aspect());
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MustKeep {
    pub(crate) size: bool,
    pub(crate) aspect: bool,
    pub(crate) vendor: bool,
}

impl MustKeep {
    /// Everything may be given up for an image.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The size asked for (1K where none is).
    #[must_use]
    pub fn size(mut self) -> Self {
        self.size = true;
        self
    }

    /// The aspect ratio asked for.
    #[must_use]
    pub fn aspect(mut self) -> Self {
        self.aspect = true;
        self
    }

    /// The maker of the model asked for. A model that the catalogue does not know is of no known
    /// maker.
    #[must_use]
    pub fn vendor(mut self) -> Self {
        self.vendor = true;
        self
    }

    /// Whether the size must be kept.
    #[must_use]
    pub fn keeps_size(self) -> bool {
        self.size
    }
}

/// What becomes of the thought signatures of earlier turns when another model, or another backend,
/// is to read them.
///
/// They are bound to the backend that made them: a gateway that failed over from the Gemini API to
/// Vertex AI was answered 400 "Invalid thought signature".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Signatures {
    /// Each is replaced by [`PLACEHOLDER`](Self::PLACEHOLDER), and image parts of the model that
    /// lack one get it. For models that do not think they are taken out.
    #[default]
    Placeholder,
    /// Each is taken out. The Gemini API answers 400 to that where an image of an earlier turn
    /// lacks its signature; Vertex AI does not check Gemini 3 Pro Image (Vertex AI documentation,
    /// 2026-07).
    Strip,
    /// A target that would need this is passed over.
    Refuse,
}

impl Signatures {
    /// The documented value for histories made elsewhere (Gemini API and Vertex AI documentation,
    /// thought signatures, 2026-07).
    pub const PLACEHOLDER: &'static str = "skip_thought_signature_validator";
}

/// Why a request cannot be rewritten for a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unfit {
    /// The caller insists on the size, and the target makes another.
    KeepsSize,
    /// The caller insists on the aspect ratio, and the target has it not.
    KeepsAspect,
    /// The caller insists on the maker of the model.
    KeepsVendor,
    /// It cannot edit images, and the request is an edit.
    CannotEdit,
    /// It makes images, and the call wants none: an answer nobody asked for would be paid for many
    /// times over.
    MakesImages,
    /// It is asked in another way (`predict` and `generateContent`, or an OpenAI-style request to
    /// Google's own form).
    OtherApi,
    /// The history holds thought signatures that it would refuse.
    Signatures,
    /// It continues an answer that only its own model and backend know.
    Continuation,
    /// It uses content that was cached for its own model and project.
    CachedContent,
    /// It refers to files that were uploaded to its own project.
    UploadedFiles,
    /// Its body cannot be read: a form, compressed, or no JSON.
    Unreadable,
    /// The target's address makes no URI.
    BadAddress,
}

impl Unfit {
    /// One sentence for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepsSize => "the caller keeps the size",
            Self::KeepsAspect => "the caller keeps the aspect ratio",
            Self::KeepsVendor => "the caller keeps the vendor",
            Self::CannotEdit => "it cannot edit images",
            Self::MakesImages => "it makes images, and the call wants none",
            Self::OtherApi => "it speaks another API",
            Self::Signatures => "it would refuse the thought signatures",
            Self::Continuation => "the call continues an answer of its own model",
            Self::CachedContent => "cached content belongs to its own model",
            Self::UploadedFiles => "uploaded files belong to their own project",
            Self::Unreadable => "the body cannot be rewritten",
            Self::BadAddress => "its address makes no URI",
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Unfit {}

impl Serialize for Unfit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
