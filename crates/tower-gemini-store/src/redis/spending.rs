use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use redis::{Script, ScriptInvocation};
use tower_gemini::spending::{CapDimension, Period, SpendAmounts};
use tower_gemini::store::{
    SpendAsk, SpendReply, SpendSettlement, SpendingBooks, SpendingFuture, SpendingStore,
    StoreError, StoredPage,
};

use super::{Connected, RedisStore, failed};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("spending.lua")));

/// So long what was given up can still be settled, by a process that was only cut off.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// An amount that nothing bounds: about a billion dollars. Sums of 8,000 of them fit an integer of
/// the server, and Lua compares them exactly.
const UNBOUNDED: u64 = 1 << 50;

impl SpendingStore for RedisStore {
    fn reserve(&self, ask: SpendAsk) -> SpendingFuture<SpendReply> {
        let store = self.clone();
        Box::pin(async move { store.reserve_spending(&ask).await })
    }

    fn settle(&self, settlement: SpendSettlement) -> SpendingFuture<()> {
        let store = self.clone();
        Box::pin(async move { store.settle_spending(&settlement).await })
    }
}

impl RedisStore {
    async fn reserve_spending(&self, ask: &SpendAsk) -> Result<SpendReply, StoreError> {
        let Connected { mut connection, mut probation, mut skew_ms, .. } = self.connected().await?;
        // Twice at most: the second time by the server's own clock.
        for _ in 0..2 {
            let now = self.server_time(skew_ms);
            let invocation = self.reserve_invocation(ask, now);
            let answer: Vec<i64> =
                invocation.invoke_async(&mut connection).await.map_err(failed)?;
            if let [-1, server_ms] = answer.as_slice() {
                skew_ms = server_ms.saturating_sub(self.wall_ms());
                tracing::warn!(
                    skew_ms,
                    "our clock and the spending store's are in different periods"
                );
                self.link.lock().await.skew_ms = skew_ms;
                continue;
            }
            probation.passed = true;
            return reply(ask, now, &answer)
                .ok_or_else(|| StoreError::new("the script's reply has another form"));
        }
        Err(StoreError::new("the server's clock moves between periods"))
    }

    async fn settle_spending(&self, settlement: &SpendSettlement) -> Result<(), StoreError> {
        let Connected { mut connection, mut probation, skew_ms, .. } = self.connected().await?;
        let SpendSettlement { books, id, came_to, images, .. } = settlement;
        let now = self.server_time(skew_ms);
        let mut script = self.script(books, now);
        script.arg("settle").arg(id.map(id_text).unwrap_or_default()).arg(*images);
        for amount in came_to.to_array() {
            script.arg(amount.min(UNBOUNDED));
        }
        for (period, _) in &books.periods {
            script.arg(match period.holding(now, &books.zone) {
                (_, i64::MAX) => -1,
                (_, end) => end.saturating_mul(1_000).saturating_add(172_800_000),
            });
        }
        let _: i64 = script.invoke_async(&mut connection).await.map_err(failed)?;
        probation.passed = true;
        Ok(())
    }

    fn server_time(&self, skew_ms: i64) -> SystemTime {
        let ms = u64::try_from(self.wall_ms().saturating_add(skew_ms)).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    /// The script with its keys.
    fn script(&self, books: &SpendingBooks, now: SystemTime) -> ScriptInvocation<'static> {
        let mut script = SCRIPT.prepare_invoke();
        let group = format!("spending {}", books.ledger);
        for key in [":open", ":held", ":lost"] {
            script.key(self.name(&group, key));
        }
        for (period, _) in &books.periods {
            let (start, _) = period.holding(now, &books.zone);
            script.key(self.name(&group, &format!(":{period}:{start}")));
        }
        script
    }

    fn reserve_invocation(&self, ask: &SpendAsk, now: SystemTime) -> ScriptInvocation<'static> {
        let SpendAsk { books, id, amounts, .. } = ask;
        let looks = *amounts == SpendAmounts::NONE;
        let mut script = self.script(books, now);
        script.arg("reserve").arg(if looks { String::new() } else { id_text(*id) });
        for time in [self.give_up_after, FORGOTTEN_AFTER] {
            script.arg(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        }
        for amount in amounts.to_array() {
            script.arg(amount.min(UNBOUNDED));
        }
        for (period, caps) in &books.periods {
            let (start, end) = period.holding(now, &books.zone);
            script.arg(start).arg(if end == i64::MAX { -1 } else { end });
            let is_total = matches!(period, Period::Total);
            let begins = if is_total { books.starting_balance } else { SpendAmounts::NONE };
            for amount in begins.to_array() {
                script.arg(amount.min(UNBOUNDED));
            }
            for dimension in CapDimension::ALL {
                // A cap that nothing can reach is none.
                let cap = caps.get(dimension).filter(|cap| *cap < UNBOUNDED);
                script.arg(cap.map_or(-1, |cap| i64::try_from(cap).unwrap_or(-1)));
            }
        }
        script
    }
}

fn id_text(id: u128) -> String {
    format!("{id:032x}")
}

/// Reads the script's reply; `None` where it has another form.
fn reply(ask: &SpendAsk, now: SystemTime, answer: &[i64]) -> Option<SpendReply> {
    let (&[granted, wall_ms], sums) = answer.split_first_chunk()?;
    let amount = |sum: &i64| match u64::try_from(*sum).unwrap_or(0) {
        sum if sum >= UNBOUNDED => u64::MAX,
        sum => sum,
    };
    let pages: Vec<_> = ask
        .books
        .periods
        .iter()
        .zip(sums.chunks_exact(11))
        .map(|((period, _), sums)| {
            let amounts = |from: usize| {
                SpendAmounts::from_array(std::array::from_fn(|d| amount(&sums[from + d])))
            };
            let bounds = period.holding(now, &ask.books.zone);
            let (settled, reserved) = (amounts(0), amounts(5));
            StoredPage::new(&period.to_string(), bounds, settled, reserved, amount(&sums[10]))
        })
        .collect();
    if pages.len() != ask.books.periods.len() {
        return None;
    }
    let mut account = ask.books.account_with(&pages);
    let outcome = if granted == 1 {
        let mut granted = ask.amounts;
        granted.wall_ms = u64::try_from(wall_ms).ok()?;
        Ok(granted)
    } else {
        // Which cap it is, by the one ledger's own rules.
        Err(account.clone().reserve(now, ask.amounts).err()?)
    };
    Some(SpendReply::new(outcome, account.spent(now)))
}
