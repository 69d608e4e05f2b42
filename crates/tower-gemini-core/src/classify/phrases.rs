//! What servers say, by what it means: data in `classify/phrases.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

/// The lists of the file.
pub(super) static PHRASES: LazyLock<Phrases> =
    LazyLock::new(|| toml::from_str(TEXT).unwrap_or_default());

const TEXT: &str = include_str!("../../classify/phrases.toml");

/// Phrases that mean one thing.
pub(super) type List = Vec<String>;
/// Names of statuses, in the order in which they are looked for.
pub(super) type Statuses = Vec<(String, u16)>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Phrases {
    pub(super) prompt_refused_by_imagen: List,
    pub(super) image_refused_by_imagen: List,
    pub(super) prompt_refused: List,
    pub(super) image_refused: List,
    pub(super) region: List,
    pub(super) no_free_tier: List,
    pub(super) spend_rate: List,
    pub(super) unpaid: List,
    pub(super) no_capacity: List,
    pub(super) deadline: List,
    pub(super) googles_own: List,
    pub(super) never_sent: List,
    pub(super) timed_out: List,
    pub(super) broke_off: List,
    pub(super) unreadable: List,
    pub(super) no_image: List,
    pub(super) about_a_file: List,
    pub(super) not_active_yet: List,
    pub(super) being_provisioned: List,
    pub(super) account_setting: List,
    pub(super) auth: List,
    pub(super) too_large: List,
    pub(super) permission: List,
    pub(super) model_not_found: List,
    pub(super) limited: List,
    pub(super) per_day: List,
    pub(super) per_minute: List,
    pub(super) not_charged: List,
    pub(super) auth_reasons: List,
    pub(super) permission_reasons: List,
    pub(super) limit_reasons: List,
    pub(super) legacy_limit_reasons: List,
    pub(super) status_names: Statuses,
    pub(super) grpc_names: Statuses,
    pub(super) status_words: Statuses,
    pub(super) status_leads: List,
    pub(super) status_phrases: Statuses,
    pub(super) finish: FinishPhrases,
    pub(super) numbers: EnumNames,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FinishPhrases {
    pub(super) stop: List,
    pub(super) out_of_tokens: List,
    pub(super) blocked: List,
    pub(super) empty: List,
    pub(super) blocked_stems: List,
    pub(super) codes: List,
    pub(super) named: List,
    pub(super) named_after_finish_reason: List,
}

/// The names of numeric enums, by number.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnumNames {
    pub(super) finish: List,
    pub(super) finish_of_vertex: List,
    pub(super) block: List,
    pub(super) block_of_vertex: List,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_and_its_phrases_can_be_found() {
        toml::from_str::<Phrases>(TEXT).unwrap();
        let phrases = &*PHRASES;
        for list in [
            &phrases.prompt_refused_by_imagen,
            &phrases.image_refused_by_imagen,
            &phrases.prompt_refused,
            &phrases.image_refused,
            &phrases.region,
            &phrases.no_free_tier,
            &phrases.spend_rate,
            &phrases.unpaid,
            &phrases.no_capacity,
            &phrases.deadline,
            &phrases.googles_own,
            &phrases.never_sent,
            &phrases.timed_out,
            &phrases.broke_off,
            &phrases.unreadable,
            &phrases.no_image,
            &phrases.about_a_file,
            &phrases.not_active_yet,
            &phrases.being_provisioned,
            &phrases.account_setting,
            &phrases.auth,
            &phrases.too_large,
            &phrases.permission,
            &phrases.model_not_found,
            &phrases.limited,
            &phrases.per_day,
            &phrases.per_minute,
            &phrases.not_charged,
        ] {
            // Messages are searched in lower case.
            for phrase in list {
                assert_eq!(*phrase, phrase.to_ascii_lowercase());
                assert!(!phrase.is_empty());
            }
        }
    }
}
