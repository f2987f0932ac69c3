"""`TrainingJob`: a job inside its attempt, with its store, its writer and its phases in order."""

from __future__ import annotations

import functools
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from outlast.attempt import bare as bare_script
from outlast.attempt import context, spool_handover
from outlast.attempt.context import AttemptContext
from outlast.exit_codes import FAILED
from outlast.job.log_events import LogEvent
from outlast.job.spec import version
from outlast.training.errors import StateMismatch
from outlast.training.keras_internals import versions
from outlast.training.same_machine import require_same
from outlast.training.state import random_state
from outlast_checkpoints.errors import StorageError, UsageError
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded
from outlast_checkpoints.store.spool_sender import Sender

_jobs: dict[int, TrainingJob] = {}


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
        self.store = CheckpointStore(
            ctx.storage,
            attempt=ctx.attempt,
            fence=ctx.fence,
            writer={"outlast": version(), **versions.installed()},
            # Without a GPU the CPU trains, so a save must leave it to the steps.
            past_cache=not tf.config.list_physical_devices("GPU"),
            ahead=ctx.read_ahead,
        )
        keep = Keep.parse(ctx.spec.keep)
        if ctx.spool is not None:
            spool_handover.send_left(ctx, ctx.spool, self.store)
        self.newest, damages = self.store.begin()
        for damage in damages:
            ctx.log.error(
                LogEvent.CHECKPOINT_DAMAGED,
                checkpoint=str(damage.checkpoint),
                file=damage.file,
                reason=damage.reason,
                hint="the next older checkpoint is used",
            )
        if self.newest is not None:
            ctx.status.restored_from = self.newest.checkpoint
            ctx.status.last_checkpoint = self.newest.checkpoint
            ctx.status.last_checkpoint_at_step = self.newest.progress.step
        self.finished = self.store.finished_phases()
        saving, sender = self.store, None
        if ctx.spool is not None:
            saving = self.store.beside(ctx.spool.storage)
            sender = Sender(ctx.spool, self.store, ctx.attempt, keep=keep, on_event=self._on_event)
            ctx.before_exit = functools.partial(spool_handover.settle, ctx, sender)
        self.sender = sender
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
        self._entered: list[str | None] = []
        self._failed = False
        self._left: tuple[int, Any] | None = None
        self._names = {
            p: self.store.manifest(c).progress.phase_name for p, c in self.finished.items()
        }
        if self.newest is not None:
            self._names[self.newest.progress.phase] = self.newest.progress.phase_name

    @classmethod
    def current(
        cls,
        job_dir: str | Path | None,
        *,
        save_every: Any = None,
        keep: Any = None,
        seed: int | None = None,
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
                    problem="it names the folder of the checkpoints, and is missing",
                    hint="Pass job_dir='my-job', or start the script with `outlast run`.",
                )
            ctx = bare_script.open_bare(job_dir, save_every=save_every, keep=keep, seed=seed)
        earlier = _jobs.get(id(ctx))
        if earlier is not None:
            earlier._judge_what_was_left()
        if earlier is not None and earlier._failed:
            earlier._close()
            root = ctx.storage.root
            ctx = bare_script.open_bare(root, save_every=save_every, keep=keep, seed=seed)
        if not ctx.supervised and id(ctx) not in _jobs:
            ctx.stop.watched = False
        if id(ctx) not in _jobs:
            _jobs[id(ctx)] = cls(ctx)
            if earlier is not None:
                _jobs[id(ctx)]._entered = earlier._entered
        job = _jobs[id(ctx)]
        if ctx.supervised:
            job._say_what_the_job_decides(job_dir, save_every, keep)
        return job

    def enter_phase(self, name: str | None) -> int:
        """Return the index of the phase that starts now, found by its name or else its order.

        Raises `UsageError` if the previous phase was left unfinished, because a later attempt could
        resume neither of them.
        """
        if self._left is not None:
            raise UsageError(
                field="Loop",
                problem=f"phase {self._left[0]} was left by `break`, or by an error in the loop's "
                "body, and is unfinished",
                hint="Use loop.stop() instead of `break`. After an error, start the script again.",
            )
        if name is not None and name in self._entered:
            raise UsageError(
                field="name",
                problem=f"{name!r} names an earlier phase of this script",
                hint="Use a different name for each phase.",
            )
        known = [p for p, n in self._names.items() if name is not None and n == name]
        index = known[0] if known else len(self._entered)
        stored = self._names.get(index)
        if index in self._names and stored != name:
            raise StateMismatch(
                checkpoint=f"of phase {index}",
                what="name",
                problem=f"the checkpoint has {stored!r}, the script has {name!r}",
            )
        self._entered.append(name)
        return index

    def fail_phase(self, error: BaseException) -> None:
        """Note that the current phase ended with an error, which the script may catch.

        In a bare script or a notebook, the next call is then a new attempt at the same phase.
        """
        self.writer.wait()
        if not self.ctx.supervised and self._entered:
            self._entered.pop()
            self._failed = True
            self.ctx.status.error = f"{type(error).__name__}: {error}"

    def leave_phase(self, phase: int) -> None:
        """Note that the script left a loop early, by `break` or by an error in its body."""
        self.writer.wait()
        self._left = phase, getattr(sys, "last_value", None)
        self.ctx.log.warning(
            LogEvent.PHASE_ABANDONED,
            phase=phase,
            why="`break`, or an error in the loop's body",
            hint="the phase keeps its checkpoints; run the script again to resume it",
        )

    def _judge_what_was_left(self) -> None:
        # A notebook or prompt shows the error that ended the cell and stays alive. The user then
        # runs the cell again, as after an error in `fit`. `break` shows no error.
        if self._left is None or self.ctx.supervised:
            return
        shown = getattr(sys, "last_value", None)
        if shown is not None and shown is not self._left[1]:
            self.fail_phase(shown)
            self._left = None

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
        self.ctx.log.info(
            LogEvent.OP_DETERMINISM_ENABLED if deterministic else LogEvent.OP_DETERMINISM_DISABLED,
            why="a resume repeats every step bit by bit"
            if deterministic
            else "a resume may differ in the last bits",
        )

    def checkpoint_of(self, phase: int) -> CheckpointId | None:
        """Return the checkpoint from which the phase resumes, or None if it starts anew."""
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
        return self.store.load(checkpoint)

    def _say_what_the_job_decides(self, job_dir: Any, save_every: Any, keep: Any) -> None:
        given = {"job_dir": job_dir, "save_every": save_every, "keep": keep}
        for field, value in given.items():
            if value is not None:
                self.ctx.log.info(
                    LogEvent.ARGUMENT_IGNORED,
                    field=field,
                    value=str(value),
                    why="the job's setting applies",
                )

    def _tell_backlog(self) -> None:
        if self.sender is not None:
            status, left = self.ctx.status, self.sender.backlog()
            status.away_since, status.spool = left.away_since, left.path
            status.spooled, status.spooled_bytes = left.count, left.size

    def _on_event(self, event: str, fields: dict[str, Any]) -> None:
        """Log an event of the writer. Runs on the writing thread."""
        status = self.ctx.status
        with suppress(StorageError):  # of this machine's disk; the next event reports it
            self._tell_backlog()
        if event in ("saved", "spooled"):
            saved = CheckpointId.parse(fields["checkpoint"])
            assert saved is not None
            status.last_checkpoint = str(saved)
            status.last_checkpoint_at_step = saved.step
            status.tick()
            self.written_in = fields["seconds"]
        if event in ("saved", "sent"):
            self.save_takes = fields["seconds"]
        if "seconds" in fields:
            fields["seconds"] = round(fields["seconds"], 4)
        if "error" in fields:
            self.ctx.log.warning(event, **{**fields, "error": str(fields["error"])})
        elif event == "spooled":
            # Warn only while the storage is away, not if a checkpoint just waits its turn.
            say = self.ctx.log.info if status.away_since is None else self.ctx.log.warning
            say(event, **fields, path=status.spool)
        else:
            self.ctx.log.info(event, **fields)
