-- The ids of the letters of a filter that can be requeued now, oldest failure first.
-- Parameters: those of the filter, limit (NULL for all), and abandoned_seconds.
SELECT id FROM backfill_letters
WHERE
{filter}
  AND message IS NOT NULL
  AND (state = 'dead'
       OR (state = 'requeueing' AND requeued_at < now() - make_interval(secs => %(abandoned_seconds)s)))
ORDER BY last_failed_at, id
LIMIT %(limit)s
