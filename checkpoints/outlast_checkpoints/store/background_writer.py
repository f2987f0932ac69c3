"""Writes snapshots in the background: at most one at a time, freed as soon as it is written."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from outlast_checkpoints.errors import OutlastError, StorageFull
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool_sender import Sender


class Writer:
    """Commits snapshots on a thread of its own; the error of one comes out at the next call.

    history_sync: makes the history durable up to a mark; called before each commit.
    keep: what to prune to after each commit; None: prune nothing.
    on_event: told "saved", "save_failed", "pruned" and "prune_failed" on the writing thread,
    with what there is to say about it. It must not raise.
    sender: takes over what was committed, where the store is only a spool; it prunes, and tells.
    """

    def __init__(
        self,
        store: CheckpointStore,
        history_sync: Callable[[HistoryMark], None] | None = None,
        keep: Keep | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        sender: Sender | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._history_sync = history_sync
        self._keep = keep
        self._on_event = on_event
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last: Manifest | None = None

    @property
    def busy(self) -> bool:
        """Whether a write is in flight, or what was written is just being sent."""
        return self._writing or (self._sender is not None and self._sender.busy)

    @property
    def _writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def last(self) -> Manifest | None:
        """The newest checkpoint that was committed."""
        return self._last

    def submit(
        self,
        snapshot: Snapshot,
        reason: str,
        history_mark: HistoryMark | None = None,
        *,
        held_ms: float = 0.0,
    ) -> None:
        """Start writing a snapshot; waits while another is in flight, and raises its error.

        When it raises, the snapshot given was not taken. held_ms: noted in the manifest.
        """
        self.wait()
        self._raise_error()
        waiting = [(snapshot, reason, history_mark, held_ms)]
        # A thread for each write: none lives on to keep the interpreter from ending, and one
        # that is writing when it ends is waited for.
        thread = threading.Thread(
            target=self._write, args=(waiting,), name="outlast-writer", daemon=False
        )
        thread.start()
        self._thread = thread

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no write is in flight, at most `timeout` seconds; return whether it is so."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return not self._writing

    def take_error(self) -> BaseException | None:
        """Return the error of a write or of the sending that has ended, and forget it."""
        error, self._error = self._error, None
        if error is None and self._sender is not None:
            error = self._sender.take_error()
        return error

    def close(self) -> None:
        """Wait for the write in flight and raise its error."""
        self.wait()
        self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        error = self.take_error()
        if error is not None:
            raise error

    def _write(self, waiting: list[tuple[Snapshot, str, HistoryMark | None, float]]) -> None:
        _give_way()
        try:
            manifest, seconds = self._save(waiting)
            before, self._last = self._last, manifest
            if self._sender is not None:
                if manifest is not before:
                    self._sender.offer(manifest, seconds)
                return
        except BaseException as error:  # noqa: BLE001  (comes out at the next call)
            _release(error)
            self._error = error
            self._tell("save_failed", error=error)
            return
        self._tell(
            "saved",
            checkpoint=manifest.checkpoint,
            reason=manifest.reason,
            size=manifest.size,
            seconds=seconds,
        )
        self._prune()

    def _save(
        self, waiting: list[tuple[Snapshot, str, HistoryMark | None, float]]
    ) -> tuple[Manifest, float]:
        snapshot, reason, mark, held_ms = waiting.pop()
        if snapshot.let_go and self._is_short_of_space(snapshot):
            snapshot = replace(snapshot, let_go=False)
        start = time.monotonic()
        if self._sender is not None and self._last is not None and _same(self._last, snapshot):
            return self._last, 0.0  # it may have been sent since, and is not to be found here
        if mark is not None and self._history_sync is not None:
            self._history_sync(mark)
        try:
            manifest = self._store.save(snapshot, reason=reason, history=mark, held_ms=held_ms)
        except StorageFull:
            # What crashed attempts left behind may be all that is in the way.
            made_room = self._sender.make_room() if self._sender else self._prune()
            if not made_room or snapshot.let_go:
                raise
            manifest = self._store.save(snapshot, reason=reason, history=mark, held_ms=held_ms)
        return manifest, time.monotonic() - start

    def _is_short_of_space(self, snapshot: Snapshot) -> bool:
        """Whether the disk may be full before it is written: then a second try needs its arrays."""
        folder = self._store.storage.local_path("")
        try:
            return folder is not None and shutil.disk_usage(folder).free < 2 * snapshot.size
        except OSError:
            return True

    def _prune(self) -> list[str]:
        if self._keep is None:
            return []
        try:
            pruned = self._store.prune(self._keep)
        except OutlastError as error:
            # What is too many does no harm; the next commit tries again.
            self._tell("prune_failed", error=error)
            return []
        if pruned:
            self._tell("pruned", checkpoints=pruned)
        return pruned

    def _tell(self, event: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event(event, fields)


def _give_way() -> None:
    """Let this thread, each time that the disk answers it, not take the processor from a thread
    that computes: it waits its turn, and its share of the processors stays the same."""
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _same(made: Manifest, snapshot: Snapshot) -> bool:
    """Whether a snapshot is of the very place that a checkpoint is of."""
    one, other = made.progress, snapshot.progress
    return (one.phase, one.step, one.stage) == (other.phase, other.step, other.stage)


def _release(error: BaseException) -> None:
    """Let go of the arrays that the frames of a traceback hold; the traceback itself stays."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        at = waiting.pop()
        if at is not None and id(at) not in seen:
            seen.add(id(at))
            traceback.clear_frames(at.__traceback__)
            waiting += [at.__cause__, at.__context__]
