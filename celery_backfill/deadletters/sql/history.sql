-- A letter's failures, newest first. Parameters: task_id.
SELECT id, requeue, reason, exception_type, exception_message, traceback, retries, stalls, worker, failed_at
FROM backfill_failures
WHERE task_id = %(task_id)s
ORDER BY failed_at DESC, id DESC
