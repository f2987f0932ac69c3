"""Trainings on 2 and 4 logical devices: equal to Keras' fit under the same strategy, and resumed.

Logical devices are fixed at a process's start, so each number has one process with many models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[5]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_trainings_on_replicas(replicas: int) -> None:
    """See `tests/support/replica_zoo.py` for the cases."""
    command = [sys.executable, "-m", "tests.support.replica_zoo", str(replicas)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 5
    wrong = {case: problem for case, problem in found.items() if problem}
    assert not wrong, "\n".join(f"-- {case}\n{problem}" for case, problem in wrong.items())
