"""A spare process takes over from an attempt that died, and the result is the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from outlast.attempt import warm_spare
from tests.acceptance import jobs
from tests.acceptance.conftest import SAVE
from tests.acceptance.jobs import Training, assert_same, gone
from tests.acceptance.plain import Make

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

WARM = f"{SAVE} --warm-spare --heartbeat-every 0.1s"


@pytest.fixture(autouse=True)
def as_in_a_new_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what scikit-learn sets when it is imported, as these tests may have done.

    Keras imports it where it is installed, so an attempt sets it after TensorFlow's import began:
    here it is found.
    """
    monkeypatch.setattr(jobs, "PATH", str(jobs.TOP))
    for name in os.environ:
        if name.startswith("KMP_"):
            monkeypatch.delenv(name)


def spare_of(training: Training, attempt: psutil.Process) -> psutil.Process | None:
    """Return the process that waits to become the next attempt (this one may have been one)."""
    assert training.supervisor is not None
    for child in psutil.Process(training.supervisor.pid).children():
        if child != attempt and not gone(child) and "outlast.attempt.warm_spare" in child.cmdline():
            return child
    return None


def kill_when_there_is_a_spare(training: Training, attempt: int) -> psutil.Process:
    """Kill an attempt in an epoch of its own, and return the spare that was there."""
    training.hold("epoch_end", attempt)
    process = training.attempt(attempt)
    training.until_held(process, "epoch_end", attempt)
    found: psutil.Process = training.until("a spare", lambda: spare_of(training, process))
    process.kill()
    return found


def events(training: Training, attempt: int, name: str) -> list[dict[str, Any]]:
    return [row for row in training.log(attempt) if row["event"] == name]


def test_a_spare_takes_over_and_the_result_is_the_same(train: Callable[..., Training]) -> None:
    untouched = train("environs")
    untouched.vary("0")
    untouched.start()
    untouched.end()

    warm = train("environs", options=WARM)
    warm.vary("0")
    warm.hold("epoch_end", 1)
    warm.start()
    for attempt in (1, 2):
        waiting = kill_when_there_is_a_spare(warm, attempt)
        assert warm.attempt(attempt + 1).pid == waiting.pid
    warm.hold("never")
    warm.end()
    assert_same(warm, untouched)
    for attempt in (2, 3):
        (started,) = events(warm, attempt, "attempt_started")
        assert started["spare_mib"] > started["spare_own_mib"] > 0
        # Only the first spare has imported anything; where it may not fork, each has
        assert started["spare_forks"] == (0 if warm_spare.has_accelerator() else attempt - 2)
    assert "spare_mib" not in events(warm, 1, "attempt_started")[0]
    assert [k for k in range(1, 4) if events(warm, k, "spare_rejected")] == []


def test_a_spare_that_imported_under_other_variables_is_not_used(
    train: Callable[..., Training],
) -> None:
    """What the script sets before it imports counts, also when it is not what it was."""
    training = train("environs", options=WARM)
    training.vary("0")
    training.hold("epoch_end", 1)
    training.start()
    training.hold("epoch_end", 1)
    first = training.attempt(1)
    training.until_held(first, "epoch_end", 1)
    waiting = training.until("a spare", lambda: spare_of(training, first))
    training.vary("1")
    first.kill()
    second = training.attempt(2)
    training.until_held(second, "epoch_end", 1)
    left = spare_of(training, second)
    training.hold("never")
    training.end()
    (unfit,) = events(training, 2, "spare_rejected")
    assert unfit["variables"] == ["TF_ENABLE_ONEDNN_OPTS"]
    first_start, second_start = events(training, 2, "attempt_started")
    assert "spare_mib" in first_start
    assert "spare_mib" not in second_start
    assert first_start["pid"] == second_start["pid"] == waiting.pid
    # Nobody is left behind, nor is the spare of an attempt that did not die.
    assert left is None or gone(left)


COLD = """
import gc
from outlast import Loop
(here / "frozen").write_text(str(gc.get_freeze_count()))
"""


def test_an_attempt_without_a_spare_ends_without_a_look_at_all_of_tensorflow(job: Make) -> None:
    """Python's last collection takes a second, in which nobody can take the job over."""
    plain = job(COLD)
    assert plain.run() == 0
    assert int((plain.folder / "frozen").read_text()) > 100_000
