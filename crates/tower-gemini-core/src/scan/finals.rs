//! The rule that decides which images of a response are final.

/// Decides which images of a response are final, as its images and texts come, by the
/// [rule](super#which-image-is-final) that every reader of a response shares.
///
/// Each image is returned once it is known that nothing replaces it. `T` is whatever stands for an
/// image: its bytes, its part, or the event that sends it on.
///
/// ```
/// use tower_gemini_core::scan::Finals;
///
/// let mut finals = Finals::new(true);
/// assert_eq!(finals.image("marked draft", true), None);
/// assert_eq!(finals.image("unmarked draft", false), None);
/// assert_eq!(finals.image("a cat", false), None);
/// assert_eq!(finals.text(), Some("a cat"));
/// assert_eq!(finals.image("a dog", false), None);
/// assert_eq!(finals.end(), Some("a dog"));
///
/// let mut of_a_model_that_does_not_think = Finals::new(false);
/// assert_eq!(of_a_model_that_does_not_think.image("a cat", false), Some("a cat"));
/// ```
#[derive(Debug)]
pub struct Finals<T> {
    /// The last image, which the next may replace.
    open: Option<T>,
    /// The open image is marked as a draft.
    is_draft: bool,
    has_final: bool,
    unmarked_drafts: bool,
}

impl<T> Finals<T> {
    /// `unmarked_drafts` says whether images without a mark may be drafts
    /// ([`Call::makes_drafts`](crate::call::Call::makes_drafts)).
    #[must_use]
    pub fn new(unmarked_drafts: bool) -> Self {
        Self { open: None, is_draft: false, has_final: false, unmarked_drafts }
    }

    /// An image comes, with whether it is marked as a thought. Returns it if it is final already.
    #[must_use]
    pub fn image(&mut self, image: T, is_thought: bool) -> Option<T> {
        if self.takes(is_thought) {
            (self.open, self.is_draft) = (Some(image), is_thought);
        }
        if self.unmarked_drafts { None } else { self.text() }
    }

    /// A text that is not blank comes, or another candidate. Returns the image before it, if that
    /// is final now.
    #[must_use]
    pub fn text(&mut self) -> Option<T> {
        let image = self.open.take_if(|_| !self.is_draft)?;
        self.has_final = true;
        Some(image)
    }

    /// The response ends. Returns the image that nothing has replaced; a draft, if
    /// [that is all](Self::is_draft).
    #[must_use]
    pub fn end(&mut self) -> Option<T> {
        self.open.take()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.unmarked_drafts);
    }

    /// Returns the last image, as long as the next one may replace it.
    pub(super) fn open(&self) -> Option<&T> {
        self.open.as_ref()
    }

    /// Returns whether there has been no image but drafts, of which the last is held.
    #[must_use]
    pub fn is_draft(&self) -> bool {
        self.is_draft && self.open.is_some()
    }

    /// Returns whether there has been no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_none() && !self.has_final
    }

    /// Returns whether an image with that mark is taken: a marked draft is not, behind an image
    /// that is none.
    pub(super) fn takes(&self, is_thought: bool) -> bool {
        !is_thought || self.is_empty() || self.is_draft()
    }
}

impl<T> Default for Finals<T> {
    /// Images without a mark may be drafts.
    fn default() -> Self {
        Self::new(true)
    }
}
