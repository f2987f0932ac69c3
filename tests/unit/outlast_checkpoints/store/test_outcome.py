"""Failing storages: a failure loses at most one save, and a lost answer is found out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from outlast_checkpoints.errors import (
    CommitUnknown,
    StorageError,
    StorageFull,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Capabilities, Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import Died, FaultyStorage, sample_snapshot
from tests.support.checkpoints import assert_holds, at, begun

SAVE_CALLS = 5  # three stages, the manifest, and one more


@pytest.mark.parametrize("fault", ["fail", "full"])
def test_a_failure_anywhere_loses_only_that_save(storage: Storage, fault: str) -> None:
    for call in range(1, SAVE_CALLS):
        base = storage.sub(f"{fault}{call}")
        begun(base).save(sample_snapshot(1), reason="step")
        faulty = FaultyStorage(base)
        store = begun(faulty, 2)
        faulty._rules = {("any", faulty._counts["any"] + call): fault}
        # The manifest is tried twice, so that one failing answer does not matter.
        persistent = {("create", 2): fault, ("create", 3): fault}
        if call == SAVE_CALLS - 1:
            faulty._rules = persistent
        kind = StorageFull if fault == "full" else StorageError
        with pytest.raises(kind) as caught:
            store.save(sample_snapshot(2), reason="step")
        assert base.root in str(caught.value)
        faulty._rules = {}
        assert store.ids() == [at(1)]
        assert store.verify(at(1)) == []
        assert store.orphans() == [], "what it took up is free again"
        store.save(sample_snapshot(2), reason="step")
        assert_holds(store.load(at(2, 2)), sample_snapshot(2))


def test_a_lost_answer_counts_as_committed(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "create@2:lost")
    store = begun(faulty)
    made = store.save(sample_snapshot(1), reason="step")
    assert CheckpointStore(storage).ids() == [made.id]
    assert store.save(sample_snapshot(2), reason="step").parent == made.checkpoint


def test_a_lost_answer_to_the_origin_is_looked_up(storage: Storage) -> None:
    store = begun(FaultyStorage(storage, "create@1:lost"))
    store.save(sample_snapshot(1), reason="step")
    with pytest.raises(StorageError):
        begun(FaultyStorage(storage, "create@1:fail create@2:fail"), 2)
    assert not storage.exists(layout.origin(2))


def test_an_unknown_outcome_is_kept_and_resolved_later(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "create@2:lost create@3:fail")
    store = begun(faulty)
    with pytest.raises(CommitUnknown):
        store.save(sample_snapshot(1), reason="step")
    assert CheckpointStore(storage).ids() == [at(1)], "it was committed after all"
    files = [path for operation, path in faulty.calls if operation == "stage"]
    store.save(sample_snapshot(1), reason="step")
    assert [path for operation, path in faulty.calls if operation == "stage"] == files
    assert store.verify(at(1)) == []


def test_files_that_an_unknown_commit_may_name_are_never_deleted(local: Storage) -> None:
    class Bucket(FaultyStorage):
        capabilities = open_storage("memory://x").capabilities  # type: ignore[assignment]

    Bucket.capabilities = type(local.capabilities)(True, False, False, False)
    faulty = Bucket(local, "create@2:fail create@3:fail")
    store = begun(faulty)
    with pytest.raises(CommitUnknown):
        store.save(sample_snapshot(1), reason="step")
    store.save(sample_snapshot(2), reason="step")
    assert store.prune(Keep(last=1)) == []
    assert store.orphans() == [str(at(1))]
    store.save(sample_snapshot(1), reason="step")
    assert store.verify(at(1)) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_pruned_commit_with_unknown_outcome_is_written_again_completely(
    local: Storage, tmp_path: Path, elsewhere: bool
) -> None:
    """Its manifest is not created again for files that are gone."""
    spool = open_storage(tmp_path / "spool")
    made = begun(spool).save(sample_snapshot(1), reason="step")
    faulty = (Elsewhere if elsewhere else FaultyStorage)(local, "create@2:lost create@3:fail")
    store = begun(faulty)
    with pytest.raises(CommitUnknown):
        store.adopt(made, spool)
    newer = begun(open_storage(tmp_path / "other")).save(sample_snapshot(2), reason="step")
    store.adopt(newer, open_storage(tmp_path / "other"))
    pruned = store.prune(Keep(last=1))
    assert pruned == ([] if elsewhere else [str(at(1))])
    CheckpointStore(local).delete(at(1))  # somebody else's prune: `outlast prune`
    store.adopt(made, spool)
    assert store.verify(at(1)) == []


@pytest.mark.parametrize("fault", ["die-before", "die-after"])
def test_a_kill_at_any_call_leaves_a_good_job(storage: Storage, fault: str) -> None:
    for call in range(1, SAVE_CALLS):
        base = storage.sub(f"{fault}{call}")
        begun(base).save(sample_snapshot(1), reason="step")
        faulty = FaultyStorage(base, f"any@{call + 1}:{fault}")
        store = begun(faulty, 2)
        with pytest.raises(Died):
            store.save(sample_snapshot(2), reason="step")
        successor = CheckpointStore(base, attempt=3)
        found, damages = successor.begin()
        assert damages == []
        assert found is not None
        assert_holds(successor.load(found.id), sample_snapshot(found.id.step))
        committed = fault == "die-after" and call == SAVE_CALLS - 1
        assert found.id == (at(2, 2) if committed else at(1))
        successor.save(sample_snapshot(5), reason="step")
        successor.prune(Keep(last=9))
        assert successor.orphans() == []


class Elsewhere(FaultyStorage):
    """A remote storage: requests that were given up on may arrive later."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exclusive_create=True, append=False, local=False, in_process=False)


def test_a_late_request_does_not_harm_the_next_try(storage: Storage) -> None:
    """Two requests of a save are given up on and arrive after the next try has committed."""
    for call in range(2, 7):
        for other in range(call, call + 4):
            base = storage.sub(f"late{call}{other}")
            faulty = Elsewhere(base, f"any@{call}:late any@{other}:late")
            store = begun(faulty)
            made = None
            while made is None:
                with suppress(StorageError):
                    made = store.save(sample_snapshot(1), reason="step")
            faulty.deliver()
            found, damages = CheckpointStore(base).latest()
            assert found is not None
            assert (found.checkpoint, damages) == (made.checkpoint, [])
            assert_holds(CheckpointStore(base).load(found.id), sample_snapshot(1))
