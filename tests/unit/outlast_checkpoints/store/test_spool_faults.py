"""A fault or a death at any call of a save or a transfer loses nothing that was saved."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender
from outlast_checkpoints.testing import Died
from tests.support.away import Bucket
from tests.support.spooled_training import LARGE, Machine, committed, steps_of

_SENDING = 24  # more calls than a sending has


@pytest.mark.parametrize("fault", ["fail", "lost", "full"])
def test_an_error_at_any_call_neither_loses_nor_duplicates_data(tmp_path: Path, fault: str) -> None:
    for call in range(1, _SENDING):
        folder = tmp_path / str(call)
        bucket = Bucket.at(folder / "bucket")
        machine = Machine(folder, bucket)
        bucket.calls.clear()
        _fail_at(bucket, call, fault)
        for _ in range(3):
            machine.train()
            machine.save()
            assert machine.settled()
        assert machine.writer.take_error() is None
        assert committed(bucket) == ["1.0", "2.0", "3.0"]
        assert steps_of(bucket) == [1, 2, 3]
        machine.die()
    assert len(bucket.calls) > 3  # the last faults came after the first sending


def test_a_kill_at_any_call_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    for when in ("die-before", "die-after"):
        for call in range(1, _SENDING):
            folder = tmp_path / when / str(call)
            bucket = Bucket.at(folder / "bucket")
            machine = Machine(folder, bucket)
            _fail_at(bucket, call, when)
            saved = _save_twice(machine)
            assert _step_after(folder) in (saved, saved + 1)


def test_a_kill_at_any_change_of_the_spool_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    for when in ("die-before", "die-after"):
        for call in range(1, 2 * _SENDING):
            folder = tmp_path / when / str(call)
            machine = Machine(folder, Bucket.at(folder / "bucket"), disk=f"any@{call}:{when}")
            saved = _save_twice(machine)
            assert _step_after(folder) in (saved, saved + 1)
    assert not machine.disk.dead  # the last faults came after the second save


def _save_twice(machine: Machine) -> int:
    """Return how many saves were reported as successful; one more may have succeeded."""
    saved = 0
    with suppress(Died):
        for _ in range(2):
            machine.train()
            machine.save()
            machine.writer.close()
            saved += 1
    with suppress(Died):
        machine.settled()
    machine.die()
    return saved


def _fail_at(bucket: Bucket, call: int, fault: str) -> None:
    """Make the k-th call from now fail, whatever it is."""
    left = [call]

    def count(operation: str, path: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            bucket._rules[operation, bucket._counts[operation] + 1] = fault

    bucket.on_call = count


def _step_after(folder: Path) -> int:
    """Run the first steps of the next attempt on this machine; return where it resumes.

    Its history has every step up to there once.
    """
    bucket = Bucket.at(folder / "bucket")
    spool = Spool(folder / "spool" / "job" / "life", LARGE)
    store = CheckpointStore(bucket, attempt=2)
    Sender(spool, store, 1).send_all()
    newest, damages = store.begin()
    assert damages == []
    step = 0 if newest is None else newest.progress.step
    assert steps_of(bucket) == list(range(1, step + 1))
    assert spool.waiting() == []
    return step
