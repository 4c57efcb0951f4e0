"""Comparisons with plain Celery, run in turn on the same machine: ``make bench``."""
