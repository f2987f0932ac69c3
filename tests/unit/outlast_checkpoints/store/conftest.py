"""Fixtures: a bucket, and trainings that save to it through a spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.away import Bucket
from tests.support.spooled_training import Machine, machines


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket.at(tmp_path / "bucket")


@pytest.fixture
def make(tmp_path: Path, bucket: Bucket) -> Iterator[Callable[..., Machine]]:
    yield from machines(tmp_path, bucket)
