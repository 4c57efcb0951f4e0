-- Letters that failed alike, the most frequent first. Parameters: those of the filter, and limit.
-- Returns group, task, exception_type, exception_message (of the newest), count, first_failed_at, last_failed_at.
SELECT
    fingerprint AS "group",
    min(task) AS task,
    min(exception_type) AS exception_type,
    (array_agg(left(exception_message, 500) ORDER BY last_failed_at DESC))[1] AS exception_message,
    count(*) AS count,
    min(first_failed_at) AS first_failed_at,
    max(last_failed_at) AS last_failed_at
FROM backfill_letters
WHERE
{filter}
GROUP BY fingerprint
ORDER BY count(*) DESC, max(last_failed_at) DESC, fingerprint
LIMIT %(limit)s
