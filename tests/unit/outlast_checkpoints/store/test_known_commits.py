"""A listing that hides checkpoints, and checkpoints that are gone, never make a job start over."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from outlast.job.events import Claimed, Ended, Reached, Submitted
from outlast.job.heartbeat import Status
from outlast.job.journal import Journal
from outlast.job.known_commits import known_commits
from outlast.job.outcome import Outcome
from outlast.job.process_identity import here
from outlast_checkpoints.errors import CheckpointsMissing
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.known_commits import KnownCommit
from outlast_checkpoints.testing import sample_snapshot
from tests.support.checkpoints import at, begun


class Hiding:
    """A storage whose listings of some folders leave out names."""

    def __init__(self, inner: Storage, hidden: tuple[str, ...]) -> None:
        self._inner = inner
        self._hidden = hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list(self, folder: str) -> list[str]:
        shown = self._inner.list(folder)
        return [name for name in shown if not f"{folder}/{name}".startswith(self._hidden)]


def known(*steps: int, attempt: int = 1, certain: bool = True) -> list[KnownCommit]:
    return [KnownCommit(at(step, attempt), certain) for step in steps]


def test_an_empty_listing_is_not_a_reason_to_start_over(storage: Storage) -> None:
    begun(storage).save(sample_snapshot(1), reason="step")
    blind = Hiding(storage, ("",))
    with pytest.raises(CheckpointsMissing, match="is there, but is not listed") as caught:
        CheckpointStore(blind, attempt=2).begin(known=known(1, certain=False))  # type: ignore[arg-type]
    assert str(at(1)) in str(caught.value)
    assert caught.value.exit_code == 65
    assert not storage.exists(layout.origin(2))
    found, _ = CheckpointStore(storage, attempt=2).begin(known=known(1))
    assert found is not None


def test_a_listing_without_the_newest_checkpoint_is_noticed(storage: Storage) -> None:
    store = begun(storage)
    for step in (1, 2):
        store.save(sample_snapshot(step), reason="step")
    stale = Hiding(storage, (f"checkpoints/{at(2)}",))
    with pytest.raises(CheckpointsMissing, match=str(at(2))):
        CheckpointStore(stale, attempt=2).begin(known=known(2))  # type: ignore[arg-type]


def test_missing_checkpoints_are_reported(storage: Storage) -> None:
    store = begun(storage)
    for step in (1, 2):
        store.save(sample_snapshot(step), reason="step")
    storage.delete_tree(layout.checkpoint_dir(at(2)))
    found, _ = CheckpointStore(storage, attempt=2).begin(known=known(2))
    assert found is not None, "an older one is there"
    assert found.id == at(1)  # from which attempt 2 resumes
    storage.delete_tree(layout.CHECKPOINTS)
    with pytest.raises(CheckpointsMissing, match="earlier attempts committed"):
        CheckpointStore(storage, attempt=3).begin(known=known(2))


def test_checkpoints_in_a_spool_elsewhere_do_not_stop_an_attempt(storage: Storage) -> None:
    begun(storage)
    with pytest.raises(CheckpointsMissing, match="earlier attempts committed"):
        CheckpointStore(storage, attempt=2).begin(known=known(2))
    assert CheckpointStore(storage, attempt=2).begin(known=known(2, certain=False)) == (None, [])


def test_late_commits_of_a_superseded_attempt_are_not_missed(storage: Storage) -> None:
    late = begun(storage)
    begun(storage, 2)
    late.save(sample_snapshot(1), reason="step")
    assert CheckpointStore(storage, attempt=3).begin(known=known(1)) == (None, [])


@pytest.mark.parametrize(("spooled", "sent"), [(0, True), (2, False), (None, False)])
def test_the_journal_tells_what_attempts_committed(
    storage: Storage, spooled: int | None, sent: bool
) -> None:
    journal = Journal(storage)
    journal.append(Submitted())
    reached = Reached(last_checkpoint=str(at(9, 2)))
    ends = [
        Ended(attempt=1, outcome=Outcome.PREEMPTED, checkpoint=str(at(7))),
        Ended(attempt=2, outcome=Outcome.PREEMPTED, checkpoint=str(at(8, 2)), reached=reached),
        Ended(attempt=3, outcome=Outcome.CRASHED),
    ]
    for end in ends:
        journal.append(Claimed(attempt=end.attempt, owner=here()))
        journal.append(end)
    if spooled is not None:
        beat = Status().beat(2, 1, here())
        data = msgspec.json.encode(msgspec.structs.replace(beat, spooled=spooled))
        storage.replace(layout.heartbeat(2), data)
    local = storage.local_path("") is not None
    assert known_commits(storage, journal.read()) == [
        KnownCommit(at(7), local),
        KnownCommit(at(8, 2), local or sent),
        KnownCommit(at(9, 2), local or sent),
    ]
