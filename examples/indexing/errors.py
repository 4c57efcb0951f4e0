"""How the demo says that it cannot go on."""

from __future__ import annotations


class DemoFailedError(Exception):
    """The run cannot be finished; the message is all that is shown."""
