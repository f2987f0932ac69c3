"""`TrainingJob`: a job inside its attempt, with its store, its writer and its phases in order."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from outlast.attempt import bare as bare_script
from outlast.attempt import context, spool_handover
from outlast.attempt.context import AttemptContext
from outlast.exit_codes import FAILED
from outlast.job.log_events import LogEvent
from outlast.job.spec import version
from outlast.training import left_phase
from outlast.training.errors import RollbackNeeded, StateMismatch, StateSaved
from outlast.training.keras_internals import versions
from outlast.training.phase_order import PhaseOrder
from outlast.training.progress_reporter import ProgressReporter
from outlast.training.same_machine import require_same
from outlast.training.state import random_state
from outlast_checkpoints.errors import OutlastError, StorageError, UsageError
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.snapshot import Progress
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded
from outlast_checkpoints.store.spool_sender import Sender

_jobs: dict[int, TrainingJob] = {}

if (_attempt := context.current()) is not None and _attempt.supervised:
    # The garbage collector need not look at what TensorFlow consists of. Python would once more at
    # its end, for more than a second, in which nobody could take the job over.
    gc.freeze()


@dataclass(frozen=True)
class _Left:
    """A phase that the script left before its end."""

    phase: int
    name: str | None
    why: str
    error: BaseException | None
    record: Callable[[], None] | None  # saves it as left for good; None if that is impossible
    shown: Any  # the error that the prompt had shown before


class TrainingJob:
    """The store, writer and history of an attempt, shared by all its phases.

    The constructor finds the newest intact checkpoint and logs the damaged ones.
    """

    def __init__(self, ctx: AttemptContext) -> None:
        if ctx.rank.of > 1:
            raise UsageError(
                field="fit, Loop",
                problem=f"this is one of {ctx.rank.of} processes of an attempt, and each would "
                "train alone",
                hint="Start the attempt with one process; training in several is not supported.",
            )
        ctx.before_training()
        require_same(ctx)
        self.ctx = ctx
        self.reporter = ProgressReporter(ctx.status, ctx.log)
        self._log = ctx.log
        self.store = CheckpointStore(
            ctx.storage,
            attempt=ctx.attempt,
            fence=ctx.fence,
            writer={"outlast": version(), **versions.recorded()},
            # Without a GPU the CPU trains, so a save must leave it to the steps.
            past_cache=not tf.config.list_physical_devices("GPU"),
            ahead=ctx.read_ahead,
        )
        keep = ctx.spec.retention
        if ctx.spool is not None:
            spool_handover.send_left(ctx, ctx.spool, self.store)
        limit, reported = self._limit(), ctx.known_commits
        if limit is not None:
            reported = [one for one in reported if one.checkpoint.place[:2] <= limit]
        self.newest, damages = self.store.begin(known=reported, limit=limit)
        if self.newest is None and ctx.known_commits:
            ctx.log.warning(
                LogEvent.CHECKPOINTS_ELSEWHERE,
                checkpoint=str(ctx.known_commits[-1].checkpoint),
                why="it waits in the spool of another machine, which could not send it",
                hint="the training starts from the beginning; to keep what was trained, stop this "
                "job and resume it on that machine",
            )
        for damage in damages:
            self._log.error(
                LogEvent.CHECKPOINT_DAMAGED,
                checkpoint=str(damage.checkpoint),
                file=damage.file,
                reason=damage.reason,
                hint="the next older checkpoint is used",
            )
        if self.newest is not None:
            self.reporter.resumes_from(self.newest.checkpoint, self.newest.progress.step)
        self.finished = self.store.finished_phases()
        self._ended: dict[int, CheckpointId] = {}  # by this attempt
        saving, sender = self.store, None
        if ctx.spool is not None:
            saving = self.store.beside(ctx.spool.storage)
            sender = Sender(ctx.spool, self.store, ctx.attempt, keep=keep, on_event=self._on_event)
            ctx.before_exit = functools.partial(spool_handover.settle, ctx, sender)
        self.sender = sender
        self._saving = saving
        self.history = HistoryWriter(saving.storage, ctx.attempt)
        self.writer = Writer(
            saving,
            history_sync=self.history.sync,
            keep=keep,
            on_event=self._on_event,
            sender=sender,
        )
        self.written_in: float | None = None  # seconds until the newest save was durable
        self.save_takes: float | None = None  # seconds until a save is on the job's storage
        self.named_doubts: list[str] = []  # doubts about data that the log has named
        self.left: _Left | None = None
        stored = [self.store.manifest(c).progress for c in self.finished.values()]
        if self.newest is not None:
            stored.append(self.newest.progress)
        left = None
        if self.newest is not None and not self.newest.progress.finished:
            left = left_phase.left_earlier(ctx, self.newest.id)
        known = {p.phase: (p.phase_name, p.place) for p in stored}
        self.order = PhaseOrder(known, self.finished, left=left)

    @classmethod
    def current(
        cls,
        job_dir: str | Path | None,
        *,
        save_every: Any = None,
        keep: Any = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> TrainingJob:
        """Return the job of this process: the supervised one, or the one in `job_dir`.

        Raises `UsageError` (field job_dir) if there is neither, and `JobBusy` if another process
        runs the job.
        """
        ctx = context.current()
        if ctx is None or (not ctx.supervised and job_dir is not None):
            if job_dir is None:
                raise UsageError(
                    field="job_dir",
                    problem="it is missing; it names the folder or URL of the job",
                    hint="Pass job_dir='my-job', or start the script with `outlast run`.",
                )
            ctx = bare_script.open_bare(job_dir, save_every=save_every, keep=keep, seed=seed)
        earlier = _jobs.get(id(ctx))
        if earlier is not None and earlier._is_retried(name):
            earlier._close()
            root = ctx.storage.root
            ctx = bare_script.open_bare(root, save_every=save_every, keep=keep, seed=seed)
        if not ctx.supervised and id(ctx) not in _jobs:
            ctx.stop.watched = False
        if id(ctx) not in _jobs:
            _jobs[id(ctx)] = cls(ctx)
            if earlier is not None:
                _jobs[id(ctx)].order.entered = earlier.order.entered
        job = _jobs[id(ctx)]
        if ctx.supervised:
            job.log_ignored_arguments(job_dir, save_every, keep)
        return job

    @staticmethod
    def is_training() -> bool:
        """Return whether a phase runs in this process, so that no other one can begin."""
        job = _jobs.get(id(context.current()))
        return job is not None and job.left is None and job.order.is_running()

    def record_left(self) -> None:
        """Record the phase that the script left before its end, because it continues without it.

        Raises `UsageError` if it cannot be recorded.
        """
        left = self.left
        if left is not None:
            if isinstance(left.error, StateSaved | RollbackNeeded):
                raise left.error  # it is still wanted
            if left.record is None:
                raise UsageError(
                    field="fit, Loop",
                    problem=f"phase {left.phase} was left by {left.why} and is unfinished, so a "
                    "restart could not continue from here",
                    hint="Leave a Loop by loop.stop() or `break`. Leave a fit by an error whose "
                    "class is defined at the top of its module and whose arguments are plain "
                    "data. After any other error, start the script again.",
                )
            left.record()
            self.order.end(left.phase)
            self._log.info(LogEvent.PHASE_LEFT, phase=left.phase, name=left.name, why=left.why)
            self.left = None

    def withdraw_phase(self, phase: int) -> None:
        """Note that an error ended the phase before it began."""
        self.writer.wait()
        self.order.withdraw(phase)

    def leave_phase(
        self,
        phase: int,
        why: str,
        *,
        error: BaseException | None = None,
        record: Callable[[], None] | None = None,
    ) -> None:
        """Note that the script left the phase before its end, and may continue.

        `error` is the one that left the phase, or None if it is unknown. `record` saves the phase
        as left for good; it is called when the next phase begins.
        """
        self.writer.wait()
        name = self.order.known[phase][0]
        shown = getattr(sys, "last_value", None)
        self.left = _Left(phase, name, why, error, record, shown)
        if record is not None:
            left_phase.note(self.ctx, phase)
        if error is None:
            self._log.warning(
                LogEvent.PHASE_ABANDONED,
                phase=phase,
                why=why,
                hint="until another phase begins, a restart resumes from its last checkpoint",
            )

    def _limit(self) -> tuple[int, int] | None:
        """Return the last place to resume from, if this attempt is the first after a rollback."""
        if not self.ctx.rollbacks:
            return None  # without a look at the storage
        last, begun = self.ctx.rollbacks[-1], self.store.lineage().attempts
        return last.limit if max(begun, default=0) <= last.attempt else None

    def _is_retried(self, name: str | None) -> bool:
        """Return whether the next call is another try at the phase that was left.

        This is so only in a bare script: after Ctrl-C, with the phase's own name, or if a notebook
        or prompt has shown the error that ended the cell. `break` shows no error.
        """
        left = self.left
        if left is None or self.ctx.supervised:
            return False
        shown = getattr(sys, "last_value", None)
        again = shown is not None and shown is not left.shown
        if left.error is not None and not isinstance(left.error, Exception):
            again = True
        if not again and (name is None or name != left.name):
            return False
        self.order.withdraw(left.phase)
        error = left.error or shown
        if error is not None:
            self.reporter.error(error)
        return True

    def _close(self) -> None:
        del _jobs[id(self.ctx)]
        self.history.close()
        code = self.ctx.exit_code
        bare_script.close_bare(self.ctx, FAILED if code is None else code)

    def make_deterministic(self) -> None:
        """Enable TensorFlow's op determinism, unless the job disables it, and log which."""
        deterministic = self.ctx.spec.deterministic
        if deterministic:
            random_state.enable_determinism()
        self._log.info(
            LogEvent.OP_DETERMINISM_ENABLED if deterministic else LogEvent.OP_DETERMINISM_DISABLED,
            why="a resume repeats every step bit by bit"
            if deterministic
            else "a resume may differ in the last bits",
        )

    def note_end(self, progress: Progress) -> None:
        """Note that this attempt has saved the end of a phase."""
        found = CheckpointId(progress.phase, progress.step, Stage.END, self.ctx.attempt)
        self.finished[progress.phase] = self._ended[progress.phase] = found

    def checkpoint_of(self, phase: int) -> CheckpointId | None:
        """Return the checkpoint from which the phase resumes, or None if it starts anew."""
        if phase in self._ended:  # a cell or script that is run again
            return self._ended[phase]
        if self.newest is None:
            return None
        if self.newest.progress.phase == phase:
            return CheckpointId.parse(self.newest.checkpoint)
        if self.newest.progress.phase > phase:
            if phase not in self.finished:
                raise StateMismatch(
                    checkpoint=self.newest.checkpoint,
                    what=f"phase {phase}",
                    problem="it has no final checkpoint, although a later phase has begun",
                )
            return self.finished[phase]
        return None

    def load(self, checkpoint: CheckpointId) -> Loaded:
        """Read and verify a checkpoint."""
        if self.sender is not None and checkpoint in self._ended.values():
            with suppress(OutlastError):  # it may be sent by now
                return self._saving.load(checkpoint)
        return self.store.load(checkpoint)

    def log_ignored_arguments(self, job_dir: Any, save_every: Any, keep: Any) -> None:
        """Log each of these arguments that was given, because the job's setting applies."""
        given = {"job_dir": job_dir, "save_every": save_every, "keep": keep}
        for field, value in given.items():
            if value is not None:
                self._log.info(
                    LogEvent.ARGUMENT_IGNORED,
                    field=field,
                    value=str(value),
                    why="the job's setting applies",
                )

    def _on_event(self, event: str, fields: dict[str, Any]) -> None:
        """Note and report an event of the writer. Runs on the writing thread."""
        backlog = None
        with suppress(StorageError):  # of this machine's disk; the next event reports it
            backlog = self.sender.backlog() if self.sender is not None else None
        if event in ("saved", "spooled"):
            self.written_in = fields["seconds"]
        if event in ("saved", "sent"):
            self.save_takes = fields["seconds"]
        self.reporter.writer_event(event, fields, backlog)
