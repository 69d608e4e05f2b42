//! A real Postgres server, started here: shared by processes that are killed, crashed itself, and
//! stopped.

use std::time::Duration;

use test_programs::postgres;
use tokio::time::Instant;
use tower_gemini::quota_guard::{Limits, QuotaDimension, StoreFailure};
use tower_gemini::store::{JournalChange, JournalRecord};
use tower_gemini_store::PostgresStore;

use crate::common::open;
use crate::quota_redis::{self, block_on, key, layer, soon};

#[test]
fn processes_on_postgres_take_no_more_than_the_limit_together() {
    let Some(server) = postgres::start() else { return };
    quota_redis::processes_take_no_more_than_the_limit(&server.url());
}

#[test]
fn a_client_of_postgres_killed_in_mid_flight_costs_at_most_its_lease() {
    let Some(server) = postgres::start() else { return };
    quota_redis::a_killed_client_costs_at_most_its_lease(&server.url());
}

#[test]
fn postgres_counts_what_the_guard_counts() {
    let Some(server) = postgres::start() else { return };
    quota_redis::counts_what_the_guard_counts(&server.url());
}

#[test]
fn a_day_that_was_closed_on_postgres_and_reopened_grants_again() {
    let Some(server) = postgres::start() else { return };
    quota_redis::a_closed_day_can_be_reopened(&server.url());
}

#[test]
fn a_crashed_postgres_is_an_error_until_it_is_back_and_forgets_nothing() {
    let Some(mut server) = postgres::start() else { return };
    block_on(async {
        let layer = layer(&server.url(), Limits::unlimited().rpm(100).rpd(60));
        let handle = layer.handle(&key()).unwrap();
        for _ in 0..40 {
            handle.reserve(1, 1, soon()).await.unwrap().settle(None);
        }
        layer.flush().await;
        let journal = open(&server.url()).journal;
        let begin = |call| {
            let record = JournalRecord::new(call, [7; 32], Duration::from_secs(600));
            journal.write(call, JournalChange::Begin(Box::new(record)))
        };
        assert!(begin(1).await.unwrap());
        server.crash();
        assert!(begin(2).await.is_err(), "nothing is sent that cannot be recorded");
        assert!(handle.reserve(1, 1, soon()).await.is_err());
        assert!(layer.counts().store_failures > 0);
        server.restart();
        // By the connections that the crash has broken.
        assert!(journal.write(1, JournalChange::Forget).await.unwrap());
        assert!(begin(3).await.unwrap());
        let end = Some(Instant::now() + Duration::from_secs(4));
        let mut taken = 0;
        while let Ok(reservation) = handle.reserve(1, 1, end).await {
            reservation.settle(None);
            taken += 1;
        }
        assert_eq!(handle.usage().entries[QuotaDimension::ALL.len() - 1].used, 60);
        assert!((15..=20).contains(&taken), "{taken} more after 40 of 60");
    });
}

#[test]
fn a_postgres_that_is_stopped_hangs_nobody() {
    let Some(server) = postgres::start() else { return };
    block_on(async {
        let closed = layer(&server.url(), Limits::unlimited().rpm(1_000));
        let open_layer = layer(&server.url(), Limits::unlimited().rpm(1_000))
            .on_store_failure(StoreFailure::OpenOnLastLease);
        let handles = [closed.handle(&key()).unwrap(), open_layer.handle(&key()).unwrap()];
        for handle in &handles {
            handle.reserve(1, 1, soon()).await.unwrap().settle(None);
        }
        let store = PostgresStore::open(&server.url()).unwrap();
        store.probe().await.unwrap();
        server.pause(true);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let began = Instant::now();
        for handle in &handles {
            assert!(handle.reserve(1, 1, soon()).await.is_err());
        }
        let error = store.probe().await.unwrap_err().to_string();
        assert!(error.contains("did not answer within 10 s"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
        server.pause(false);
        let again = Some(Instant::now() + Duration::from_secs(10));
        for handle in &handles {
            handle.reserve(1, 1, again).await.unwrap().settle(None);
        }
        store.probe().await.unwrap();
    });
}

// A replica that starts is one of many, and each of them creates the tables.
#[test]
fn stores_that_start_at_once_share_one_secret_and_a_user_without_rights_can_use_their_tables() {
    let Some(server) = postgres::start() else { return };
    block_on(async {
        let stores: Vec<_> = (0..8).map(|_| PostgresStore::open(&server.url()).unwrap()).collect();
        let secrets = stores.iter().map(PostgresStore::shared_secret);
        let secrets = futures::future::try_join_all(secrets).await.unwrap();
        assert!(secrets.iter().all(|secret| *secret == secrets[0]), "{secrets:?}");
        let other = stores[0].clone().prefix("other").shared_secret().await.unwrap();
        assert_ne!(other, secrets[0]);

        let rights = "CREATE USER plain; REVOKE CREATE ON SCHEMA public FROM public; GRANT \
                      SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO plain";
        let _ = server.run(rights);
        let url = server.url().replace("postgres@", "plain@");
        PostgresStore::open(&url).unwrap().probe().await.unwrap();
    });
}

#[test]
fn no_error_of_postgres_shows_the_password() {
    let secret = "pass-SENTINEL";
    let wrong = PostgresStore::open(&format!("postgres://user:{secret}@[::bad/db")).unwrap_err();
    let Some(server) = postgres::start() else { return };
    let url = server.url().replace("postgres@", &format!("nobody-is-called-so:{secret}@"));
    let store = PostgresStore::open(&url).unwrap();
    let refused = block_on(store.probe()).unwrap_err();
    assert!(refused.to_string().contains("nobody-is-called-so"), "{refused}");
    drop(server);
    let errors = [wrong, refused, block_on(store.probe()).unwrap_err()];
    let shown = format!("{errors:?} {store:?} {:?}", store.clone().password(secret));
    assert!(!shown.contains(secret), "{shown}");
}
