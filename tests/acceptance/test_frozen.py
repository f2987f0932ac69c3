"""A training that is frozen, taken over and continued changes nothing any more."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from outlast.exit_codes import SUPERSEDED
from outlast.job import heartbeat
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import read_lineage
from tests.acceptance.jobs import PATIENCE, Supervisor, Training, assert_same, gone, stopped
from tests.crash.tracing import traced

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

OPTIONS = "--save-every 7,epoch --heartbeat-every 0.2 --lost-after 2"


def freeze(training: Training, process: psutil.Process) -> None:
    """Stop an attempt, and its supervisor before it: nobody can tell that it stands still."""
    assert training.supervisor is not None
    psutil.Process(training.supervisor.pid).suspend()
    process.suspend()
    training.until("its stop", lambda: stopped(process))


def wake(training: Training, process: psutil.Process, supervisor: Supervisor) -> None:
    """Let both go on; both find that they were superseded, and leave."""
    process.resume()
    training.until("the end of the frozen attempt", lambda: gone(process))
    beat = heartbeat.read(training.storage, 1)
    assert beat is not None
    assert beat.ended == SUPERSEDED
    psutil.Process(supervisor.pid).resume()
    assert supervisor.wait(PATIENCE) == SUPERSEDED


def half_written(training: Training, checkpoint: CheckpointId) -> bool:
    """Whether one of its three files is not there yet, so that the fence is still to be asked."""
    folder = training.folder / "checkpoints" / str(checkpoint)
    return len([path for path in folder.iterdir() if not path.name.startswith(".tmp-")]) < 3


def test_frozen_in_a_save(
    train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    """A checkpoint is half written: once awake again, it is never committed."""
    training = train("cnn", options=OPTIONS, forked=True)
    training.hold("epoch_end", 3)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 3)
    training.hold("epoch_end", 4)
    leash = 4
    while True:
        writing = training.writing(1)
        if writing is not None:
            process.suspend()
            training.until("its stop", lambda: stopped(process))
            if training.writing(1) == writing and half_written(training, writing):
                break
            process.resume()
        elif training.held(process) == ("epoch_end", leash):
            leash += 1
            training.hold("epoch_end", leash)
    freeze(training, process)
    supervisor = training.release_supervisor()

    training.hold("epoch_end", leash + 3, process)
    training.resume()
    successor = training.attempt(2)
    training.until_held(successor, "epoch_end", leash + 3)
    ahead = training.store.ids()
    wake(training, process, supervisor)
    assert not training.committed(writing)
    assert_nothing_added(training, ahead)

    training.hold("never")
    training.end()
    assert_same(training, untouched("cnn"))


def test_frozen_between_fence_and_commit(
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    tmp_path: Path,
    require: Callable[[str], str],
) -> None:
    """The worst moment: it has made sure that it owns the job, and then it freezes. Awake again it
    commits, years too late; and what it committed is never read."""
    training = train("cnn", options=OPTIONS, forked=True)
    training.hold("epoch_end", 3)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 3)
    training.until("no save is under way", lambda: training.writing(1) is None)
    # On the thread that writes, and on no other: the history, the folder's own folder, three files,
    # each with the folder, and then the manifest under a temporary name.
    stop = "fsync:signal=SIGSTOP:when=9"
    log = tmp_path / "strace.log"
    with traced(require("strace"), process.pid, log, "fsync,link", stop) as tracer:
        training.hold("epoch_end", 4)
        training.until("its stop", lambda: stands(process))
        tracer.send_signal(signal.SIGINT)
    freeze(training, process)
    supervisor = training.release_supervisor()
    writing = training.writing(1)
    assert writing is not None, log.read_text()
    # The manifest is written; it has not got its name.
    assert len(list((training.folder / "checkpoints" / str(writing)).glob(".tmp-*"))) == 1

    training.hold("epoch_end", 7, process)
    training.resume()
    successor = training.attempt(2)
    training.until_held(successor, "epoch_end", 7)
    line, _ = read_lineage(training.storage)
    assert line.attempts == [2, 1]
    ahead = training.store.ids()
    assert writing not in ahead
    wake(training, process, supervisor)

    assert training.committed(writing), log.read_text()
    assert_nothing_added(training, ahead)
    assert str(writing) in training.store.orphans()
    training.hold("never")
    training.end()
    assert_same(training, untouched("cnn"))
    assert not training.committed(writing)  # the next pruning took it


def assert_nothing_added(training: Training, ahead: list[CheckpointId]) -> None:
    """Assert that the frozen attempt has no checkpoint more than it had, the successor none less.

    Nothing more can be compared: the loop of the successor is held, but a save that it had begun
    before may be committed meanwhile, and prune.
    """
    now = training.store.ids()
    assert {one for one in now if one.attempt == 1} <= set(ahead)
    assert now[-1] >= ahead[-1]
    assert ahead[-1].attempt == 2


def stands(process: psutil.Process) -> bool:
    """Whether a traced process has been stopped, and has not only paused for the tracer."""
    return all(stopped(process) for _ in range(20))
