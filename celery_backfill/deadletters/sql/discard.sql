-- Put a dead letter aside. Parameters: id. Returns its id, or no row when it was not dead.
UPDATE backfill_letters SET state = 'discarded' WHERE id = %(id)s AND state = 'dead' RETURNING id
