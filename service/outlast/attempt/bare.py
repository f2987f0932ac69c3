"""Bare scripts, started without `outlast run`: owner and attempt are one process."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from outlast import exit_codes, notices
from outlast.attempt import script_change, script_environment, signals
from outlast.attempt.context import AttemptContext, current, set_current
from outlast.attempt.signals import StopFlag
from outlast.errors import InvalidTransition
from outlast.job import failure_stats as failures
from outlast.job import fencing_check, process_identity, standard_streams, takeover, trust
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Released, Resumed, Started, Submitted
from outlast.job.heartbeat import HeartbeatWriter, Status
from outlast.job.journal import Journal
from outlast.job.known_commits import known_commits
from outlast.job.lifecycle import Job, State
from outlast.job.log_events import LogEvent
from outlast.job.logs import LogFile, make_logger
from outlast.job.outcome import Outcome, judge
from outlast.job.spec import JobSpec
from outlast.job.spool_settings import spool_of
from outlast.notices import Notice
from outlast_checkpoints.errors import (
    AlreadyExists,
    NotFound,
    OutlastError,
    StorageError,
    Superseded,
    UsageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.redaction import redact
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document
from outlast_checkpoints.storage.retry_budget import BRIEF, USUAL, patience

if TYPE_CHECKING:
    pass


_bare: dict[str, _Bare] = {}


def open_bare(
    job_dir: str | os.PathLike[str],
    *,
    save_every: str | int | None = None,
    keep: str | int | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> AttemptContext:
    """Return the context of this process for the job in `job_dir`.

    The first call creates the job if it does not exist, writes off a previous owner that is gone,
    claims the next attempt, starts the heartbeat, and handles SIGTERM, SIGINT, SIGHUP, SIGUSR1 and
    SIGUSR2 (the third Ctrl-C interrupts immediately). Later calls with the same folder return the
    same context. OUTLAST_DETERMINISTIC=0 disables TensorFlow's op determinism.

    Args:
        job_dir: Folder or URL of the job.
        save_every: When to save; overrides the job's spec.
        keep: Which checkpoints to keep; overrides the job's spec.
        seed: Seed of all random generators; overrides the job's spec.
        name: Name of a new job; default: that of its folder.

    Raises:
        JobBusy: another process has the job.
        SpecInvalid: a value is invalid.
        StorageError: the storage cannot be used.
        UsageError: `job_dir` is not a folder or URL.
    """
    storage = _storage_of(job_dir)
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
    """End the attempt of a bare script before its process ends, as in a notebook.

    Args:
        context: Context of the attempt.
        code: Exit code to record.
    """
    for bare in list(_bare.values()):
        if bare.context is context:
            bare.close(code)


def _storage_of(job_dir: object) -> Storage:
    text = os.fspath(job_dir) if isinstance(job_dir, str | os.PathLike) else None
    storage = open_storage(text) if isinstance(text, str) and text else None
    folder = None if storage is None else storage.local_path("")
    if storage is None or (folder is not None and folder.is_file()):
        what = "is a file" if text else "is neither a folder nor a URL"
        raise UsageError(
            field="job_dir",
            problem=f"{job_dir!r} {what}",
            hint="Pass for example job_dir='my-job' or job_dir='s3://bucket/jobs/my-job'.",
        )
    return storage


def _spec_of(storage: Storage, name: str | None, given: dict[str, Any]) -> JobSpec:
    try:
        stored = specs.decode(read_document(storage, layout.SPEC))
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
        document = specs.encode(stored)
        try:
            storage.create(layout.SPEC, document)
            trust.remember(document, storage.root)
        except AlreadyExists:  # another process was first, so its spec counts
            return _spec_of(storage, name, given)
    return msgspec.structs.replace(stored, **given)


class _Bare:
    """The attempt of a bare script; nobody retries or watches it."""

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
            known_commits=known_commits(storage, self._journal.read()),
            rollbacks=job.rollbacks,
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
        script_change.identify(status, script_change.main_file())
        self._heartbeat.start()
        self._journal.append(Started(attempt=job.attempt))
        self._handlers = signals.install(stop, max_interrupts=2)
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_uncaught
        atexit.register(self._at_exit)
        set_current(self.context)
        script_environment.tell(storage, job.attempt, os.environ)
        self.context.log.info(LogEvent.ATTEMPT_STARTED, pid=self._pid, supervised=False)
        script_change.tell(self.context)
        self._notice: Notice | None = None
        self._listener = notices.watch(spec.preemption, self._on_notice, self._log_cloud_event)
        if not fencing_check.can_fence(storage):
            fencing_check.warn(storage, self.context.log)
            standard_streams.say(f"outlast: {fencing_check.why(storage)}: {fencing_check.HINT}")

    def _claim(self, storage: Storage, spec: JobSpec) -> Job:
        if self._journal.job() is None:
            with suppress(InvalidTransition):  # another process was first
                self._journal.append(Submitted(max_retries=spec.max_retries))
        job = takeover.free(storage, self._journal, spec)
        owner = process_identity.here()
        try:
            if job.state.final:
                self._journal.append(Resumed(by=str(owner)))
            job, _ = self._journal.claim(owner)
            return self._journal.append(Launched(attempt=job.attempt))
        except InvalidTransition:
            raise takeover.busy(spec.job, self._journal.existing_job()) from None

    def close(self, code: int, error: str | None = None, *, at_exit: bool = False) -> int:
        """Record the end of this process in the journal; return the exit code.

        at_exit: the process ends, so further signals that ask for that are ignored.
        """
        if self.closed or os.getpid() != self._pid:
            return code
        self.closed = True
        context = self.context
        if self._listener is not None:
            self._listener.stop()
        code = context.before_exit(code)
        if self._handlers is not None:
            self._handlers.restore(ignore=at_exit and context.stop.requested)
        if sys.excepthook == self._on_uncaught:
            sys.excepthook = self._excepthook
        atexit.unregister(self._at_exit)
        if current() is context:
            set_current(None)
        context.status.error = error or context.status.error
        self._heartbeat.stop(code)
        outcome, reason = judge(code, None, context.status.error)
        context.log.info(LogEvent.ATTEMPT_ENDED, outcome=outcome.value, reason=reason)
        try:
            with patience(USUAL if context.spool is None else BRIEF):
                self._file.close()
                self._record_end(code, outcome, reason)
        except StorageError as error:
            if context.spool is None:
                raise
            # The next owner sees that this process is gone.
            standard_streams.say(f"outlast: {error}")
        if self._listener is not None and self._notice is not None:
            self._listener.acknowledge()
        return code

    def _record_end(self, code: int, outcome: Outcome, reason: str) -> None:
        context = self.context
        checkpoint = takeover.new_checkpoint(context.storage, context.attempt)
        ended = Ended(
            attempt=context.attempt,
            outcome=Outcome.STOPPED
            if outcome is Outcome.PREEMPTED and self._notice is None
            else outcome,
            reason=reason,
            exit_code=code,
            advanced=checkpoint is not None,
            checkpoint=checkpoint,
            reached=context.status.beat(context.attempt, 0, process_identity.here()).reached(),
        )
        if context.spool is not None:
            with suppress(StorageError):
                context.spool.tidy(context.attempt)
        with suppress(InvalidTransition):  # superseded
            if self._journal.append(ended).state is State.WAITING:
                why = "no supervisor" if self._notice is None else self._notice.description
                self._journal.append(Released(reason=why))

    def _at_exit(self) -> None:
        code = self.context.exit_code
        stop = self.context.stop
        if code is None and stop.requested and not stop.watched:
            code = exit_codes.RESUMABLE  # a signal ended the script outside its phases
        code = exit_codes.DONE if code is None else code
        left = code
        try:
            left = self.close(code, at_exit=True)
        except OutlastError as error:
            standard_streams.say(f"outlast: {error}")
        if left != code:
            standard_streams.flush()
            os._exit(left)  # the only way to change the exit code here

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
        """Act as on SIGTERM; called on the listener's thread."""
        spec, stop = self.context.spec, self.context.stop
        self._notice = notice
        now = time.monotonic()
        if notice.within is not None:
            within = notice.time_to_leave(now, spec.grace, limit=spec.grace_is_limit)
            stop.leave_by = now + within
        self.context.log.warning(LogEvent.PREEMPTION_ANNOUNCED, **notice.log_fields())
        stop.request(notice.description)
        if not stop.watched and self._handlers is not None:
            os.kill(self._pid, signal.SIGTERM)  # nothing is unsaved outside a phase

    def _log_cloud_event(self, event: str, fields: Mapping[str, Any]) -> None:
        say = self.context.log.info if event == notices.WATCHED else self.context.log.warning
        say(event, **fields)

    def _superseded(self, error: Superseded) -> None:
        self.context.log.error(LogEvent.SUPERSEDED, by=error.fields.get("by"))
        self.context.stop.request("superseded")
