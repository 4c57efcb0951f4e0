-- The ids of the letters of a filter that can be discarded, oldest failure first.
-- Parameters: those of the filter, and limit (NULL for all).
SELECT id FROM backfill_letters
WHERE
{filter}
  AND state = 'dead'
ORDER BY last_failed_at, id
LIMIT %(limit)s
