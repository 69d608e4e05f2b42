//! What a rewrite gives up, and why a target is unfit.

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
    /// Who makes the model.
    Vendor,
    /// The upstream it is sent to, with its credentials.
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
    /// Returns the word used in trails and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Vendor => "vendor",
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

/// One difference between a rewritten request and the caller's own. A request without a
/// `Degradation` is equal byte for byte.
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

    /// Whether the image may differ because of it. The spelling and the upstream do not change what
    /// is drawn.
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

/// What a rewrite must keep: a target that cannot keep it is skipped, and the trail records why.
///
/// The reference images of an edit are always kept, since without them another picture would be
/// drawn. Default: nothing else must be kept.
///
/// ```
/// use tower_gemini_core::catalog::Catalog;
/// use tower_gemini_core::target::{MustKeep, Rules};
///
/// let rules = Rules::new(Catalog::builtin()).must_keep(MustKeep::nothing().size().aspect());
/// assert!(rules.must_keep.keeps_size());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MustKeep {
    pub(crate) size: bool,
    pub(crate) aspect: bool,
    pub(crate) vendor: bool,
}

impl MustKeep {
    /// Lets everything be given up for an image.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Keeps the size asked for (1K where none is).
    #[must_use]
    pub fn size(mut self) -> Self {
        self.size = true;
        self
    }

    /// Keeps the aspect ratio asked for.
    #[must_use]
    pub fn aspect(mut self) -> Self {
        self.aspect = true;
        self
    }

    /// Keeps the vendor of the model asked for. The vendor of a model that the catalogue does not
    /// know is unknown, and so never kept.
    #[must_use]
    pub fn vendor(mut self) -> Self {
        self.vendor = true;
        self
    }

    /// Keeps what either of them keeps.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            size: self.size || other.size,
            aspect: self.aspect || other.aspect,
            vendor: self.vendor || other.vendor,
        }
    }

    /// Whether the size must be kept.
    #[must_use]
    pub fn keeps_size(self) -> bool {
        self.size
    }
}

/// What a rewrite does with the thought signatures of earlier turns, when another model or backend
/// will read them.
///
/// They are bound to the backend that made them: a gateway that failed over from the Gemini API to
/// Vertex AI received 400 "Invalid thought signature".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Signatures {
    /// Replaces each by [`PLACEHOLDER`](Self::PLACEHOLDER), and gives it to image parts of the
    /// model that lack one. For models that do not think, signatures are removed.
    #[default]
    Placeholder,
    /// Removes each. The Gemini API answers 400 where an image of an earlier turn lacks its
    /// signature; Vertex AI does not check Gemini 3 Pro Image (Vertex AI documentation,
    /// 2026-07).
    Strip,
    /// Skips a target that would need a change of signatures.
    Refuse,
}

impl Signatures {
    /// The documented value for histories of another backend (Gemini API and Vertex AI
    /// documentation, thought signatures, 2026-07).
    pub const PLACEHOLDER: &'static str = "skip_thought_signature_validator";
}

/// Why a request cannot be rewritten for a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unfit {
    /// The size must be kept, and the target would draw another.
    KeepsSize,
    /// The aspect ratio must be kept, and the target does not have it.
    KeepsAspect,
    /// The vendor of the model must be kept.
    KeepsVendor,
    /// It cannot edit images, and the request is an edit.
    CannotEdit,
    /// It is another vendor's, and the call goes on from an earlier turn.
    OtherVendor,
    /// It draws images, and the call wants none: the response would cost many times as much.
    MakesImages,
    /// It has another API (`predict` instead of `generateContent`, or Google's own form for an
    /// OpenAI-style request).
    OtherApi,
    /// The history holds thought signatures that it would refuse.
    Signatures,
    /// The call continues a response that only its own model and backend know.
    Continuation,
    /// The call uses content that was cached for its own model and project.
    CachedContent,
    /// The call refers to files that were uploaded to its own project.
    UploadedFiles,
    /// The body cannot be read: a form, compressed, or no JSON.
    Unreadable,
    /// The target's address is no valid URI.
    BadAddress,
}

impl Unfit {
    /// Returns the reason as text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepsSize => "the caller keeps the size",
            Self::KeepsAspect => "the caller keeps the aspect ratio",
            Self::KeepsVendor => "the caller keeps the vendor",
            Self::CannotEdit => "it cannot edit images",
            Self::OtherVendor => "another vendor's model knows no earlier turns",
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
