"""The command line as a function."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.command_line import Call, answer


@pytest.fixture
def outlast(
    job_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Return a function that does what a command line says, with `job_root` as the root."""
    monkeypatch.setenv("OUTLAST_ROOT", str(job_root))
    return partial(answer, capsys)
