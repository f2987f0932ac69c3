"""Sends checkpoints from the spool to the job's storage, and retries while it is unreachable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from outlast_checkpoints.errors import FormatError, NotFound, OutlastError, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import HistoryMark, Manifest
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import SegmentWriter
from outlast_checkpoints.storage.private_rng import rng
from outlast_checkpoints.storage.retry_budget import BRIEF, patience
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool

PATIENCE: Final = 10.0  # seconds for which saves wait for a checkpoint that is being sent
PAUSES: Final = (1.0, 30.0)  # seconds between two tries: the first pause, the longest
_PIECE: Final = 16 << 20  # bytes of history rows per segment


@dataclass(frozen=True, slots=True)
class Backlog:
    """The checkpoints that wait in the spool.

    count: how many. size: their bytes. path: the spool's folder. away_since: since when the store
    has been unreachable, in Unix seconds, or None if it is reachable. reason: why.
    """

    count: int
    size: int
    path: str
    away_since: float | None
    reason: str


class Sender:
    """Sends the checkpoints of one attempt on a background thread.

    The end of a phase is sent first, then the newest checkpoint, then older ones. The history rows
    that belong to a checkpoint are sent before it. Sent checkpoints are deleted from the spool.

    store: the target; it has begun, or may adopt what `attempt` left. keep: retention rules for the
    target and the spool. on_event: called on either thread with an event and its fields: "saved"
    for a checkpoint sent at once; "spooled" and later "sent" for one that had to wait; "store_lost"
    and "store_recovered"; "spool_trimmed" and "spool_lost" for checkpoints that will never be sent;
    "pruned" and "prune_failed". It must not raise. pauses: seconds between two tries, first and
    longest.
    """

    def __init__(
        self,
        spool: Spool,
        store: CheckpointStore,
        attempt: int,
        *,
        keep: Keep | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        pauses: tuple[float, float] = PAUSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spool = spool
        self._store = store
        self._attempt = attempt
        self._keep = keep
        self._on_event = on_event
        self._pauses = pauses
        self._clock = clock
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._error: BaseException | None = None
        self._current: CheckpointId | None = None
        self._began = 0.0
        self._fresh: dict[CheckpointId, tuple[Manifest, float]] = {}  # not reported yet
        self._away: tuple[float, float] | None = None  # since when: Unix seconds, and by the clock
        self._reason = ""
        self._tries = 0
        self._try_at = 0.0
        self._hurry = False
        self._rows = SegmentWriter(store.storage, attempt)
        self._looked = False

    @property
    def busy(self) -> bool:
        """Whether the next save should wait, because a checkpoint has just started being sent."""
        with self._changed:
            sending = self._current is not None or bool(self._fresh)
            return sending and self._away is None and self._clock() - self._began < PATIENCE

    def backlog(self) -> Backlog:
        """Return the checkpoints that wait now."""
        with self._changed:
            found = self.spool.waiting(self._attempt)
            since = None if self._away is None else self._away[0]
            return Backlog(len(found), self.spool.size(found), self.spool.path, since, self._reason)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Send the files of the checkpoint that is saved inside the `with` while it is written.

        That is done where nothing else is being sent and the store is not away. `offer` the
        checkpoint afterwards.
        """
        with self._changed:
            free = not (self._current or self._fresh or self._away or self._closing)
            self._store.early.allow(free and self._next() is None)
        try:
            yield
        except BaseException:
            self._store.early.cancel()
            raise

    def offer(self, made: Manifest, seconds: float) -> None:
        """Queue a checkpoint that took `seconds` to commit to the spool."""
        with self._changed:
            self._fresh[made.id] = made, seconds
            waits = self._current is not None or self._away is not None
            if not waits:
                self._began = self._clock()
            trimmed: list[CheckpointId] = []
            with suppress(StorageError):  # too many checkpoints do no harm yet
                trimmed = self.spool.trim(self._attempt, self._keep, self._current)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="outlast-sender", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        if waits:
            self._report_spooled(made.id)
        self._report_trimmed(trimmed)

    def make_room(self) -> bool:
        """Delete every waiting checkpoint that is not needed; return whether there was any."""
        with self._changed:
            trimmed = self.spool.trim(self._attempt, self._keep, self._current, limit=0)
        self._report_trimmed(trimmed)
        return bool(trimmed)

    def settle(self, left: Callable[[], float]) -> bool:
        """Wait until everything is sent; return whether it is.

        left: returns for how many more seconds to wait for an unreachable store; called about
        every second. The store is tried at once. A transfer in progress may take longer.
        """
        with self._changed:
            self._hurry, self._try_at = True, 0.0
            self._changed.notify_all()
        try:
            while True:
                seconds = left()
                with self._changed:
                    if self._closing or not self._next():
                        return not self._closing
                    if seconds <= 0 and (self._current is None or self._away is not None):
                        return False
                    self._changed.wait(min(1.0, seconds) if seconds > 0 else 1.0)
        finally:
            self._hurry = False

    def send_all(self) -> list[CheckpointId]:
        """Send everything on this thread; return what was sent. Errors are raised."""
        sent = []
        while (checkpoint := self._next()) is not None:
            made = self._look(checkpoint)
            if made is not None:
                self._send(made)
                sent.append(checkpoint)
        return sent

    def take_error(self) -> BaseException | None:
        """Return the error that ended the thread, if any, and clear it."""
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """End the thread. Unsent checkpoints stay in the spool."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._pauses[0])

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    checkpoint = self._take()
                    if checkpoint is not None:
                        self._try(checkpoint)
                except StorageError as error:  # from the spool's disk
                    self._went_away(error)
        except BaseException as error:  # noqa: BLE001  (raised at the next save)
            with self._changed:
                self._error, self._closing, self._current = error, True, None
                self._changed.notify_all()
            self._report("save_failed", error=error)

    def _take(self) -> CheckpointId | None:
        """Wait until the next checkpoint is due and return it; None at the end."""
        with self._changed:
            self._current = None
            self._changed.notify_all()
            while not self._closing:
                pause = 0.0 if self._away is None else self._try_at - self._clock()
                if pause > 0:
                    self._changed.wait(pause)
                elif (found := self._next()) is not None:
                    self._current, self._began = found, self._clock()
                    return found
                else:
                    self._changed.wait()
            return None

    def _next(self) -> CheckpointId | None:
        found = self.spool.waiting(self._attempt)
        ends = (one for one in found if one.stage == Stage.END)
        return next(ends, found[-1] if found else None)

    def _try(self, checkpoint: CheckpointId) -> None:
        made = self._look(checkpoint)
        if made is None:
            return
        try:
            with patience(BRIEF):  # it is retried in any case
                self._send(made)
        except StorageError as error:
            self._looked = False  # rows may have arrived although the answer was lost
            self._went_away(error)
            self._report_spooled(checkpoint)
            return
        self._came_back()
        with self._changed:
            fresh = self._fresh.pop(checkpoint, None)
        seconds = self._clock() - self._began
        self._report(
            "sent" if fresh is None else "saved",
            checkpoint=made.checkpoint,
            reason=made.reason,
            size=made.size,
            seconds=seconds if fresh is None else seconds + fresh[1],
        )
        self._prune()

    def _look(self, checkpoint: CheckpointId) -> Manifest | None:
        """Return the manifest if the checkpoint is complete in the spool; otherwise drop it."""
        try:
            made = self.spool.manifest(checkpoint)
            for entry in made.files:
                path = layout.checkpoint_file(checkpoint, entry.name)
                if self.spool.storage.size(path) != entry.size:
                    raise FormatError(path=path, reason=f"its size is no longer {entry.size} bytes")
            if made.history is not None and made.history.mark:
                path = layout.history(made.history.attempt)
                if self.spool.storage.size(path) < made.history.mark:
                    raise FormatError(path=path, reason=f"it ends before byte {made.history.mark}")
        except (NotFound, FormatError) as error:
            with suppress(StorageError):
                self.spool.drop(checkpoint)
            with self._changed:
                self._fresh.pop(checkpoint, None)
            self._report("spool_lost", checkpoint=str(checkpoint), error=error)
            return None
        return made

    def _send(self, made: Manifest) -> None:
        if made.history is not None:
            self._send_rows(made.history)
        self._store.adopt(made, self.spool.storage)
        self.spool.drop(made.id)

    def _send_rows(self, mark: HistoryMark) -> None:
        """Make the history rows up to a mark durable on the store, each byte once."""
        if not self._looked:
            self._rows.look()
            self._looked = True
        path = layout.history(mark.attempt)
        while self._rows.size < mark.mark:
            end = min(mark.mark, self._rows.size + _PIECE)
            self._rows.write(self.spool.storage.read_range(path, self._rows.size, end))

    def _went_away(self, error: StorageError) -> None:
        with self._changed:
            first = self._away is None
            if self._away is None:
                self._away = time.time(), self._clock()
                self._tries = 0
            self._reason = str(error)
            shortest, longest = self._pauses
            pause = shortest if self._hurry else min(longest, shortest * 2.0**self._tries)
            self._tries = min(self._tries + 1, 32)
            self._try_at = self._clock() + pause * rng.uniform(0.75, 1.25)
        if first:
            self._report(
                "store_lost",
                error=error,
                hint=f"training continues; checkpoints wait in {self.spool.path}",
            )

    def _came_back(self) -> None:
        with self._changed:
            away, self._away, self._reason = self._away, None, ""
        if away is not None:
            seconds = round(self._clock() - away[1], 3)
            self._report("store_recovered", away_for=seconds, waiting=self.backlog().count)

    def _prune(self) -> None:
        if self._keep is None:
            return
        try:
            with patience(BRIEF):
                pruned = self._store.prune(self._keep)
        except OutlastError as error:
            # Too many checkpoints do no harm; the next sent one tries again.
            self._report("prune_failed", error=error)
            return
        if pruned:
            self._report("pruned", checkpoints=pruned)

    def _report_spooled(self, checkpoint: CheckpointId) -> None:
        with self._changed:
            fresh = self._fresh.pop(checkpoint, None)
        if fresh is not None:
            made, seconds = fresh
            self._report(
                "spooled",
                checkpoint=made.checkpoint,
                reason=made.reason,
                size=made.size,
                seconds=seconds,
            )

    def _report_trimmed(self, trimmed: list[CheckpointId]) -> None:
        for checkpoint in trimmed:
            self._report_spooled(checkpoint)
        if trimmed:
            self._report("spool_trimmed", checkpoints=[str(one) for one in trimmed])

    def _report(self, event: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event(event, fields)
