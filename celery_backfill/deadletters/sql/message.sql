-- A letter's whole message in its stored form, or NULL. Parameters: id.
SELECT message FROM backfill_letters WHERE id = %(id)s
