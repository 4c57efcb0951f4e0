-- Letters, newest first. Parameters: those of the filter, and limit. Returns the letter's columns.
SELECT
{letter}
FROM backfill_letters
WHERE
{filter}
ORDER BY last_failed_at DESC, id DESC
LIMIT %(limit)s
