-- A claimed letter's message was sent. Parameters: id, requeue_id. Returns nothing.
-- Changes nothing when the task has already ended, or when the letter is another requeue's by now.
UPDATE backfill_letters
SET state = 'requeued'
WHERE id = %(id)s AND requeue_id = %(requeue_id)s AND state = 'requeueing'
