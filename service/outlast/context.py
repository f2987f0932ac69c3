"""What the training in this process belongs to: an attempt of a job.

Under `outlast run` the attempt sets the context before the script starts. A bare script
(`python train.py`) gets one from `open_bare` when it first names its `job_dir`.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from outlast_checkpoints import layout
from outlast_checkpoints.errors import (
    AlreadyExists,
    NotFound,
    OutlastError,
    StorageError,
    Superseded,
    UsageError,
)
from outlast_checkpoints.patience import BRIEF, USUAL, patience
from outlast_checkpoints.redaction import redact
from outlast_checkpoints.spool import Spool
from outlast_checkpoints.storage import Storage, open_storage
from structlog.typing import FilteringBoundLogger

from outlast import exit_codes, failures, fencing, identity, notices, preemption, succession
from outlast import spec as specs
from outlast.errors import InvalidTransition
from outlast.heartbeat import HeartbeatWriter, Status
from outlast.interval import Failures
from outlast.journal import Journal
from outlast.lifecycle import (
    Ended,
    Job,
    Launched,
    Outcome,
    Released,
    Resumed,
    Started,
    State,
    Submitted,
    judge,
)
from outlast.logs import LogFile, make_logger
from outlast.notices import Notice
from outlast.preemption import StopFlag
from outlast.rank import Rank
from outlast.spec import JobSpec

if TYPE_CHECKING:
    from outlast_checkpoints.store import Loaded

_WAIT: Final = "OUTLAST_SPOOL_WAIT"
_WAIT_AT_END: Final = 600.0


@dataclass
class AttemptContext:
    """The attempt that this process is.

    storage: the job's folder. stop: read it between two compiled calls. status: set it, the
    heartbeat tells it. log: bound to job and attempt. fence: raises `Superseded` when a newer
    attempt was claimed. supervised: under a supervisor. local_dir: the job's folder on this
    machine, None when it is elsewhere. failures: of the attempts before. before_training: called
    before the first phase; may start the script anew. spool: where checkpoints wait to be sent,
    None in a job that is on this machine. look_for_departure: returns the seconds that are left, as
    the supervisor has said; None when it has not. before_exit: called with what this process is
    about to exit with, returns what it does exit with. exit_code: the former, once it is known.
    rank: which of the attempt's processes this one is. read_ahead: returns the newest checkpoint
    where it was read while the script began, once; waits until that is done.
    """

    storage: Storage
    spec: JobSpec
    attempt: int
    stop: StopFlag
    status: Status
    log: FilteringBoundLogger
    fence: Callable[[], None]
    supervised: bool
    local_dir: Path | None
    failures: Failures = field(default_factory=Failures)
    before_training: Callable[[], None] = lambda: None
    spool: Spool | None = None
    look_for_departure: Callable[[], float | None] = lambda: None
    before_exit: Callable[[int], int] = lambda code: code
    exit_code: int | None = field(default=None)
    rank: Rank = field(default_factory=Rank)
    read_ahead: Callable[[], Loaded | None] = lambda: None

    def leave_by(self) -> float | None:
        """Return when this machine is taken, monotonic seconds; None when nobody has said so."""
        stop = self.stop
        if stop.leave_by is None and stop.requested:
            left = self.look_for_departure()
            stop.leave_by = None if left is None else time.monotonic() + left
        return stop.leave_by

    def time_left(self) -> float | None:
        """Return the seconds until this machine is taken; None when nobody has said when."""
        by = self.leave_by()
        return None if by is None else max(0.0, by - time.monotonic())

    def leave(self, code: int = exit_codes.RESUMABLE) -> NoReturn:
        """Leave the script with its state saved (75), past any `except Exception` of its own."""
        self.exit_code = code
        raise SystemExit(code)


def spool_of(storage: Storage, spec: JobSpec) -> Spool | None:
    """Return this machine's spool of a job, made; None when the job is on this machine itself."""
    spool = Spool.of(storage, f"{spec.job} {spec.created!r}")
    if spool is not None:
        spool.make()
    return spool


def wait_at_end() -> float:
    """Return the seconds that a finished training waits for a store that is away.

    They are $OUTLAST_SPOOL_WAIT (default 600). Raises `UsageError`.
    """
    given = os.environ.get(_WAIT)
    try:
        return _WAIT_AT_END if given is None else max(0.0, float(given))
    except ValueError:
        raise UsageError(
            field=_WAIT, problem=f"{given!r} is no number of seconds", hint="For example 3600."
        ) from None


_current: AttemptContext | None = None
_bare: dict[str, _Bare] = {}


def current() -> AttemptContext | None:
    """Return the attempt that this process is, None in a bare script that has opened no job."""
    return _current


def set_current(context: AttemptContext | None) -> None:
    """Make `context` what `current` returns."""
    global _current
    _current = context


def open_bare(
    job_dir: str | os.PathLike[str],
    *,
    save_every: str | int | None = None,
    keep: str | int | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> AttemptContext:
    """Return this process' attempt of the job in `job_dir`, started without `outlast run`.

    The first call makes the job when there is none, writes off a predecessor that is gone, claims
    the next attempt, starts the heartbeat and takes over SIGTERM, SIGINT, SIGUSR1 and SIGUSR2
    (the third Ctrl-C interrupts at once). Later calls with the same folder return the same
    context. What is given here goes before what the job's spec says; OUTLAST_DETERMINISTIC=0
    leaves TensorFlow's op determinism off.
    Raises `JobBusy`, `SpecInvalid`, `StorageError`.
    """
    storage = open_storage(job_dir)
    bare = _bare.get(storage.root)
    if bare is None or bare.closed:
        given: dict[str, Any] = {} if seed is None else {"seed": seed}
        for key, value in {"save_every": save_every, "keep": keep}.items():
            if value is not None:
                given[key] = str(value)
        if listen := os.environ.get("OUTLAST_PREEMPTION"):
            given["preemption"] = listen
        spec = _spec_of(storage, name, given)
        if os.environ.get("OUTLAST_DETERMINISTIC", "").lower() in ("0", "false", "no", "off"):
            spec = msgspec.structs.replace(spec, deterministic=False)
        bare = _Bare(storage, spec)
        _bare[storage.root] = bare
    return bare.context


def close_bare(context: AttemptContext, code: int = exit_codes.DONE) -> None:
    """End a bare attempt before its process ends, as a notebook does. code: as an exit code."""
    for bare in list(_bare.values()):
        if bare.context is context:
            bare.close(code)


def _spec_of(storage: Storage, name: str | None, given: dict[str, Any]) -> JobSpec:
    try:
        stored = specs.decode(storage.read(layout.SPEC))
    except NotFound:
        script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
        is_file = script is not None and script.is_file()
        folder = re.sub(r"[^A-Za-z0-9._-]+", "-", storage.root.rstrip("/").rpartition("/")[2])
        values: dict[str, Any] = {
            "job": name or folder.strip("-._")[:100] or "job",
            "script": str(script.absolute()) if script is not None and is_file else None,
            "args": sys.argv[1:] if is_file else [],
            "cwd": str(Path.cwd()),
            "created": time.time(),
        }
        stored = JobSpec(**{**values, **given})
        try:
            storage.create(layout.SPEC, specs.encode(stored))
        except AlreadyExists:  # another process was first: its spec is the job's
            return _spec_of(storage, name, given)
    return msgspec.structs.replace(stored, **given)


class _Bare:
    """A process that is supervisor and attempt in one: no retry, and nobody watches it."""

    def __init__(self, storage: Storage, spec: JobSpec) -> None:
        self.closed = False
        self._pid = os.getpid()
        self._journal = Journal(storage)
        job = self._claim(storage, spec)
        self._file = LogFile(storage, layout.attempt_log(job.attempt))
        status = Status()
        stop = StopFlag()
        self.context = AttemptContext(
            storage=storage,
            spec=spec,
            attempt=job.attempt,
            stop=stop,
            status=status,
            log=make_logger(self._file, status=status, job=spec.job, attempt=job.attempt),
            fence=lambda: self._journal.fence(job.attempt),
            supervised=False,
            local_dir=storage.local_path(""),
            failures=failures.seen_in(self._journal.read()),
            spool=spool_of(storage, spec),
        )
        self._heartbeat = HeartbeatWriter(
            storage,
            job.attempt,
            status,
            spec.heartbeat_every,
            self._superseded,
            fence=self.context.fence,
            on_beat=self._file.flush,
            aside=None if self.context.spool is None else self.context.spool.storage,
        )
        self._heartbeat.start()
        self._journal.append(Started(attempt=job.attempt))
        self._handlers = preemption.install(stop, patience=2)
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_uncaught
        atexit.register(self._at_exit)
        set_current(self.context)
        self.context.log.info("attempt started", pid=self._pid, supervised=False)
        self._notice: Notice | None = None
        self._watcher = notices.watch(spec.preemption, self._on_notice, self._tell_of_cloud)
        if not fencing.can_fence(storage):
            fencing.warn(storage, self.context.log)
            sys.stderr.write(f"outlast: {fencing.WHY}: {fencing.THEN}\n")

    def _claim(self, storage: Storage, spec: JobSpec) -> Job:
        if self._journal.job() is None:
            with suppress(InvalidTransition):  # another process was first
                self._journal.append(Submitted(max_retries=spec.max_retries))
        job = succession.free(storage, self._journal, spec)
        owner = identity.here()
        try:
            if job.state.final:
                self._journal.append(Resumed(by=str(owner)))
            job, _ = self._journal.claim(owner)
            return self._journal.append(Launched(attempt=job.attempt))
        except InvalidTransition:
            raise succession.busy(spec.job, self._journal.existing_job()) from None

    def close(self, code: int, error: str | None = None) -> int:
        """Tell the journal how this process ends, and return the exit code.

        Whoever comes next need not wait.
        """
        if self.closed or os.getpid() != self._pid:
            return code
        self.closed = True
        context = self.context
        if self._watcher is not None:
            self._watcher.stop()
        code = context.before_exit(code)
        if self._handlers is not None:
            self._handlers.restore()
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._excepthook
        atexit.unregister(self._at_exit)
        if current() is context:
            set_current(None)
        context.status.error = error or context.status.error
        self._heartbeat.stop(code)
        outcome, reason = judge(code, None, context.status.error)
        context.log.info("attempt ended", outcome=outcome.value, reason=reason)
        try:
            with patience(USUAL if context.spool is None else BRIEF):
                self._file.close()
                self._record_end(code, outcome, reason)
        except StorageError as error:
            if context.spool is None:
                raise
            # Whoever comes next sees that this process is gone.
            sys.stderr.write(f"outlast: {error}\n")
        if self._watcher is not None and self._notice is not None:
            self._watcher.acknowledge()
        return code

    def _record_end(self, code: int, outcome: Outcome, reason: str) -> None:
        context = self.context
        checkpoint = succession.new_checkpoint(context.storage, context.attempt)
        ended = Ended(
            attempt=context.attempt,
            outcome=Outcome.STOPPED
            if outcome is Outcome.PREEMPTED and self._notice is None
            else outcome,
            reason=reason,
            exit_code=code,
            advanced=checkpoint is not None,
            checkpoint=checkpoint,
            reached=context.status.beat(context.attempt, 0, identity.here()).reached(),
        )
        if context.spool is not None:
            with suppress(StorageError):
                context.spool.tidy(context.attempt)
        with suppress(InvalidTransition):  # superseded: the job is somebody else's now
            if self._journal.append(ended).state is State.WAITING:
                why = "nobody supervises it" if self._notice is None else self._notice.story
                self._journal.append(Released(reason=why))

    def _at_exit(self) -> None:
        code = self.context.exit_code
        stop = self.context.stop
        if code is None and stop.requested and not stop.watched:
            code = exit_codes.RESUMABLE  # a signal ended the script outside of its phases
        code = exit_codes.DONE if code is None else code
        left = code
        try:
            left = self.close(code)
        except OutlastError as error:
            sys.stderr.write(f"outlast: {error}\n")
        if left != code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(left)  # nothing else changes what a process exits with from here

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        code = error.exit_code if isinstance(error, OutlastError) else exit_codes.FAILED
        if isinstance(error, KeyboardInterrupt):
            code = exit_codes.INTERRUPTED
        self.context.exit_code = code
        self.context.status.error = redact(f"{kind.__name__}: {error}")
        self._excepthook(kind, error, trace)

    def _on_notice(self, notice: Notice) -> None:
        """Do what SIGTERM does; called on the watcher's thread."""
        spec, stop = self.context.spec, self.context.stop
        self._notice = notice
        now = time.monotonic()
        if notice.within is not None:
            within = notice.time_to_leave(now, spec.grace, limit=spec.grace_is_limit)
            stop.leave_by = now + within
        self.context.log.warning("preemption_notice", **notice.told())
        stop.request(notice.story)
        if not stop.watched and self._handlers is not None:
            os.kill(self._pid, signal.SIGTERM)  # nobody looks at the flag: nothing is unsaved

    def _tell_of_cloud(self, event: str, fields: Mapping[str, Any]) -> None:
        say = self.context.log.info if event == notices.WATCHED else self.context.log.warning
        say(event, **fields)

    def _superseded(self, error: Superseded) -> None:
        self.context.log.error("superseded", by=error.fields.get("by"))
        self.context.stop.request("superseded")
