"""Has the death of a prefork process noticed at once.

Celery looks for it when the pipe that the process held is closed. The kernel closes that before the process can be
waited for, so the look may come too early; the next one is a timer of five seconds.
"""

from __future__ import annotations

from typing import Any

LOOK_AGAIN_SECONDS = 0.02
LOOKS = 50


def notice_exits(pool: Any) -> None:
    """Look again until a process whose pipe is closed is gone. For a started prefork pool; else does nothing."""
    processes = pool._pool
    noticed = getattr(processes, "_event_process_exit", None)
    if noticed is None:
        return

    def look_again(hub: Any, process: Any, looks: int) -> None:
        if looks and process in processes._pool:
            processes.maintain_pool()
            hub.call_later(LOOK_AGAIN_SECONDS, look_again, hub, process, looks - 1)

    def on_exit(hub: Any, process: Any) -> None:
        noticed(hub, process)
        look_again(hub, process, LOOKS)

    processes._event_process_exit = on_exit
