"""What the process of an attempt does: `outlast.attempt.main` and a `fit`, without TensorFlow."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from outlast import exit_codes
from outlast.attempt import spool_handover
from outlast.job.heartbeat import HeartbeatWriter, Status
from outlast.job.journal import Journal
from outlast.job.logs import silent_logger
from outlast_checkpoints.errors import OutlastError, StorageError, Superseded
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool_sender import Sender
from tests.simulation import training

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World


class Left(Exception):
    """The state is saved, the attempt leaves."""


class Attempt:
    """Attempt `number` in its process. parent: the supervisor that has started it."""

    def __init__(
        self,
        world: World,
        process: Process,
        storage: Storage,
        number: int,
        parent: Process | None,
    ) -> None:
        self.world, self.process, self.storage, self.number = world, process, storage, number
        self.parent = parent
        self.stop: str | None = None
        self.asked_at: float | None = None
        self.spool = world.spool_of(process)
        self.sender: Sender | None = None
        self.status = Status()
        journal = Journal(storage)
        self.fence = lambda: journal.fence(number)
        self.heartbeat = HeartbeatWriter(
            storage,
            number,
            self.status,
            world.spec.heartbeat_every,
            lambda error: self.ask_to_leave("superseded"),
            fence=self.fence,
            on_beat=self.look_around,
            aside=None if self.spool is None else self.spool.storage,
        )
        self.last_saved = -1
        process.on_signal = self.on_signal

    def on_signal(self, signum: int) -> None:
        if signum == signal.SIGTERM:
            self.ask_to_leave("SIGTERM")

    def ask_to_leave(self, why: str) -> None:
        if self.stop is None:
            self.stop, self.asked_at = why, self.world.scheduler.now

    def look_around(self) -> None:
        parent = self.parent
        # Every other job is one whose attempts do not look: those become zombies.
        if parent is not None and not parent.alive and self.world.seed % 2:
            self.ask_to_leave("orphaned")

    def run(self) -> int:
        """Train; return the exit code, which the last heartbeat tells as well."""
        self.heartbeat.start()
        try:
            self.fence()
            self.train()
            code = exit_codes.DONE
        except Left:
            code = exit_codes.RESUMABLE
        except OutlastError as error:
            self.world.tell(self.process, type(error).__name__, error)
            self.status.error = str(error)
            code = error.exit_code
        if self.sender is not None:
            self.writer.wait()
            code = spool_handover.settle(self.context(), self.sender, code)
        if self.stop == "superseded":
            code = exit_codes.SUPERSEDED
        self.heartbeat.stop(code)
        return code

    def context(self) -> Any:
        """Return what of an attempt's context the spool asks for."""
        return SimpleNamespace(
            storage=self.storage,
            attempt=self.number,
            spec=self.world.spec,
            status=self.status,
            log=silent_logger(),
            stop=SimpleNamespace(reason=self.stop, requested_at=self.asked_at),
            leave_by=lambda: None,  # no cloud has said by when
        )

    def train(self) -> None:
        oracle = self.world.oracle
        self.store = CheckpointStore(self.storage, attempt=self.number, fence=self.fence)
        save, adopt = self.store.save, self.store.adopt

        def watched(snapshot: Snapshot, **kwargs: Any) -> Manifest:
            progress = snapshot.progress
            place = progress.phase, progress.step, Stage(progress.stage)
            oracle.save_begins(str(CheckpointId(*place, self.number)), self.number)
            return save(snapshot, **kwargs)

        def adopted(made: Manifest, source: Storage) -> None:
            oracle.save_begins(made.checkpoint, self.number)
            adopt(made, source)

        self.store.save = watched  # type: ignore[method-assign]
        self.store.adopt = adopted  # type: ignore[method-assign]
        if self.spool is not None:
            spool_handover.send_left(self.context(), self.spool, self.store)
        promised = oracle.begins_now()
        newest, _ = self.store.begin()
        oracle.begun(self.number, newest.checkpoint if newest else None, promised)
        finished = self.store.finished_phases()
        keep, saving = Keep.parse(self.world.spec.keep), self.store
        if self.spool is not None:
            saving = self.store.beside(self.spool.storage)
            self.sender = Sender(
                self.spool,
                self.store,
                self.number,
                keep=keep,
                on_event=self.on_event,
                clock=lambda: self.world.scheduler.now,
            )
        self.history = HistoryWriter(saving.storage, self.number)
        self.writer = Writer(
            saving,
            history_sync=self.history.sync,
            keep=keep,
            on_event=self.on_event,
            sender=self.sender,
        )
        start, step, stage, state = 0, 0, Stage.STEP, training.state_at(0, 0)
        if newest is not None:
            state = training.check_loaded(self.store.load(newest.id), newest.id)
            start, step, stage = newest.id.phase, newest.id.step, newest.id.stage
            if stage == Stage.END:
                start, step = start + 1, 0
            self.status.restored_from = newest.checkpoint
            for phase in range(start):
                assert phase in finished, (phase, finished)
        for phase in range(start, len(training.PHASES)):
            state = self.train_phase(phase, step if phase == start else 0, state)
        self.history.close()

    def train_phase(self, phase: int, step: int, state: int) -> int:
        self.status.phase, self.status.activity = phase, "training"
        while step < training.PHASES[phase]:
            self.at_border(phase, step, state)
            self.world.scheduler.pause(self.world.pace)
            step += 1
            state = training.advance(state, phase, step)
            self.history.append(training.row(phase, step, state, self.number))
            self.status.step = step
            self.status.tick()
            if step % training.EPOCH == 0 and step < training.PHASES[phase]:
                if self.stop is not None:
                    self.leave(phase, step, Stage.EPOCH, state)
                if self.world.save_every == training.EPOCH - 1:
                    self.commit(phase, step, Stage.EPOCH, state, "epoch")
        self.commit_now(phase, step, Stage.END, state, "end")
        return state

    def at_border(self, phase: int, step: int, state: int) -> None:
        error = self.writer.take_error()
        if error is not None:
            self.save_failed(error)
        if self.stop is not None:
            self.leave(phase, step, Stage.STEP, state)
        if self.world.dice.random() < 0.3:
            try:
                self.history.flush()
            except StorageError as failed:
                self.save_failed(failed)
        due = step % self.world.save_every == 0 and (phase, step) != self.last_saved
        if due and step and not self.writer.busy:
            self.commit(phase, step, Stage.STEP, state, "step")

    def commit(self, phase: int, step: int, stage: Stage, state: int, reason: str) -> None:
        self.last_saved = phase, step
        held = training.snapshot(phase, step, stage, state)
        mark = self.history.mark()
        try:
            self.writer.submit(held, reason, mark)
        except OutlastError as error:
            self.save_failed(error)
            self.writer.submit(held, reason, mark)

    def commit_now(self, phase: int, step: int, stage: Stage, state: int, reason: str) -> None:
        self.status.activity = "saving"
        for last in (False, True):
            self.commit(phase, step, stage, state, reason)
            self.writer.wait()
            error = self.writer.take_error()
            if error is None:
                return
            if last:
                raise error
            self.save_failed(error)

    def leave(self, phase: int, step: int, stage: Stage, state: int) -> None:
        if self.stop == "superseded":
            self.fence()
        self.commit_now(phase, step, stage, state, "stop")
        raise Left

    def save_failed(self, error: BaseException) -> None:
        if isinstance(error, Superseded) or not isinstance(error, StorageError):
            raise error
        self.world.tell(self.process, "save failed:", error)

    def on_event(self, event: str, fields: dict[str, Any]) -> None:
        if event in ("saved", "sent"):
            self.status.last_checkpoint = fields["checkpoint"]
            self.status.tick()
            self.world.oracle.acknowledged(fields["checkpoint"])
        else:
            self.world.tell(self.process, event, *fields.values())
