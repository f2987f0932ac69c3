"""An attempt's sign of life: one small object, overwritten every few seconds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final, NamedTuple

import msgspec

from outlast.job import process_identity
from outlast.job.events import Reached
from outlast.job.preload import Preload
from outlast_checkpoints.errors import FormatError, NotFound, OutlastError, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.storage.base import Storage, read_document
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

PARTING: Final = 10.0  # seconds that the last beat may take


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt says of itself.

    count: beats so far. progress: grows with any sign of progress (a step, a save). activity:
    what it does, for people. step, epoch, batch: done so far in the phase. steps_per_second:
    over the last seconds. preload: what a spare for the next attempt would import. steps_done: by
    this attempt. saves: begun by it. saves_postponed: that fell due while an earlier one was being
    written, and came after it. away_since: unix seconds since when the job's storage cannot be
    reached. spooled, spooled_bytes, spool: what waits on this machine to be sent there, and where.
    spent: seconds by activity. ended: the exit code, once it is known;
    error: what it died of. at: unix seconds by the writer's clock, for people only.
    """

    attempt: int
    count: int = 0
    pid: int = 0
    host: str = ""
    boot_id: str = ""
    process_start: int | None = None
    activity: str = "starting"
    phase: int | None = None
    phase_name: str | None = None
    step: int = 0
    epoch: int = 0
    epochs: int | None = None
    batch: int = 0
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    logs: dict[str, float | None] = {}
    steps_per_second: float | None = None
    last_checkpoint: str | None = None
    last_checkpoint_at_step: int | None = None
    restored_from: str | None = None
    progress: int = 0
    preload: Preload | None = None
    steps_done: int = 0
    saves: int = 0
    saves_postponed: int = 0
    away_since: float | None = None
    spooled: int = 0
    spooled_bytes: int = 0
    spool: str | None = None
    spent: dict[str, float] = {}
    ended: int | None = None
    error: str | None = None
    at: float = 0.0

    def reached(self) -> Reached:
        """Return how far the attempt has come."""
        return Reached(**{name: getattr(self, name) for name in Reached.__struct_fields__})


class Status:
    """The beat in the making: the training sets its attributes, the heartbeat thread reads them.

    Each attribute is set in one go, so a reader on another thread sees old or new, never half.
    """

    def __init__(self) -> None:
        self._activity = "starting"
        self._since = time.monotonic()
        self._spent: dict[str, float] = {}
        self.phase: int | None = None
        self.phase_name: str | None = None
        self.step = 0
        self.epoch = 0
        self.epochs: int | None = None
        self.batch = 0
        self.steps_per_epoch: int | None = None
        self.total_steps: int | None = None
        self.logs: dict[str, float] = {}
        self.steps_per_second: float | None = None
        self.last_checkpoint: str | None = None
        self.last_checkpoint_at_step: int | None = None
        self.restored_from: str | None = None
        self.progress = 0
        self.preload: Preload | None = None
        self.steps_done = 0
        self.saves = 0
        self.saves_postponed = 0
        self.away_since: float | None = None
        self.spooled = 0
        self.spooled_bytes = 0
        self.spool: str | None = None
        self.ended: int | None = None
        self.error: str | None = None

    @property
    def activity(self) -> str:
        """What the attempt does now, for people; setting it ends what it did before."""
        return self._activity

    @activity.setter
    def activity(self, activity: str) -> None:
        if activity != self._activity:
            self._spent = self.spent
            self._since = time.monotonic()
            self._activity = activity

    @property
    def spent(self) -> dict[str, float]:
        """Seconds spent on each activity so far, the present one included."""
        now = self._spent.get(self._activity, 0.0) + time.monotonic() - self._since
        return {**self._spent, self._activity: now}

    def move(self, seconds: float, activity: str) -> None:
        """Count so many of the present activity's seconds as another's."""
        spent = self.spent
        spent[self._activity] -= seconds
        spent[activity] = spent.get(activity, 0.0) + seconds
        self._spent, self._since = spent, time.monotonic()

    def tick(self) -> None:
        """Show a sign of progress: the stall watchdog starts to count anew."""
        self.progress += 1

    def beat(self, attempt: int, count: int, who: process_identity.Identity) -> Beat:
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        values["activity"] = self.activity
        values["spent"] = {name: round(seconds, 3) for name, seconds in self.spent.items()}
        # JSON knows no NaN; null is "not a finite number"
        values["logs"] = {
            str(name): float(value) if math.isfinite(value) else None
            for name, value in dict(self.logs).items()
        }
        return Beat(
            attempt=attempt,
            count=count,
            pid=who.pid,
            host=who.host,
            boot_id=who.boot_id,
            process_start=who.start,
            at=time.time(),
            **values,
        )


class HeartbeatWriter:
    """Writes the beat of `status` every `every` seconds from a thread of its own.

    fence: called before each beat; when it raises `Superseded`, `on_superseded` is called once
    and no more beats are written. on_beat: called on the thread after each beat (every second at
    the least), for whatever else has to be done in time. A beat that cannot be written is left
    out, or goes to the storage `aside`: the next one tells the same. rank: of the attempt's
    processes; the first one's beat is the attempt's.
    """

    def __init__(
        self,
        storage: Storage,
        attempt: int,
        status: Status,
        every: float,
        on_superseded: Callable[[Superseded], None] | None = None,
        *,
        fence: Callable[[], None] | None = None,
        on_beat: Callable[[], None] | None = None,
        aside: Storage | None = None,
        rank: int = 0,
    ) -> None:
        self._storage = storage
        self._aside = aside
        self._attempt = attempt
        self._path = layout.heartbeat(attempt, rank)
        self._status = status
        self._every = every
        self._fence = fence
        self._on_superseded = on_superseded
        self._on_beat = on_beat
        self._count = 0
        self._who = process_identity.here()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_error: OutlastError | None = None
        self._failing = False

    def start(self) -> None:
        """Write the first beat, so that the start is seen at once, and go on in a thread."""
        self._write()
        self._thread = threading.Thread(target=self._run, name="outlast-heartbeat", daemon=True)
        self._thread.start()

    def stop(self, exit_code: int | None = None) -> None:
        """End the thread and, with an exit code, write the last beat that tells it.

        A storage that does not answer is waited for at most ten seconds.
        """
        if exit_code is not None:
            self._status.ended = exit_code
        self._stop.set()
        if self._thread is None:
            self._write_last()
            return
        self._thread.join(PARTING)
        self._thread = None

    def _run(self) -> None:
        silent = False
        due = time.monotonic() + self._every
        while not self._stop.wait(max(0.0, min(1.0, due - time.monotonic()))):
            if time.monotonic() >= due:
                due = time.monotonic() + self._every
                with self._patience():
                    silent = silent or self._superseded()
                if not silent:
                    self._write()
            if self._on_beat is not None:
                with self._patience():
                    self._on_beat()
        self._write_last()

    def _patience(self) -> AbstractContextManager[None]:
        # A storage that is away is asked but once, so that nothing is held up at the end.
        return patience(0.0 if self._failing else BRIEF)

    def _write_last(self) -> None:
        if self._status.ended is not None:
            self._write()

    def _superseded(self) -> bool:
        if self._fence is None:
            return False
        try:
            self._fence()
        except Superseded as error:
            if self._on_superseded is not None:
                self._on_superseded(error)
            return True
        except OutlastError as error:  # storage out of reach: not known, so not superseded
            self.last_error = error
        return False

    def _write(self) -> None:
        self._count += 1
        beat = self._status.beat(self._attempt, self._count, self._who)
        path, data = self._path, msgspec.json.encode(beat)
        try:
            with self._patience():
                self._storage.replace(path, data, durable=False)
            self._failing = False
        except OutlastError as error:
            self._failing = True
            self.last_error = error
            if self._aside is not None:
                with suppress(OutlastError):
                    self._aside.replace(path, data, durable=False)


def read(storage: Storage, attempt: int) -> Beat | None:
    """Return the newest beat of an attempt, None when there is none that can be read."""
    try:
        data = read_document(storage, layout.heartbeat(attempt), often=True)
        return msgspec.json.decode(data, type=Beat)
    except (NotFound, FormatError, *UNREADABLE):
        return None


class Unchanged(NamedTuple):
    """For how many seconds the observer has seen no new beat, and no progress."""

    beat: float
    progress: float


class Watch:
    """How long an attempt has been silent, by the observer's own monotonic clock.

    Clocks of two machines are never compared: only *changes* of what the beat says count.
    """

    def __init__(self, now: float) -> None:
        self._count: tuple[int, int] | None = None
        self._progress: tuple[int, int] | None = None
        self._beat_at = now
        self._progress_at = now
        self._looked_at = now

    def unseen(self, now: float) -> None:
        """Note that nothing could be looked at since the last time, which so counts for nothing."""
        passed, self._looked_at = now - self._looked_at, now
        self._beat_at += passed
        self._progress_at += passed

    def observe(self, beat: Beat | None, now: float) -> Unchanged:
        """Take in the newest beat seen at `now` (monotonic seconds)."""
        self._looked_at = now
        if beat is not None:
            if (beat.attempt, beat.count) != self._count:
                self._count = (beat.attempt, beat.count)
                self._beat_at = now
            if (beat.attempt, beat.progress) != self._progress:
                self._progress = (beat.attempt, beat.progress)
                self._progress_at = now
        return Unchanged(now - self._beat_at, now - self._progress_at)
