-- Take a letter for requeueing: a dead one under a new requeue id and number, or one whose requeue was abandoned
-- under the id and number that it has.
-- Parameters: id, requeue_id (the new one), abandoned_seconds.
-- Returns id, task_id, message, requeue_id, requeue (its number), taken_over; no row when it is not to be had.
UPDATE backfill_letters
SET state = 'requeueing',
    requeued_at = now(),
    requeue_id = CASE state WHEN 'dead' THEN %(requeue_id)s ELSE requeue_id END,
    requeue_count = requeue_count + CASE state WHEN 'dead' THEN 1 ELSE 0 END
WHERE id = %(id)s
  AND message IS NOT NULL
  AND (state = 'dead'
       OR (state = 'requeueing' AND requeued_at < now() - make_interval(secs => %(abandoned_seconds)s)))
RETURNING id, task_id, message, requeue_id, requeue_count AS requeue, requeue_id <> %(requeue_id)s AS taken_over
