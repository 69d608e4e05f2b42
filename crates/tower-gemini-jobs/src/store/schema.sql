CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    options TEXT NOT NULL,
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    claimed_ms BIGINT NOT NULL,
    finished_ms BIGINT,
    stopped TEXT,
    notified BIGINT NOT NULL,
    notice BIGINT NOT NULL DEFAULT 0,
    notify_attempts BIGINT NOT NULL DEFAULT 0,
    notify_at_ms BIGINT NOT NULL DEFAULT 0,
    request_key TEXT,
    request_digest TEXT,
    items BIGINT NOT NULL,
    running BIGINT NOT NULL,
    max_running BIGINT NOT NULL,
    max_microusd BIGINT NOT NULL,
    max_requests BIGINT NOT NULL,
    reserved_microusd BIGINT NOT NULL,
    reserved_requests BIGINT NOT NULL,
    least_microusd BIGINT NOT NULL,
    most_microusd BIGINT NOT NULL,
    requests BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS items (
    job TEXT NOT NULL,
    number BIGINT NOT NULL,
    spec TEXT NOT NULL,
    model TEXT NOT NULL,
    output TEXT NOT NULL,
    lane TEXT NOT NULL,
    state TEXT NOT NULL,
    not_before_ms BIGINT NOT NULL,
    deadline_ms BIGINT NOT NULL,
    missing BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    resends BIGINT NOT NULL,
    worst_microusd BIGINT NOT NULL,
    reserved_microusd BIGINT NOT NULL,
    reserved_requests BIGINT NOT NULL,
    least_microusd BIGINT NOT NULL,
    most_microusd BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    worker TEXT,
    lease_ms BIGINT NOT NULL,
    started_ms BIGINT NOT NULL,
    ended_ms BIGINT,
    batch TEXT,
    reason TEXT,
    result TEXT,
    PRIMARY KEY (job, number)
);
CREATE TABLE IF NOT EXISTS waits (
    job TEXT NOT NULL,
    item BIGINT NOT NULL,
    waits_for BIGINT NOT NULL,
    PRIMARY KEY (job, waits_for, item)
);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,
    job TEXT NOT NULL,
    model TEXT NOT NULL,
    state TEXT NOT NULL,
    name TEXT,
    input TEXT,
    created_ms BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    worker TEXT,
    lease_ms BIGINT NOT NULL,
    reason TEXT
);
CREATE INDEX IF NOT EXISTS items_to_claim ON items (job, state, missing, not_before_ms, number);
CREATE INDEX IF NOT EXISTS items_leased ON items (state, lease_ms);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_request ON jobs (owner, request_key);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, claimed_ms);
CREATE INDEX IF NOT EXISTS items_by_output ON items (job, output);
