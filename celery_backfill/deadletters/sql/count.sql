-- How many letters a filter means. Parameters: those of the filter.
SELECT count(*) FROM backfill_letters
WHERE
{filter}
