-- The columns of a letter as it is shown: everything but its message. A part of other statements.
    id, task_id, task, queue, state, reason, exception_type, exception_message, retries, stalls, worker,
    root_id, parent_id, group_id, fingerprint AS "group", failure_count, requeue_count, requeue_id, requeued_at,
    resolved_at, first_failed_at, last_failed_at
