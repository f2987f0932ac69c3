"""Pruning keeps what the rules want and what a resume needs."""

from __future__ import annotations

import pytest

from outlast_checkpoints.errors import (
    StorageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.retention import Best, Keep
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.checkpoints import at, begun


def test_prune_keeps_what_the_rules_want_and_what_a_resume_needs(storage: Storage) -> None:
    one = begun(storage)
    for step in range(5):
        metrics = {"val_loss": abs(step - 1.0)}
        one.save(sample_snapshot(step, metrics=metrics), reason="step")
    one.save(sample_snapshot(5, stage=Stage.END), reason="end")
    one.save(sample_snapshot(0, phase=1), reason="start")
    store = begun(storage, 2)
    store.save(sample_snapshot(1, phase=1), reason="step")
    store.save(sample_snapshot(2, phase=1), reason="step")
    keep = Keep(last=1, best=Best("val_loss", "min"))
    names = [str(at(step)) for step in (0, 2, 3, 4)] + [str(at(1, 2, phase=1))]
    assert store.prune(keep, dry_run=True) == names
    assert len(store.ids()) == 9
    assert store.prune(keep) == names
    assert store.ids() == [
        at(1),  # best
        at(5, stage=Stage.END),  # the end of a phase
        at(0, phase=1),  # what attempt 2 resumed from
        at(2, 2, phase=1),  # the newest
    ]
    assert store.prune(keep) == []
    assert all(store.verify(found) == [] for found in store.ids())


def test_prune_by_a_reader_keeps_the_newest_good_checkpoint(local: Storage) -> None:
    store = begun(local)
    for step in range(4):
        store.save(sample_snapshot(step), reason="step")
    for step, name in ((3, "state.h5"), (2, "manifest.json")):
        path = local.local_path(layout.checkpoint_file(at(step), name))
        assert path is not None
        path.write_bytes(b"spoilt")
    reader = CheckpointStore(local)
    assert reader.prune(Keep(last=1)) == [str(at(0)), str(at(2))]
    found, _ = reader.latest()
    assert found is not None
    assert found.id == at(1)


def test_prune_keeps_what_others_may_be_writing(local: Storage) -> None:
    begun(local).save(sample_snapshot(1), reason="step")
    begun(local, 2)
    for attempt in (1, 2, 3):
        with local.stage(layout.checkpoint_file(at(7, attempt), "state.h5")) as path:
            path.write_bytes(b"half a checkpoint")
    local.create(f"{layout.CHECKPOINTS}/notes.txt", b"not ours")
    assert CheckpointStore(local).prune(Keep()) == [str(at(7, 1))]
    assert local.list(layout.CHECKPOINTS) == [
        str(at(1)),
        str(at(7, 2)),
        str(at(7, 3)),
        "notes.txt",
    ]


def test_delete_removes_the_manifest_first(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "delete_tree@1:fail")
    store = begun(faulty)
    made = store.save(sample_snapshot(1), reason="step")
    with pytest.raises(StorageError):
        store.delete(made.id)
    assert store.ids() == []
    assert storage.list(layout.checkpoint_dir(made.id)) == [
        "model.json",
        "model.weights.h5",
        "state.h5",
    ]
    store.delete(made.id)
    assert store.orphans() == []
