"""Data is prepared while the model trains: it is read ahead, by the requested number of workers."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest

from tests.support.data_models import plain_model
from tests.support.data_samples import BATCH, Batches, X, Y
from tests.support.training_harness import Script, train

PATIENCE_S = 60  # only a failure takes that long
PEEKED = 2  # batches that Keras looks at before a training


class Counted:
    """A stream that counts the batches requested from it."""

    def __init__(self) -> None:
        self.asked = 0
        self.changed = threading.Condition()

    def batches(self) -> Iterator[Any]:
        while True:
            with self.changed:
                self.asked += 1
                self.changed.notify_all()
            yield X[:BATCH], Y[:BATCH]

    def wait_for(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.asked >= count, PATIENCE_S)


@pytest.mark.parametrize("size", [1, 4])
def test_a_generator_is_read_ahead_by_max_queue_size(tmp_path: Path, size: int) -> None:
    stream = Counted()
    # One more is in the reader's hand, waiting for its place in the queue.
    full = PEEKED + 1 + size + 1
    found: list[Any] = []

    class Waiting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == PEEKED:  # the first batch that comes out of the queue
                found.append(stream.wait_for(full))

    # The epoch is long enough; the reader does not go on into another one.
    steps = full + 2
    arguments = {"x": stream.batches(), "steps_per_epoch": steps, "max_queue_size": size}
    train(Script(plain_model, arguments, lambda: [Waiting()]), tmp_path)
    assert found == [True]
    assert stream.asked == steps


class Meeting(Batches):
    """Returns a batch only while another worker is returning one too."""

    def __init__(self, barrier: Any, **options: Any) -> None:
        super().__init__(max_queue_size=4, **options)
        self.barrier = barrier
        self.peeked = 0
        self.trainer = (os.getpid(), threading.get_ident())

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        if (os.getpid(), threading.get_ident()) == self.trainer:
            self.peeked += 1
            assert self.peeked <= PEEKED  # the workers do the rest
        else:
            assert self.use_multiprocessing == (os.getpid() != self.trainer[0])
            self.barrier.wait(PATIENCE_S)
        return super().__getitem__(i)


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_workers_of_a_pydataset_run_in_parallel(tmp_path: Path, processes: bool) -> None:
    barrier = multiprocessing.get_context("fork").Barrier(2) if processes else threading.Barrier(2)
    data = Meeting(barrier, workers=2, use_multiprocessing=processes)
    end = train(Script(plain_model, {"x": data, "epochs": 2, "shuffle": False}), tmp_path)
    assert len([row for row in end.rows if row["kind"] == "step"]) == 12
    assert data.peeked == PEEKED
