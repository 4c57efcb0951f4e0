"""A walk over every order of events of a small world, on a real server.

Scripts are atomic, so all that can happen is some order of calls, lost replies, crashes and expiries. ``world`` says
what can happen next and ``events`` what comes of it, ``server`` carries a call out on a stored state, ``fold`` makes
equal states the same, ``effects`` judges what was done and ``invariants`` what is, ``search`` goes everywhere.
``broken`` has the scripts with one guard taken out, to see that the walk sees.
"""
