"""The heartbeat of an attempt: one small object, overwritten every few seconds."""

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
from outlast.job.rollback import Fault
from outlast_checkpoints.errors import FormatError, NotFound, OutlastError, Superseded
from outlast_checkpoints.format import layout, typed_json
from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

LAST_BEAT_TIMEOUT: Final = 10.0  # seconds to wait for the last beat


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """One heartbeat: what an attempt reports about itself."""

    attempt: int
    """Number of the attempt, from 1."""
    count: int = 0
    """Number of heartbeats so far."""
    pid: int = 0
    """Process id of the attempt."""
    host: str = ""
    """Host name of its machine."""
    boot_id: str = ""
    """Boot of that machine, and pid namespace."""
    process_start: int | None = None
    """Start of the process in clock ticks since boot; None if unknown."""
    activity: str = "starting"
    """What the attempt does now: "starting", "importing", "training", "saving", …"""
    phase: int | None = None
    """Index of the phase, from 0; None before the first phase."""
    phase_name: str | None = None
    """Name of the phase, if the script gave one."""
    step: int = 0
    """Steps done in the phase."""
    epoch: int = 0
    """Epochs done in the phase."""
    epochs: int | None = None
    """Epochs of the whole phase; None if unknown."""
    batch: int = 0
    """Batches done in the epoch."""
    steps_per_epoch: int | None = None
    """Steps of one epoch; None if unknown."""
    total_steps: int | None = None
    """Steps of the whole phase; None if unknown."""
    logs: dict[str, float | None] = {}
    """Newest metrics; None where a value is not finite."""
    steps_per_second: float | None = None
    """Speed over the last seconds of wall-clock time, including callbacks and saves."""
    last_checkpoint: str | None = None
    """Id of the newest committed checkpoint."""
    last_checkpoint_at_step: int | None = None
    """Step of that checkpoint."""
    restored_from: str | None = None
    """Id of the checkpoint that the attempt resumed from."""
    progress: int = 0
    """Grows with every sign of progress, such as a step or a save."""
    steps_done: int = 0
    """Steps done by this attempt."""
    saves: int = 0
    """Saves begun by this attempt."""
    saves_postponed: int = 0
    """Saves that were due while an earlier one was being written."""
    script_sha256: str | None = None
    """SHA-256 of the script that this attempt runs; None if unknown."""
    machine_changed: str | None = None
    """What differs from the machine of the job's first attempt; None if nothing."""
    away_since: float | None = None
    """Since when the job's storage cannot be reached, in unix seconds; None while it can."""
    spooled: int = 0
    """Checkpoints that wait on this machine to be sent."""
    spooled_bytes: int = 0
    """Size of these checkpoints in bytes."""
    spool: str | None = None
    """Folder of these checkpoints."""
    spent: dict[str, float] = {}
    """Seconds spent on each activity."""
    ended: int | None = None
    """Exit code, once it is known."""
    error: str | None = None
    """Error that ended the attempt."""
    exception: str | None = None
    """Class and place of the exception that ended the attempt; None if a retry may help."""
    fault: Fault | None = None
    """The step whose loss ended the attempt; None without one."""
    at: float = 0.0
    """Time of the heartbeat in unix seconds by the writer's clock; for people only."""

    @property
    def process(self) -> process_identity.Identity:
        """The process of the attempt."""
        return process_identity.Identity(
            host=self.host, pid=self.pid, boot_id=self.boot_id, start=self.process_start
        )

    def reached(self) -> Reached:
        """Return how far the attempt has come."""
        return Reached(**{name: getattr(self, name) for name in Reached.__struct_fields__})


class Status:
    """The current values of the next `Beat`. The training sets them; the heartbeat reads them.

    Each attribute is set atomically, so that another thread sees the old or the new value.
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
        self.steps_done = 0
        self.saves = 0
        self.saves_postponed = 0
        self.script_sha256: str | None = None
        self.machine_changed: str | None = None
        self.away_since: float | None = None
        self.spooled = 0
        self.spooled_bytes = 0
        self.spool: str | None = None
        self.ended: int | None = None
        self.error: str | None = None
        self.exception: str | None = None
        self.fault: Fault | None = None

    @property
    def activity(self) -> str:
        """What the attempt does now, for people. Setting it ends the previous activity."""
        return self._activity

    @activity.setter
    def activity(self, activity: str) -> None:
        if activity != self._activity:
            self._spent = self.spent
            self._since = time.monotonic()
            self._activity = activity

    @property
    def spent(self) -> dict[str, float]:
        """Seconds spent on each activity so far, including the current one."""
        now = self._spent.get(self._activity, 0.0) + time.monotonic() - self._since
        return {**self._spent, self._activity: now}

    def move(self, seconds: float, activity: str) -> None:
        """Count `seconds` of the current activity as those of another activity."""
        spent = self.spent
        spent[self._activity] -= seconds
        spent[activity] = spent.get(activity, 0.0) + seconds
        self._spent, self._since = spent, time.monotonic()

    def tick(self) -> None:
        """Report progress, which restarts the stall timeout."""
        self.progress += 1

    def beat(self, attempt: int, count: int, who: process_identity.Identity) -> Beat:
        """Return the current values as a heartbeat."""
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        values["activity"] = self.activity
        values["spent"] = {name: round(seconds, 3) for name, seconds in self.spent.items()}
        # JSON has no NaN; null means "not finite".
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
    """Writes heartbeats from a background thread.

    A heartbeat that cannot be written is skipped, or written to `aside`.

    Args:
        storage: Storage of the job.
        attempt: Number of the attempt.
        status: Source of the values.
        every: Seconds between two heartbeats.
        on_superseded: Called once when the fence raises; no heartbeat follows.
        fence: Called before each heartbeat; raises `Superseded` when a newer attempt exists.
        on_beat: Called on the thread after each heartbeat, and at least every second.
        aside: Storage for heartbeats that `storage` does not accept.
        rank: Rank of this process in the attempt; the attempt's heartbeat is that of rank 0.
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
        """Write the first heartbeat now, and start the thread."""
        self._write()
        self._thread = threading.Thread(target=self._run, name="outlast-heartbeat", daemon=True)
        self._thread.start()

    def stop(self, exit_code: int | None = None) -> None:
        """End the thread. With an exit code, write a last heartbeat that has it.

        It waits at most ten seconds for a storage that does not answer.
        """
        if exit_code is not None:
            self._status.ended = exit_code
        self._stop.set()
        if self._thread is None:
            self._write_last()
            return
        self._thread.join(LAST_BEAT_TIMEOUT)
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
        # Do not retry on a storage that is away, so that the end is not delayed.
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
        except OutlastError as error:  # the storage is away, so nothing is known
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
    """Return the newest heartbeat of an attempt; None when there is no readable one."""
    try:
        data = read_document(storage, layout.heartbeat(attempt), often=True)
        return typed_json.decode(data, Beat)
    except (NotFound, FormatError, *UNREADABLE):
        return None


class Unchanged(NamedTuple):
    """How long an observer has seen nothing new of an attempt."""

    beat: float
    """Seconds without a new heartbeat."""
    progress: float
    """Seconds without progress."""


class Watch:
    """Measures how long an attempt has been silent, by the observer's monotonic clock.

    Clocks of two machines are never compared; only changes of the heartbeat count.
    """

    def __init__(self, now: float) -> None:
        self._count: tuple[int, int] | None = None
        self._progress: tuple[int, int] | None = None
        self._beat_at = now
        self._progress_at = now
        self._looked_at = now

    def unseen(self, now: float) -> None:
        """Do not count the time since the last look, because nothing could be seen."""
        passed, self._looked_at = now - self._looked_at, now
        self._beat_at += passed
        self._progress_at += passed

    def observe(self, beat: Beat | None, now: float) -> Unchanged:
        """Take the newest heartbeat, seen at `now` (monotonic seconds)."""
        self._looked_at = now
        if beat is not None:
            if (beat.attempt, beat.count) != self._count:
                self._count = (beat.attempt, beat.count)
                self._beat_at = now
            if (beat.attempt, beat.progress) != self._progress:
                self._progress = (beat.attempt, beat.progress)
                self._progress_at = now
        return Unchanged(now - self._beat_at, now - self._progress_at)
