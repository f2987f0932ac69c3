"""Fixtures: an empty job folder, local or in memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    where = tmp_path / "job" if request.param == "file" else f"memory://{uuid.uuid4().hex}/job"
    return open_storage(where)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "job")
