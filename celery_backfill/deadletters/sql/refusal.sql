-- Why a letter could not be claimed. Parameters: id. Returns task_id, state, whether its message was kept.
SELECT task_id, state, message IS NOT NULL FROM backfill_letters WHERE id = %(id)s
