-- One letter per task id, and every failure that it stands for.

CREATE TABLE backfill_letters (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id           text NOT NULL UNIQUE,
    task              text NOT NULL,
    queue             text NOT NULL,
    state             text NOT NULL DEFAULT 'dead'
                      CHECK (state IN ('dead', 'requeueing', 'requeued', 'resolved', 'discarded')),
    reason            text NOT NULL,
    exception_type    text NOT NULL,
    exception_message text NOT NULL,
    retries           integer NOT NULL DEFAULT 0,
    stalls            integer NOT NULL DEFAULT 0,
    worker            text,
    root_id           text,
    parent_id         text,
    group_id          text,
    fingerprint       text NOT NULL,
    message           bytea,
    failure_count     integer NOT NULL DEFAULT 1,
    requeue_count     integer NOT NULL DEFAULT 0,
    requeue_id        uuid,
    requeued_at       timestamptz,
    resolved_at       timestamptz,
    first_failed_at   timestamptz NOT NULL,
    last_failed_at    timestamptz NOT NULL,
    CHECK (state NOT IN ('requeueing', 'requeued') OR (requeue_id IS NOT NULL AND requeued_at IS NOT NULL))
);

CREATE INDEX backfill_letters_newest ON backfill_letters (last_failed_at DESC, id DESC);
CREATE INDEX backfill_letters_by_state ON backfill_letters (state, last_failed_at DESC, id DESC);
CREATE INDEX backfill_letters_by_group ON backfill_letters (fingerprint, last_failed_at DESC, id DESC);
CREATE INDEX backfill_letters_by_task ON backfill_letters (task, last_failed_at DESC, id DESC);

CREATE TABLE backfill_failures (
    id                text NOT NULL,
    task_id           text NOT NULL REFERENCES backfill_letters (task_id) ON DELETE CASCADE,
    requeue           integer NOT NULL DEFAULT 0,
    reason            text NOT NULL,
    exception_type    text NOT NULL,
    exception_message text NOT NULL,
    traceback         text NOT NULL,
    retries           integer NOT NULL DEFAULT 0,
    stalls            integer NOT NULL DEFAULT 0,
    worker            text,
    failed_at         timestamptz NOT NULL,
    recorded_at       timestamptz NOT NULL DEFAULT now(),
    -- Ids are unique in one Redis; several may ship to one database.
    PRIMARY KEY (task_id, id)
);

CREATE INDEX backfill_failures_history ON backfill_failures (task_id, failed_at DESC, id DESC);
