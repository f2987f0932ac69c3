"""A training whose storage is remote, with its spool, sender and writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.away import Bucket

SOON = (0.001, 0.01)  # seconds between two tries
LARGE = 1 << 40


class Machine:
    """An attempt as its training uses it: it begins, logs rows, saves and sends."""

    def __init__(
        self,
        folder: Path,
        bucket: Bucket,
        attempt: int = 1,
        *,
        keep: str = "last:3",
        limit: int = LARGE,
        fence: Callable[[], None] | None = None,
        disk: str = "",
    ) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.spool = Spool(folder / "spool" / "job" / "life", limit)
        self.spool.storage = self.disk = FaultyStorage(self.spool.storage, disk)
        self.store = CheckpointStore(bucket, attempt=attempt, fence=fence)
        self.newest, _ = self.store.begin()
        self.sender = Sender(
            self.spool,
            self.store,
            attempt,
            keep=Keep.parse(keep),
            on_event=lambda event, fields: self.events.append((event, fields)),
            pauses=SOON,
        )
        self.history = HistoryWriter(self.spool.storage, attempt)
        self.writer = Writer(
            self.store.beside(self.spool.storage),
            history_sync=self.history.sync,
            sender=self.sender,
            on_event=lambda event, fields: self.events.append((event, fields)),
        )
        self.step = 0 if self.newest is None else self.newest.progress.step

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step += 1
            self.history.append(
                {"kind": "step", "phase": 0, "step": self.step, "epoch": 0, "logs": {}}
            )

    def save(self, *, stage: int = Stage.STEP, **options: Any) -> None:
        """Save the current state, and wait until it is durable on this machine."""
        snapshot = sample_snapshot(self.step, stage=stage, **options)
        self.writer.submit(snapshot, "step", self.history.mark())
        self.writer.wait()

    def settled(self, within: float = 60.0) -> bool:
        """Wait until everything is sent; wait for an unreachable store at most `within` seconds."""
        until = time.monotonic() + within
        return self.sender.settle(lambda: until - time.monotonic())

    def told(self, event: str) -> list[str]:
        return [fields["checkpoint"] for name, fields in self.events if name == event]

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def die(self) -> None:
        """Disappear as after SIGKILL: only durable files stay."""
        self.writer.wait()
        self.sender.close()
        if self.sender._thread is not None:
            self.sender._thread.join(60)  # a dead process sends nothing more


def machines(tmp_path: Path, bucket: Bucket) -> Iterator[Callable[..., Machine]]:
    """Yield a function that makes machines; their senders are closed at the end."""
    made: list[Machine] = []

    def make(*arguments: Any, **options: Any) -> Machine:
        made.append(Machine(tmp_path, bucket, *arguments, **options))
        return made[-1]

    yield make
    for machine in made:
        machine.sender.close()


def steps_of(bucket: Bucket) -> list[int]:
    """Return the steps of the history, read from the store."""
    return [row["step"] for row in HistoryReader(open_storage(bucket.root)).rows()]


def committed(bucket: Bucket) -> list[str]:
    """Return the good checkpoints of the store."""
    store = CheckpointStore(open_storage(bucket.root))
    assert [store.verify(found) for found in store.ids()] == [[]] * len(store.ids())
    return [f"{found.step}.{int(found.stage)}" for found in store.ids()]
