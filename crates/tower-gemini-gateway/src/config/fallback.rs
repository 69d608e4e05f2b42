//! `[fallback]`: which other models, upstreams and sizes a call may be sent to.

use serde::Deserialize;
use tower_gemini::call::ImageSize;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::model_fallback::presets::ChainPreset;
use tower_gemini::model_fallback::{self, Chain};
use tower_gemini::resolution_fallback::{self, Ladder};
use tower_gemini::target::{self, MustKeep, Target};

use super::{AuthMode, Check, Config, ensure, nearest_name, retry_policy, wrong};

section! { pub(crate) Fallback {
    models: Vec<String> = Vec::new(),
    preset: Option<String> = None,
    target: Vec<FallbackTarget> = Vec::new(),
    wrap: Option<bool> = None,
    successors: bool = false,
    sizes: bool = false,
    ladder: Option<String> = None,
    order: FallbackOrder = FallbackOrder::SizeFirst,
    wait: bool = true,
    keep_size: bool = false,
    keep_aspect: bool = false,
    keep_vendor: bool = false,
}}

/// One `[[fallback.target]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FallbackTarget {
    model: String,
    upstream: Option<String>,
    attempts: Option<u32>,
    retry: Option<String>,
    size_cap: Option<String>,
    #[serde(default)]
    must_keep: Vec<Kept>,
}

/// What a target is not used without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kept {
    Size,
    Aspect,
    Vendor,
}

/// What is tried first: smaller sizes or other models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FallbackOrder {
    /// A model is tried at smaller sizes before the next model.
    SizeFirst,
    /// Every model is tried at a size before a smaller size.
    ModelFirst,
}

impl Fallback {
    /// Whether other models may be asked.
    pub(crate) fn has_models(&self) -> bool {
        !self.models.is_empty() || !self.target.is_empty() || self.preset.is_some()
    }

    /// Every model that it names.
    pub(crate) fn named_models(&self) -> impl Iterator<Item = &str> {
        let targets = self.target.iter().map(|target| &target.model);
        self.models.iter().chain(targets).map(String::as_str)
    }

    /// Every upstream that a target names.
    pub(super) fn named_upstreams(&self) -> impl Iterator<Item = &str> {
        self.target.iter().filter_map(|target| target.upstream.as_deref())
    }

    /// The targets in order. `upstream` makes one by its name, with its key.
    pub(crate) fn chain(
        &self,
        upstream: impl Fn(&str) -> Option<target::Upstream>,
    ) -> Check<Chain> {
        let chain = match self.chain_preset()? {
            Some(preset) => preset.chain(),
            None => Chain::new(self.models.iter().map(String::as_str)),
        };
        let chain = self.target.iter().try_fold(chain, |chain, target| {
            let at = target.upstream.as_deref().and_then(&upstream);
            let to = at.into_iter().fold(target.target()?, Target::on);
            Ok(match target.retry()? {
                Some(policy) => chain.then_retried(to, policy),
                None => chain.then(to),
            })
        })?;
        // A preset says itself whether it goes on from its beginning.
        let wraps = self.wrap.unwrap_or(self.preset.is_none());
        Ok(if wraps { chain.wrapping() } else { chain })
    }

    /// The smaller sizes that may be asked for, where they may.
    pub(crate) fn ladder(&self) -> Check<Option<Ladder>> {
        let presets = resolution_fallback::presets::ALL;
        let Some(name) = &self.ladder else {
            return Ok(self.sizes.then(Ladder::recommended));
        };
        match presets.iter().find(|preset| preset.name == name.as_str()) {
            Some(preset) => Ok(Some(preset.ladder())),
            None => {
                let nearest = nearest_name(name, presets.iter().map(|preset| preset.name));
                wrong("fallback.ladder", format!("there is no ladder \"{name}\""), nearest)
            }
        }
    }

    /// What no call may give up.
    pub(crate) fn must_keep(&self) -> MustKeep {
        let size = self.keep_size.then_some(Kept::Size);
        let aspect = self.keep_aspect.then_some(Kept::Aspect);
        let vendor = self.keep_vendor.then_some(Kept::Vendor);
        must_keep(size.into_iter().chain(aspect).chain(vendor))
    }

    fn chain_preset(&self) -> Check<Option<ChainPreset>> {
        let Some(name) = &self.preset else { return Ok(None) };
        let presets = model_fallback::presets::ALL;
        match presets.into_iter().find(|preset| preset.name == name.as_str()) {
            Some(preset) => Ok(Some(preset)),
            None => {
                let nearest = nearest_name(name, presets.iter().map(|preset| preset.name));
                wrong("fallback.preset", format!("there is no chain \"{name}\""), nearest)
            }
        }
    }

    /// Every setting that cannot work.
    pub(super) fn check(&self, whole: &Config, check: &mut impl FnMut(Check<()>)) {
        let lists = [!self.models.is_empty(), !self.target.is_empty(), self.preset.is_some()];
        check(ensure(
            lists.into_iter().filter(|is_set| *is_set).count() < 2,
            "fallback",
            "[fallback] states its targets in two ways",
            "write one of models, preset and [[fallback.target]]",
        ));
        check(self.chain_preset().map(drop));
        check(self.ladder().map(drop));
        for (at, model) in self.models.iter().enumerate() {
            let is_first = !self.models.iter().take(at).any(|earlier| earlier == model);
            let what = format!("fallback.models holds \"{model}\" twice");
            let remedy = "a model that failed is not tried again; write it once";
            check(ensure(is_first, "fallback.models", what, remedy));
        }
        for target in &self.target {
            check(target.target().map(drop));
            check(target.retry().map(drop));
        }
        for name in self.named_upstreams() {
            let is_known = whole.upstream.iter().any(|upstream| upstream.name == name);
            let what = format!("a [[fallback.target]] names the upstream \"{name}\"");
            check(ensure(is_known, "fallback.target", what, "write an [[upstream]] of that name"));
            let what =
                format!("a [[fallback.target]] sends to \"{name}\", and callers bring their keys");
            let remedy = "set [auth] mode = \"tokens\": a caller's key goes to no other upstream";
            let has_key = whole.auth.mode == AuthMode::Tokens;
            check(ensure(has_key, "fallback.target", what, remedy));
        }
    }
}

impl FallbackTarget {
    /// The target, at the upstream that calls are addressed to.
    fn target(&self) -> Check<Target> {
        let mut target =
            Target::new(&self.model).must_keep(must_keep(self.must_keep.iter().copied()));
        if let Some(attempts) = self.attempts {
            let what = format!("the target \"{}\" has attempts = 0", self.model);
            ensure(attempts > 0, "fallback.target", what, "write 1 or more, or remove it")?;
            target = target.attempts(attempts);
        }
        if let Some(cap) = &self.size_cap {
            let size = ImageSize::ALL.into_iter().find(|size| size.as_str() == cap.as_str());
            let sizes: Vec<_> = ImageSize::ALL.iter().map(|size| size.as_str()).collect();
            let Some(size) = size else {
                let what = format!("\"{cap}\" is no size_cap");
                return wrong(
                    "fallback.target",
                    what,
                    format!("write one of {}", sizes.join(", ")),
                );
            };
            target = target.size_cap(size);
        }
        Ok(target)
    }

    fn retry(&self) -> Check<Option<RetryPolicy>> {
        let Some(name) = &self.retry else { return Ok(None) };
        let policy = retry_policy("fallback.target", name)?;
        Ok(Some(match self.attempts {
            Some(attempts) => policy.attempts(attempts),
            None => policy,
        }))
    }
}

fn must_keep(kept: impl Iterator<Item = Kept>) -> MustKeep {
    kept.fold(MustKeep::nothing(), |all, kept| match kept {
        Kept::Size => all.size(),
        Kept::Aspect => all.aspect(),
        Kept::Vendor => all.vendor(),
    })
}
