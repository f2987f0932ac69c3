"""A fork has what leads to its checkpoint and nothing else, and does not need its parent."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast_checkpoints.errors import NoCheckpoint
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.fork_job import fork_job
from outlast_checkpoints.store.rewinding import rewind
from outlast_checkpoints.testing import sample_snapshot
from tests.support.checkpoints import assert_holds, at, begun


@pytest.fixture
def parent(storage: Storage) -> Storage:
    """Attempt 1 finished phase 0 and began phase 1, attempt 2 went on to step 4 of phase 1."""
    for attempt, saves in (
        (1, [(0, 2, Stage.STEP), (0, 3, Stage.END), (1, 1, Stage.STEP)]),
        (2, [(1, 2, Stage.STEP), (1, 4, Stage.STEP)]),
    ):
        store = begun(storage, attempt)
        history = HistoryWriter(storage, attempt)
        for phase, step, stage in saves:
            row = {"kind": "step", "phase": phase, "step": step, "epoch": 0, "time": 1.0}
            history.append({**row, "logs": {}})
            mark = history.mark()
            history.sync(mark)
            snapshot = sample_snapshot(step, phase=phase, stage=stage)
            store.save(snapshot, reason="end" if stage is Stage.END else "step", history=mark)
        history.close()
    storage.create("machine.json", b"{}")
    return storage


def rows(storage: Storage) -> list[tuple[int, int]]:
    return [(row["phase"], row["step"]) for row in HistoryReader(storage).rows()]


def test_it_has_what_leads_to_its_checkpoint(parent: Storage, tmp_path: Path) -> None:
    target = open_storage(tmp_path / "fork")
    chosen = at(2, 2, phase=1)
    fork_job(parent, target, chosen)
    store = CheckpointStore(target, attempt=3)
    assert store.ids() == [at(3, stage=Stage.END), chosen]
    found, damages = store.begin()
    assert found is not None
    assert (found.id, damages) == (chosen, [])
    assert_holds(store.load(chosen), sample_snapshot(2, phase=1))
    assert rows(target) == [(0, 2), (0, 3), (1, 1), (1, 2)]
    assert target.read("machine.json") == b"{}"
    made = store.save(sample_snapshot(3, phase=1, salt=5), reason="step")
    assert (made.parent, store.verify(made.id)) == (str(chosen), [])


def test_its_files_are_links_and_stay_without_the_parent(tmp_path: Path) -> None:
    parent, target = (open_storage(tmp_path / name) for name in ("parent", "fork"))
    begun(parent).save(sample_snapshot(1), reason="step")
    fork_job(parent, target, at(1))
    name = f"checkpoints/{at(1)}/model.weights.h5"
    mine, theirs = target.local_path(name), parent.local_path(name)
    assert mine is not None
    assert theirs is not None
    assert mine.samefile(theirs)
    CheckpointStore(parent).delete(at(1))
    assert CheckpointStore(target).verify(at(1)) == []


def test_a_fork_of_a_fork_and_of_what_a_rewind_has_set_aside(
    parent: Storage, tmp_path: Path
) -> None:
    rewind(parent, 3, at(2))
    first, second = (open_storage(tmp_path / name) for name in ("first", "second"))
    fork_job(parent, first, at(4, 2, phase=1))
    store = begun(first, 3)
    store.save(sample_snapshot(5, phase=1), reason="step")
    fork_job(first, second, at(5, 3, phase=1))
    assert CheckpointStore(second).ids() == [at(3, stage=Stage.END), at(5, 3, phase=1)]
    assert rows(second) == [(0, 2), (0, 3), (1, 1), (1, 2), (1, 4)]


def test_a_pruned_checkpoint_is_named_and_a_repetition_starts_anew(
    parent: Storage, tmp_path: Path
) -> None:
    target = open_storage(tmp_path / "fork")
    with pytest.raises(NoCheckpoint, match=str(at(9))):
        fork_job(parent, target, at(9))
    fork_job(parent, target, at(2))
    fork_job(parent, target, at(2))
    assert CheckpointStore(target).ids() == [at(2)]
