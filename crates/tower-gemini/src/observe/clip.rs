//! Redacts steps and bounds their length, so that they can be printed and stored.
//!
//! Model names come from callers and reasons from servers; the rest of a trail is ours.

use std::borrow::Cow;

use crate::trail::{ResponseFacts, Step};
use tower_gemini_core::call::ModelId;
use tower_gemini_core::redact::redact;
use tower_gemini_core::target::Degradation;

/// The longest text kept, in characters: the catalogue's longest model name has 37, and a target adds
/// a size and a host.
const MAX_CHARS: usize = 120;

/// Redacts a text, replaces its control characters and cuts it.
pub(super) fn clip(text: &str) -> Cow<'_, str> {
    let clean = redact(text);
    let is_plain = clean.len() <= MAX_CHARS && !clean.chars().any(char::is_control);
    if is_plain {
        return clean;
    }
    let mut short: String =
        clean.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short.into()
}

fn clip_in_place(text: &mut String) {
    if let Cow::Owned(clean) = clip(text) {
        *text = clean;
    }
}

fn clip_model(model: &mut ModelId) {
    if let Cow::Owned(clean) = clip(model.as_str()) {
        *model = ModelId::new(&clean);
    }
}

/// Clips the texts of a step.
pub(super) fn step(of: &Step) -> Step {
    let mut clean = of.clone();
    match &mut clean {
        Step::Attempt(attempt) => {
            attempt.model.iter_mut().chain(&mut attempt.served_by).for_each(clip_model);
            attempt.reason.iter_mut().for_each(clip_in_place);
            for said in attempt.response.iter_mut() {
                let ResponseFacts { model, id, finish_reason, .. } = &mut **said;
                [model, id, finish_reason].into_iter().flatten().for_each(clip_in_place);
            }
        }
        Step::Preferred { asked, model, .. } => {
            clip_model(asked);
            clip_model(model);
        }
        Step::FellBack { from, to, .. } => {
            clip_in_place(from);
            clip_in_place(to);
        }
        Step::Skipped { target, .. } => clip_in_place(target),
        Step::Degraded { given_up } => given_up.iter_mut().for_each(clip_degradation),
        Step::Replaced { model, successor } => {
            clip_in_place(model);
            clip_in_place(successor);
        }
        Step::Interaction { id } => clip_in_place(id),
        Step::Fetched { said, .. } => said.iter_mut().for_each(clip_in_place),
        _ => {}
    }
    clean
}

fn clip_degradation(given_up: &mut Degradation) {
    for text in std::iter::once(&mut given_up.from).chain(&mut given_up.to) {
        if let Cow::Owned(clean) = clip(text) {
            *text = clean.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::trail::{SkipReason, Trail};
    use proptest::prelude::*;
    use tower_gemini_core::cost::Cost;
    use tower_gemini_core::verdict::Verdict;

    use super::*;

    #[test]
    fn a_key_used_as_a_model_name_is_redacted() {
        let trail = Trail::new();
        let key = "AIzaSyA-sentinel-key-0123456789abcdefghij";
        trail.begin_attempt(Some(ModelId::new(key)), None).end(
            None,
            &Verdict::not_sent(),
            Cost::ZERO,
            Duration::ZERO,
        );
        trail.push(Step::Skipped { target: format!("{key} up to 2K"), why: SkipReason::Gone });
        trail.push(Step::FellBack {
            from: key.to_owned(),
            to: "\u{1b}[31mred".to_owned(),
            why: Verdict::not_sent().outcome(),
        });
        let said = Some(key.to_owned());
        let facts = ResponseFacts { model: said.clone(), id: said, ..Default::default() };
        trail.begin_attempt(None, None).describe(&facts);
        trail.push(Step::Interaction { id: key.to_owned() });
        let clean: Vec<_> = trail.steps().iter().map(step).collect();
        let shown = format!("{clean:?} {}", serde_json::to_string(&clean).unwrap());
        assert!(!shown.contains("sentinel") && !shown.contains('\u{1b}'), "{shown}");
    }

    proptest! {
        #[test]
        fn clipped_texts_are_short_and_have_no_control_characters(text in any::<String>()) {
            let clean = clip(&text);
            prop_assert!(clean.chars().count() <= MAX_CHARS + 1);
            prop_assert!(!clean.chars().any(char::is_control));
        }
    }
}
