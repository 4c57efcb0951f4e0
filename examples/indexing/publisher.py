"""Sends one task per file while the workers already run them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Self

from .app import app, index_file
from .corpus import SourceFile
from .errors import DemoFailedError


class Publisher(threading.Thread):
    """Publishes all ``files`` over one connection. Left as a context, it has stopped."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        super().__init__(name="publisher", daemon=True)
        self._files = files
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self.published = 0
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self._publish_all()
        except Exception as exc:  # shown by check(), in the main thread
            self._error = exc
        self.seconds = time.monotonic() - began

    def check(self) -> None:
        """Raises ``DemoFailedError`` when publishing broke off."""
        if self._error is not None:
            raise DemoFailedError(
                f"publishing broke off after {self.published} tasks: {self._error!r}"
            ) from self._error

    def _publish_all(self) -> None:
        with app.producer_or_acquire() as producer:
            for file in self._files:
                if self._stopping.is_set():
                    return
                index_file.apply_async((file.package, file.path), task_id=file.task_id, producer=producer)
                self.published += 1
