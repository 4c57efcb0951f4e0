-- A claimed letter's message surely was not sent: as if it had not been claimed. Parameters: id, requeue_id.
-- Changes nothing when the letter is another requeue's by now. Returns nothing.
UPDATE backfill_letters
SET state = 'dead', requeue_count = requeue_count - 1, requeue_id = NULL, requeued_at = NULL
WHERE id = %(id)s AND requeue_id = %(requeue_id)s AND state = 'requeueing'
