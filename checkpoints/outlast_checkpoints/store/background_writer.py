"""The background writer: commits one snapshot at a time and frees it when it is written."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

from outlast_checkpoints.errors import OutlastError, StorageFull
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool_sender import Sender


class Writer:
    """Commits snapshots on a background thread. The next call raises the error of the last write.

    Example:

        writer = Writer(store, keep=Keep(last=3))
        writer.submit(snapshot, "step")
        writer.close()

    Args:
        store: Where to commit. `begin` must have been called.
        history_sync: Makes the history durable up to a mark; called before each commit with a
            mark. Default None: no history.
        keep: Retention rules, applied after each commit. Default None: prune nothing.
        on_event: Called on the writing thread with "saved", "save_failed", "pruned" or
            "prune_failed" and a dict of details. It must not raise. Default None.
        sender: Sends committed checkpoints on, if `store` is a spool. It then prunes and reports
            in place of the writer. Default None.
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
        """Whether a write is in progress, or its checkpoint is just being sent."""
        return self._writing or (self._sender is not None and self._sender.busy)

    @property
    def _writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def last(self) -> Manifest | None:
        """The manifest of the newest committed checkpoint, or None before the first."""
        return self._last

    def submit(
        self,
        snapshot: Snapshot,
        reason: str,
        history_mark: HistoryMark | None = None,
        *,
        held_ms: float = 0.0,
    ) -> None:
        """Start writing a snapshot. Waits while another one is being written.

        Args:
            snapshot: The state to save.
            reason: Why, as in `CheckpointStore.save`.
            history_mark: The history rows that belong to it. Default None: no history.
            held_ms: How long the training was held for the snapshot, in milliseconds. It is only
                recorded. Default 0.

        Raises:
            OutlastError: The previous write failed. `snapshot` was not accepted; submit it again.
        """
        self.wait()
        self._raise_error()
        waiting = [(snapshot, reason, history_mark, held_ms)]
        # One thread per write: an idle thread would keep the interpreter alive, and a thread that
        # is writing at interpreter exit is waited for.
        thread = threading.Thread(
            target=self._write, args=(waiting,), name="outlast-writer", daemon=False
        )
        thread.start()
        self._thread = thread

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no write is in progress.

        Args:
            timeout: At most so many seconds. Default None: no limit.

        Returns:
            Whether no write is in progress.
        """
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return not self._writing

    def take_error(self) -> BaseException | None:
        """Return the error of the last write or of the sender, if any, and clear it."""
        error, self._error = self._error, None
        if error is None and self._sender is not None:
            error = self._sender.take_error()
        return error

    def close(self) -> None:
        """Wait for the write in progress.

        Raises:
            OutlastError: It failed.
        """
        self.wait()
        self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        error = self.take_error()
        if error is not None:
            raise error

    def _write(self, waiting: list[tuple[Snapshot, str, HistoryMark | None, float]]) -> None:
        _run_as_batch()
        try:
            manifest, seconds = self._save(waiting)
            before, self._last = self._last, manifest
            if self._sender is not None:
                if manifest is not before:
                    self._sender.offer(manifest, seconds)
                return
        except BaseException as error:  # noqa: BLE001  (raised at the next call)
            _release(error)
            self._error = error
            self._report("save_failed", error=error)
            return
        self._report(
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
        if snapshot.release_written and self._is_short_of_space(snapshot):
            snapshot = replace(snapshot, release_written=False)
        start = time.monotonic()
        if self._sender is not None and self._last is not None and _same(self._last, snapshot):
            return self._last, 0.0  # it may have been sent and deleted here since
        if mark is not None and self._history_sync is not None:
            self._history_sync(mark)
        try:
            with self._sender.expecting() if self._sender else nullcontext():
                manifest = self._store.save(snapshot, reason=reason, history=mark, held_ms=held_ms)
        except StorageFull:
            # Remains of crashed attempts may be all that fills the disk.
            made_room = self._sender.make_room() if self._sender else self._prune()
            if not made_room or snapshot.release_written:
                raise
            manifest = self._store.save(snapshot, reason=reason, history=mark, held_ms=held_ms)
        return manifest, time.monotonic() - start

    def _is_short_of_space(self, snapshot: Snapshot) -> bool:
        """Return whether the disk may become full, so that a second try may need the arrays."""
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
            # Too many checkpoints do no harm; the next commit tries again.
            self._report("prune_failed", error=error)
            return []
        if pruned:
            self._report("pruned", checkpoints=pruned)
        return pruned

    def _report(self, event: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event(event, fields)


def _run_as_batch() -> None:
    """Run this thread as SCHED_BATCH, so that I/O wake-ups do not preempt compute threads."""
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _same(made: Manifest, snapshot: Snapshot) -> bool:
    """Return whether a snapshot was taken at the checkpoint's place."""
    one, other = made.progress, snapshot.progress
    return (one.phase, one.step, one.stage) == (other.phase, other.step, other.stage)


def _release(error: BaseException) -> None:
    """Release the arrays that the frames of a traceback hold. The traceback stays."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        at = waiting.pop()
        if at is not None and id(at) not in seen:
            seen.add(id(at))
            traceback.clear_frames(at.__traceback__)
            waiting += [at.__cause__, at.__context__]
