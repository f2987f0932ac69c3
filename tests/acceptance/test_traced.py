"""Whole trainings, whose saves are killed or failed at chosen calls to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outlast.job.events import Ended
from outlast.job.outcome import Outcome
from tests.acceptance.jobs import Training, assert_same, gone
from tests.crash.tracing import traced

pytestmark = [pytest.mark.acceptance, pytest.mark.crash, pytest.mark.slow]

STEPS = 32  # an epoch

# Each on the thread that writes the checkpoint, in the save at the end of an epoch.
POINTS = [
    ("pwrite64", 1, None),  # the history
    ("fsync", 1, None),
    ("mkdir", 1, None),
    ("openat", 1, "model.weights.h5"),
    ("write", 1, "model.weights.h5"),
    ("fsync", 1, "state.h5"),
    ("fsync", 7, None),
    ("link", 1, None),  # the manifest's name: before it, nothing is committed
    ("unlink", 1, None),  # its temporary one: after that, all is
]


def test_killed_in_a_save(
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    """One attempt after the other dies at another call of a save; the training ends exactly."""
    strace = require("strace")
    training = train("cnn", options="--save-every epoch", forked=True)
    log = tmp_path / "strace.log"
    epoch = 1
    training.hold("epoch_end", epoch)
    training.start()
    for number, (call, n, file) in enumerate(POINTS, 1):
        process = training.attempt(number)
        epoch = training.until_held(process, "epoch_end", epoch)
        training.until_saved(epoch * STEPS)
        before = training.store.ids()
        saving = f"00-{(epoch + 1) * STEPS:012d}.1-{number:04d}"
        path = training.folder / "checkpoints" / saving / file if file else None
        with traced(strace, process.pid, log, call, f"{call}:signal=SIGKILL:when={n}", path):
            training.hold("epoch_end", epoch + 1)
            training.until(f"its death at {call} {n}", lambda process=process: gone(process))
        after = training.store.ids()
        # What was committed stays, and is whole; the new one is there or it is not.
        assert set(map(str, after)) - set(map(str, before)) == ({saving} & set(map(str, after)))
        assert (saving in map(str, after)) == (call == "unlink")
        assert [damage for found in after for damage in training.store.verify(found)] == []
    training.hold("never")
    training.end()
    ended = [e.event.outcome for e in training.journal.read() if isinstance(e.event, Ended)]
    assert ended == [Outcome.KILLED] * len(POINTS) + [Outcome.COMPLETED]
    assert_same(training, untouched("cnn"))


@pytest.mark.parametrize(
    ("error", "call", "file"),
    [("ENOSPC", "write", "model.weights.h5"), ("EIO", "fsync", "state.h5")],
)
def test_training_continues_after_a_failed_save(
    error: str,
    call: str,
    file: str,
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    """By default a save that fails is told and the next one tried; nothing else changes."""
    training = train("cnn", options="--save-every epoch", forked=True)
    training.hold("epoch_end", 2)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 2)
    training.until_saved(2 * STEPS)
    failing = training.folder / "checkpoints" / f"00-{3 * STEPS:012d}.1-0001" / file
    inject = f"{call}:error={error}"
    with traced(require("strace"), process.pid, tmp_path / "log", call, inject, failing):
        training.hold("epoch_end", 4)
        training.until_held(process, "epoch_end", 4)
        training.until_saved(4 * STEPS)
        saved = [str(found) for found in training.store.ids()]
        training.hold("never")
        training.end()
    assert "(INJECTED)" in (tmp_path / "log").read_text()
    assert f"00-{3 * STEPS:012d}.1-0001" not in saved
    assert f"00-{4 * STEPS:012d}.1-0001" in saved
    assert_same(training, untouched("cnn"))
    told = [row for row in training.log(1) if row["event"] == "save_failed"]
    assert all(row["level"] == "warning" for row in told)
    assert any("training continues" in row.get("hint", "") for row in told)
    assert all(str(failing) in row["error"] for row in told)


def test_training_stops_after_a_failed_save_if_so_configured(
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    """With on_save_error "stop" an attempt exits with 74, naming the file; the next one goes on."""
    training = train("cnn", options="--save-every epoch --on-save-error stop", forked=True)
    faults = {"ENOSPC": "No space left", "EIO": "Input/output error"}
    failing = []
    for number, error in enumerate(faults, 1):
        epoch = 2 * number
        training.hold("epoch_end", epoch)
        training.start() if number == 1 else None
        process = training.attempt(number)
        training.until_held(process, "epoch_end", epoch)
        name = f"00-{(epoch + 1) * STEPS:012d}.1-{number:04d}"
        failing.append(training.folder / "checkpoints" / name / "state.h5")
        inject = f"write:error={error}"
        with traced(require("strace"), process.pid, tmp_path / "log", "write", inject, failing[-1]):
            training.hold("epoch_end", epoch + 2, process)
            training.until("its end", lambda process=process: gone(process))
    training.hold("never")
    training.end()
    *ended, last = [e.event for e in training.journal.read() if isinstance(e.event, Ended)]
    assert last.outcome is Outcome.COMPLETED
    assert [event.exit_code for event in ended] == [74, 74]
    for event, path, text in zip(ended, failing, faults.values(), strict=True):
        assert str(path) in event.reason
        assert text in event.reason
    assert "Traceback" not in training.output()
    assert_same(training, untouched("cnn"))
