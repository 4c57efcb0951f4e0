-- Record one failure, once, and open its letter or bring it up to date.
-- Parameters: the fields of a Failure by name.
-- Returns one row when the failure is new (its id, and the letter's id if the letter changed), none when it was known.
-- A letter changes only for a new failure whose requeue is not older than the letter's; one that was resolved, only
-- for a newer requeue. The newest failure is the one on top, in whichever order they arrive.
WITH failure AS (
    INSERT INTO backfill_failures
        (id, task_id, requeue, reason, exception_type, exception_message, traceback, retries, stalls, worker, failed_at)
    VALUES
        (%(id)s, %(task_id)s, %(requeue)s, %(reason)s, %(exception_type)s, %(exception_message)s, %(traceback)s,
         %(retries)s, %(stalls)s, %(worker)s, %(at)s)
    ON CONFLICT (task_id, id) DO NOTHING
    RETURNING id
), letter AS (
    INSERT INTO backfill_letters AS known
        (task_id, task, queue, reason, exception_type, exception_message, retries, stalls, worker, root_id, parent_id,
         group_id, fingerprint, message, requeue_count, first_failed_at, last_failed_at)
    SELECT
        %(task_id)s, %(task)s, %(queue)s, %(reason)s, %(exception_type)s, %(exception_message)s, %(retries)s,
        %(stalls)s, %(worker)s, %(root_id)s, %(parent_id)s, %(group_id)s, %(fingerprint)s, %(message)s, %(requeue)s,
        %(at)s, %(at)s
    FROM failure
    ON CONFLICT (task_id) DO UPDATE SET
        state = 'dead',
        failure_count = known.failure_count + 1,
        requeue_count = greatest(known.requeue_count, excluded.requeue_count),
        first_failed_at = least(known.first_failed_at, excluded.first_failed_at),
        last_failed_at = greatest(known.last_failed_at, excluded.last_failed_at),
        message = CASE WHEN excluded.last_failed_at >= known.last_failed_at
                  THEN coalesce(excluded.message, known.message) ELSE known.message END,
        (task, queue, reason, exception_type, exception_message, retries, stalls, worker, root_id, parent_id,
         group_id, fingerprint) = (
            SELECT
                top.task, top.queue, top.reason, top.exception_type, top.exception_message, top.retries, top.stalls,
                top.worker, top.root_id, top.parent_id, top.group_id, top.fingerprint
            FROM (
                SELECT 1 AS place, excluded.* WHERE excluded.last_failed_at >= known.last_failed_at
                UNION ALL
                SELECT 2 AS place, known.*
            ) AS top
            ORDER BY top.place
            LIMIT 1
        )
    WHERE (known.state IN ('dead', 'requeueing', 'requeued', 'discarded')
           AND known.requeue_count <= excluded.requeue_count)
       OR (known.state = 'resolved' AND known.requeue_count < excluded.requeue_count)
    RETURNING id
)
SELECT failure.id, letter.id FROM failure LEFT JOIN letter ON true
