"""The demo: index every Python source file of this machine, at most N files of a package at a time.

``python -m examples.indexing`` runs it; ``celery -A examples.indexing.app ...`` looks at what it left.
"""
