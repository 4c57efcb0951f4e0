-- One letter. Parameters: id (bigint or NULL), task_id (text).
-- Returns the letter's columns; a letter with that id comes before one with that task id.
SELECT
{letter}
FROM backfill_letters
WHERE id = %(id)s::bigint OR task_id = %(task_id)s
ORDER BY (id = %(id)s::bigint) DESC NULLS LAST
LIMIT 1
