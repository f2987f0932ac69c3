"""An attempt that writes history, as a training does."""

from __future__ import annotations

from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot


def step(number: int, **more: object) -> dict[str, object]:
    return {"kind": "step", "phase": 0, "step": number, "logs": {"loss": 1 / number}, **more}


class Attempt:
    """An attempt as the training runs it: begin, train, save."""

    def __init__(self, storage: Storage, number: int) -> None:
        self.store = CheckpointStore(storage, attempt=number)
        resumed, _ = self.store.begin()
        self.at = resumed.progress.step if resumed else 0
        self.history = HistoryWriter(storage, number)
        self.number = number

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.at += 1
            self.history.append(step(self.at, by=self.number))

    def save(self) -> None:
        mark = self.history.mark()
        self.history.sync(mark)
        self.store.save(sample_snapshot(self.at), reason="step", history=mark)


def read(storage: Storage) -> list[tuple[int, int]]:
    return [(row["step"], row["by"]) for row in HistoryReader(storage).rows()]
