//! Keeps what each upstream is paid within the budget of its `[[upstream]]`.
//!
//! The account is that of the stack's own [`SpendingLayer`], one for each upstream with a budget:
//! an attempt reserves its price there before it is sent. Where there is a store, the accounts
//! outlive the process and are shared, each under the name of its upstream. An attempt that does not
//! fit goes to another upstream where a pool or a fallback has one, and is refused elsewhere.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either, join_all};
use http::{Request, Response};
use tower::Layer;
use tower_gemini::body::{AttemptBody, JudgedBody};
use tower_gemini::call::ModelId;
use tower_gemini::error::Error;
use tower_gemini::spending::Spent;
use tower_gemini::stage::AttemptService;
use tower_gemini::target::UpstreamId;
use tower_gemini::{Spending, SpendingLayer};
use tower_service::Service;

/// The budgets of all upstreams that have one. Clones share what is spent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budgets(Arc<[(UpstreamId, SpendingLayer)]>);

impl Budgets {
    /// Upstreams of one project are one, and have one budget.
    pub(crate) fn new(budgets: Vec<(UpstreamId, SpendingLayer)>) -> Self {
        Self(budgets.into())
    }

    fn of(&self, upstream: &UpstreamId) -> Option<&SpendingLayer> {
        self.0.iter().find(|(id, _)| id == upstream).map(|(_, layer)| layer)
    }

    /// Whether what is spent leaves room for this model.
    pub(crate) fn has_room(&self, upstream: &UpstreamId, model: &ModelId) -> bool {
        self.of(upstream).is_none_or(|layer| layer.has_room_for(model))
    }

    /// What is spent, by the name of the upstream.
    pub(crate) fn spent(&self) -> impl Iterator<Item = (&str, Vec<Spent>)> {
        self.0.iter().map(|(id, layer)| (id.name.as_str(), layer.spent()))
    }

    /// Asks the store what others have spent.
    pub(crate) async fn refresh(&self) {
        // A failure is logged where it refuses calls.
        let _ = join_all(self.0.iter().map(|(_, layer)| layer.refresh())).await;
    }

    /// Completes when what has ended is settled in the store.
    pub(crate) async fn all_settled(&self) {
        join_all(self.0.iter().map(|(_, layer)| layer.all_settled())).await;
    }
}

/// Makes services that keep attempts within the budget of the upstream that they go to.
#[derive(Debug, Clone)]
pub(crate) struct BudgetsLayer {
    pub(crate) budgets: Budgets,
    /// The upstream that calls are addressed to.
    pub(crate) own: UpstreamId,
}

/// See [`BudgetsLayer`].
#[derive(Debug, Clone)]
pub(crate) struct Budgeted<S> {
    inner: S,
    layer: BudgetsLayer,
}

impl<S: AttemptService> Layer<S> for BudgetsLayer {
    type Service = Budgeted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Budgeted { inner, layer: self.clone() }
    }
}

type Answer<S> = Result<Response<JudgedBody<<S as AttemptService>::Upstream>>, Error>;

impl<S: AttemptService> Service<Request<AttemptBody>> for Budgeted<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = Either<S::Future, BoxFuture<'static, Answer<S>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<AttemptBody>) -> Self::Future {
        let BudgetsLayer { budgets, own } = &self.layer;
        let upstream = request.body().upstream().map_or(own, |moved| &**moved);
        let Some(budget) = budgets.of(upstream) else {
            return Either::Left(self.inner.call(request));
        };
        // The instance that was made ready goes with the request.
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone);
        let mut spending: Spending<S> = budget.layer(ready);
        Either::Right(Box::pin(spending.call(request)))
    }
}
