-- The tables of all stores in this database: `prefix` tells them apart.

-- The journal. `ends_ms` is when a record is of no use any more, in ms since 1970.
CREATE TABLE tower_gemini_calls (
    prefix text NOT NULL,
    call bytea NOT NULL,
    fingerprint bytea NOT NULL,
    owner bigint NOT NULL,
    record text NOT NULL,
    ends_ms bigint NOT NULL,
    bytes bigint,
    body bytea,
    PRIMARY KEY (prefix, call)
);
-- Images in base64: compressing them takes long and saves little.
ALTER TABLE tower_gemini_calls ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX tower_gemini_calls_by_fingerprint ON tower_gemini_calls (prefix, fingerprint);
CREATE INDEX tower_gemini_calls_by_end ON tower_gemini_calls (prefix, ends_ms);
CREATE INDEX tower_gemini_bodies_by_end ON tower_gemini_calls (prefix, ends_ms) INCLUDE (bytes)
    WHERE bytes IS NOT NULL;

-- When each process that writes a journal was last heard of.
CREATE TABLE tower_gemini_owners (
    prefix text NOT NULL,
    owner bigint NOT NULL,
    heard timestamptz NOT NULL,
    PRIMARY KEY (prefix, owner)
);

-- Reservations of spending that are not settled. `ends_ms` is when one is given up; when a lost one
-- is forgotten.
CREATE TABLE tower_gemini_spends (
    prefix text NOT NULL,
    ledger text NOT NULL,
    id bytea NOT NULL,
    open bytea NOT NULL,
    is_lost boolean NOT NULL,
    ends_ms bigint NOT NULL,
    PRIMARY KEY (prefix, ledger, id)
);
CREATE INDEX tower_gemini_spends_by_end ON tower_gemini_spends (prefix, ledger, ends_ms);

-- Counts of quotas, what each ledger has spent, and records.
CREATE TABLE tower_gemini_values (
    prefix text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (prefix, kind, name)
);
