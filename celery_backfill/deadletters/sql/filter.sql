-- Which letters are meant. A part of other statements, so that lists, counts and bulk actions always agree.
-- Parameters, each NULL for "any": task, queue, error (exception type, whole or its last part), group, reason,
-- states (array), since (inclusive), until (exclusive), search (a LIKE pattern).
    (%(task)s::text IS NULL OR task = %(task)s)
    AND (%(queue)s::text IS NULL OR queue = %(queue)s)
    AND (%(error)s::text IS NULL OR exception_type = %(error)s
         OR right(exception_type, length(%(error)s) + 1) = '.' || %(error)s)
    AND (%(group)s::text IS NULL OR fingerprint = %(group)s)
    AND (%(reason)s::text IS NULL OR reason = %(reason)s)
    AND (%(states)s::text[] IS NULL OR state = ANY (%(states)s))
    AND (%(since)s::timestamptz IS NULL OR last_failed_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR last_failed_at < %(until)s)
    AND (%(search)s::text IS NULL OR exception_message ILIKE %(search)s OR exception_type ILIKE %(search)s
         OR task ILIKE %(search)s OR task_id ILIKE %(search)s)
