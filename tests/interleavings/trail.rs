//! Stands in for the log of a call, by which nothing is decided.

use std::sync::Arc;
use std::time::Duration;

use tower_gemini_core::call::{ImageSize, ModelId, ServiceTier};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::target::UpstreamId;
use tower_gemini_core::verdict::Verdict;

pub(crate) use tower_gemini::trail::{SkipReason, Step, StopReason, WaitReason};

#[derive(Debug, Clone, Default)]
pub(crate) struct Trail;

#[derive(Debug, Clone)]
pub(crate) struct AttemptId;

#[derive(Debug)]
pub(crate) struct ResponseFacts;

impl Trail {
    pub(crate) fn push(&self, _: Step) {}

    pub(crate) fn begin_attempt_at(
        &self,
        _: Option<Arc<UpstreamId>>,
        _: Option<ModelId>,
        _: Option<ImageSize>,
    ) -> AttemptId {
        AttemptId
    }
}

impl AttemptId {
    pub(crate) fn end(&self, _: Option<u16>, _: &Verdict, _: Cost, _: Duration) {}

    pub(crate) fn served_by(&self, _: Option<ModelId>, _: Option<ServiceTier>) {}

    pub(crate) fn count_images(&self, _: u32) {}

    pub(crate) fn describe(&self, _: &ResponseFacts) {}

    pub(crate) fn close(&self) {}
}
