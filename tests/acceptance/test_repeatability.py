"""Two runs of one script end with the same bytes, in a small sample of `make repeatability`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]
TOP = Path(__file__).parents[2]


def test_untouched_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    command = ["-m", "tests.testbeds.repeatability", "--runs", "3", "--log", tmp_path / "log.jsonl"]
    done = subprocess.run(
        [sys.executable, *command, "--only", "own step: variational", "--only", "a racing sum"],
        cwd=TOP, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "2 architectures, 6 runs, 0 with more than one result" in done.stdout, done.stdout
    assert done.returncode == 0
