"""A rewind takes what is beyond its checkpoint out of the lineage, and can be undone."""

from __future__ import annotations

import pytest

from outlast_checkpoints.errors import CheckpointDamaged, NoCheckpoint, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.rewinding import rewind
from outlast_checkpoints.testing import sample_snapshot
from tests.support.checkpoints import at, begun


@pytest.fixture
def saved(storage: Storage) -> Storage:
    """A job whose attempts 1 and 2 saved steps 1 to 3 and 4 to 6, with a history row a step."""
    for attempt in (1, 2):
        store = begun(storage, attempt)
        history = HistoryWriter(storage, attempt)
        for step in range(3 * attempt - 2, 3 * attempt + 1):
            row = {"kind": "step", "phase": 0, "step": step, "epoch": 0, "time": 1.0, "logs": {}}
            history.append(row)
            mark = history.mark()
            history.sync(mark)
            store.save(sample_snapshot(step), reason="step", history=mark)
        history.close()
    return storage


def steps(storage: Storage) -> list[int]:
    return [row["step"] for row in HistoryReader(storage).rows()]


def test_what_is_beyond_no_longer_counts_and_can_be_brought_back(saved: Storage) -> None:
    assert rewind(saved, 3, at(2)).checkpoint == str(at(2))
    assert CheckpointStore(saved).ids() == [at(1), at(2)]
    assert steps(saved) == [1, 2]
    found, _ = CheckpointStore(saved, attempt=4).begin()
    assert found is not None
    assert found.checkpoint == str(at(2))
    rewind(saved, 5, at(5, 2))
    assert CheckpointStore(saved).ids() == [at(1), at(2), at(3), at(4, 2), at(5, 2)]
    assert steps(saved) == [1, 2, 3, 4, 5]
    found, _ = CheckpointStore(saved, attempt=6).begin()
    assert found is not None
    assert found.checkpoint == str(at(5, 2))


def test_a_training_keeps_what_was_set_aside_and_a_user_prunes_it(saved: Storage) -> None:
    rewind(saved, 3, at(2))
    store = begun(saved, 4)
    store.save(sample_snapshot(3, salt=7), reason="step")
    assert store.prune(Keep(last=1)) == [str(at(1))]  # at(2) is what it resumed from
    aside = {str(at(3)), str(at(4, 2)), str(at(5, 2)), str(at(6, 2))}
    assert aside <= set(store.orphans())
    begun(saved, 5)
    assert set(CheckpointStore(saved).prune(Keep(last=1))) >= aside


def test_late_commits_of_dead_attempts_are_not_set_aside(saved: Storage) -> None:
    zombie = CheckpointStore(saved, attempt=3)
    zombie.begin()
    rewind(saved, 4, at(2))
    zombie.save(sample_snapshot(9), reason="step")  # nobody fences it here
    store = begun(saved, 5)
    assert store.ids() == [at(1), at(2)]
    store.save(sample_snapshot(3, salt=7), reason="step")
    assert store.ids() == [at(1), at(2), at(3, 5)]


def test_nothing_changes_if_the_checkpoint_is_not_good(saved: Storage) -> None:
    with pytest.raises(NoCheckpoint):
        rewind(saved, 3, at(8))
    saved.replace(layout.manifest(at(2)), b"damaged")
    with pytest.raises(CheckpointDamaged):
        rewind(saved, 3, at(2))
    assert not saved.exists(layout.origin(3))


def test_an_attempt_that_has_begun_or_is_superseded_cannot_rewind(saved: Storage) -> None:
    with pytest.raises(Superseded):
        rewind(saved, 2, at(2))
    rewind(saved, 4, at(2))
    with pytest.raises(Superseded):
        rewind(saved, 3, at(1))
