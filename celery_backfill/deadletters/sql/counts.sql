-- How many letters are in each state. Returns state, count.
SELECT state, count(*) FROM backfill_letters GROUP BY state
