"""Bugs to plant in the protocol; the simulation must find them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from outlast.job import takeover
from outlast.job.journal import Journal
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import Lineage, Origin
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store import files, outcome, pruning
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

Patch = tuple[Any, str, Any]
BUGS: dict[str, Callable[[], list[Patch]]] = {}


def bug(plant: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
    BUGS[plant.__name__] = plant
    return plant


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the product do it wrong."""
    with ExitStack() as patches:
        for target, attribute, value in BUGS[name]():
            patches.enter_context(mock.patch.object(target, attribute, value))
        yield


@bug
def files_are_deleted_before_the_manifest() -> list[Patch]:
    def delete(self: CheckpointStore, checkpoint: CheckpointId) -> None:
        for name in self.storage.list(layout.checkpoint_dir(checkpoint)):
            if name != layout.MANIFEST_FILE:
                self.storage.delete(layout.checkpoint_file(checkpoint, name))
        self._manifests.pop(checkpoint, None)
        self._saved.pop(checkpoint, None)
        self.storage.delete(layout.manifest(checkpoint))

    return [(CheckpointStore, "delete", delete)]


@bug
def the_manifest_is_written_before_the_last_file() -> list[Patch]:
    write = files.write

    def half(storage: Any, checkpoint: Any, snapshot: Any, *args: Any, **kwargs: Any) -> Any:
        written = write(storage, checkpoint, snapshot, *args, **kwargs)
        storage.delete(layout.checkpoint_file(checkpoint, written.entries[-1].name))
        return written

    return [(files, "write", half)]


@bug
def nobody_asks_the_fence() -> list[Patch]:
    return [(Journal, "fence", lambda self, attempt: None)]


@bug
def origins_bound_nothing() -> list[Patch]:
    return [(Lineage, "accepts", lambda self, checkpoint: checkpoint.attempt in self._bounds)]


@bug
def all_attempts_count() -> list[Patch]:
    def of(cls: type[Lineage], origins: Any, unknown: Any = ()) -> Lineage:
        return cls([Origin(attempt=one.attempt) for one in sorted(origins, key=_number)[::-1]])

    return [(Lineage, "of", classmethod(of))]


def _number(origin: Origin) -> int:
    return origin.attempt


@bug
def the_history_is_not_synced_before_the_commit() -> list[Patch]:
    return [(HistoryWriter, "sync", lambda self, mark=None: None)]


@bug
def a_lost_answer_is_taken_for_a_failure() -> list[Patch]:
    def confirm_created(storage: Storage, path: str, data: bytes, error: StorageError) -> None:
        raise error

    def discard(self: CheckpointStore, checkpoint: CheckpointId) -> None:
        self._unknown.pop(checkpoint, None)
        self.storage.delete_tree(layout.checkpoint_dir(checkpoint))

    return [(outcome, "confirm_created", confirm_created), (CheckpointStore, "_discard", discard)]


@bug
def an_event_is_written_over() -> list[Patch]:
    attempt = Journal._try

    def careless(self: Journal, event: Any) -> Any:
        storage = self._storage

        class Overwriting:
            def __getattr__(self, name: str) -> Any:
                return getattr(storage, name)

            def create(self, path: str, data: bytes) -> None:
                storage.replace(path, data)

        self._storage = Overwriting()  # type: ignore[assignment]
        try:
            return attempt(self, event)
        finally:
            self._storage = storage

    return [(Journal, "_try", careless)]


@bug
def an_attempt_begins_without_a_look_at_the_files() -> list[Patch]:
    begin = CheckpointStore.begin
    return [(CheckpointStore, "begin", lambda self, **_: begin(self, verify=False))]


@bug
def an_owner_is_written_off_at_once() -> list[Patch]:
    return [
        (takeover._Watch, "given_up", lambda self: True),
        (takeover._Watch, "is_running", lambda self: False),
    ]


@bug
def pruning_keeps_what_it_likes() -> list[Patch]:
    return [(pruning, "needed", lambda reader, ids, line, writing: set())]


@bug
def orphans_of_living_attempts_are_pruned() -> list[Patch]:
    return [(pruning, "is_abandoned", lambda reader, orphan, line, writing: True)]


@bug
def rows_of_steps_that_were_repeated_count() -> list[Patch]:
    def parts(self: Lineage) -> list[tuple[int, int | None]]:
        return [(attempt, None) for attempt in reversed(self._marks)]

    return [(Lineage, "history_parts", parts)]
