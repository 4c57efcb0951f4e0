"""What several unit tests start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.lone_worker import LoneWorker


@pytest.fixture
def lone_worker(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[LoneWorker]:
    """A worker that is not yet started; what is left of it is killed."""
    worker = LoneWorker(redis_url, namespace, tmp_path)
    yield worker
    worker.close()
