-- The task of a requeued letter succeeded.
-- Parameters: task_id, requeue (the number of the requeue that succeeded), at.
-- Changes nothing when that requeue is not the letter's current one. Returns nothing.
UPDATE backfill_letters
SET state = 'resolved', resolved_at = %(at)s
WHERE task_id = %(task_id)s
  AND requeue_count = %(requeue)s
  AND state IN ('requeueing', 'requeued')
