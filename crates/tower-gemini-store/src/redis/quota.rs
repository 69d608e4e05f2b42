use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;
use tower_gemini::calendar::PacificDay;
use tower_gemini::quota_guard::{QuotaAmounts, QuotaDimension, SLOT_MS, WINDOW_MS};
use tower_gemini::store::{Booking, Exchange, ExchangeFuture, QuotaStore, Reply, StoreError};

use super::{Connected, RedisStore, failed};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("quota.lua")));

impl QuotaStore for RedisStore {
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        let store = self.clone();
        Box::pin(async move { store.ask(exchange).await })
    }
}

impl RedisStore {
    async fn ask(&self, mut exchange: Exchange) -> Result<Reply, StoreError> {
        let connected = self.connected().await?;
        let Connected { mut connection, mut probation, hold, mut skew_ms } = connected;
        if let (Some(left), true) = (hold, exchange.most > 0) {
            let day = self.today(skew_ms).number();
            tracing::warn!(
                left_ms = left.as_millis(),
                "the quota's redis has just started: it may have forgotten the last minute"
            );
            probation.passed = true;
            let heard =
                exchange.day_floor.filter(|(heard, _)| *heard == day).map_or(0, |(_, taken)| taken);
            return Ok(Reply::refused(Some(left), QuotaAmounts([0, 0, 0, heard]), day));
        }
        {
            let mut link = self.link.lock().await;
            if !link.reported.as_mut().is_some_and(|reported| reported.insert(exchange.key.clone()))
            {
                exchange.day_floor = None;
            }
        }
        // Twice at most: the second time by the server's own clock.
        for _ in 0..2 {
            let today = self.today(skew_ms);
            let answer: Vec<i64> = self
                .invocation(&exchange, &today)
                .invoke_async(&mut connection)
                .await
                .map_err(failed)?;
            match answer.as_slice() {
                [-1, server_ms] => {
                    skew_ms = server_ms.saturating_sub(self.wall_ms());
                    tracing::warn!(
                        skew_ms,
                        "our clock and the quota store's are in different days"
                    );
                    self.link.lock().await.skew_ms = skew_ms;
                }
                &[granted, slot, day, both, retry_ms, t0, t1, t2, t3] => {
                    probation.passed = true;
                    let amount = |value: i64| u64::try_from(value).unwrap_or(0);
                    let day = i32::try_from(day).unwrap_or(0);
                    let taken = QuotaAmounts([t0, t1, t2, t3].map(amount));
                    let booking = Booking { slot: amount(slot), day, both_days: both == 1 };
                    let after = |ms: u64| Duration::from_millis(ms.max(1));
                    return Ok(match u32::try_from(granted).unwrap_or(0) {
                        0 => Reply::refused(u64::try_from(retry_ms).ok().map(after), taken, day),
                        granted => Reply::new(granted, booking, taken, day),
                    });
                }
                _ => return Err(StoreError::new("the script's reply has another form")),
            }
        }
        Err(StoreError::new("the server's clock moves between days"))
    }

    fn invocation(
        &self,
        exchange: &Exchange,
        today: &PacificDay,
    ) -> redis::ScriptInvocation<'static> {
        let mut script = SCRIPT.prepare_invoke();
        let base = self.name(&exchange.key.to_string(), "");
        let number = i64::from(today.number());
        script.key(format!("{base}:w")).key(format!("{base}:q"));
        for day in number - 1..=number + 1 {
            script.key(format!("{base}:d{day}"));
        }
        script.key(format!("{base}:c"));
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let int = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        let margin_ms = ms(exchange.margin);
        let stay = (WINDOW_MS + margin_ms.unsigned_abs()).div_ceil(SLOT_MS);
        script.arg(stay).arg(SLOT_MS).arg(ms(exchange.lease)).arg(margin_ms);
        for limit in QuotaDimension::ALL.map(|dimension| exchange.limits.get(dimension)) {
            // Lua counts in doubles, exact to 2^53: limits beyond are none.
            script.arg(limit.filter(|&limit| limit < 1 << 53).map_or(-1, int));
        }
        for amount in exchange.need.0 {
            script.arg(int(amount));
        }
        script
            .arg(exchange.most)
            .arg(int(exchange.day_reserve))
            .arg(exchange.close_day.map_or(0, |close| if close { 1 } else { 2 }));
        script
            .arg(number - 1)
            .arg(number)
            .arg(number + 1)
            .arg(today.start_ms())
            .arg(today.end_ms());
        let (heard, taken) =
            exchange.day_floor.map_or((-1, 0), |(day, taken)| (i64::from(day), int(taken)));
        script.arg(heard).arg(taken);
        for amount in exchange.unreported.0 {
            script.arg(int(amount));
        }
        script.arg(exchange.refunds.len());
        for refund in &exchange.refunds {
            let Booking { slot, day, both_days } = refund.booking;
            script.arg(int(slot)).arg(day).arg(u8::from(both_days));
            for amount in refund.unused.0 {
                script.arg(int(amount));
            }
            script.arg(int(refund.extra_tokens));
        }
        script
    }
}
