"""Epochs of training and validation data without a model: what a training would read.

`read` follows `Trainer`: the real `Feed` and `Validation`, and Keras' order of events; only the
steps are left out. So a pipeline is read, killed and resumed in a fraction of a second.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from outlast.training.data import make_feed
from outlast.training.data_warnings import between
from outlast.training.keras_internals import evaluation
from outlast.training.state import random_state
from outlast.training.validation import Validation
from tests.support.training_harness import begin_process


@dataclass
class Reading:
    """What was read, in order: a digest per batch, with where it was read."""

    batches: list[tuple[str, int, str]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)  # before each batch, and before each epoch
    doubts: list[str] = field(default_factory=list)
    way: str = ""
    generators: Any = None


def read(
    make: Callable[[], dict[str, Any]],
    *,
    epochs: int = 3,
    limit: int = 1,
    after: Any = None,
    kill: int | None = None,
    patience: float = 0.0,
    at_batch: Callable[[], Any] = lambda: None,
) -> Reading:
    """Read all epochs in a new process, or those that are left `after` a state.

    `kill` ends the reading after that state. `limit` is the number of batches taken at once.
    `patience` are seconds before each state, in which threads may read ahead. `at_batch` is called
    after each batch.
    """
    begin_process()
    given: dict[str, Any] = {"y": None, "sample_weight": None, "batch_size": None}
    given.update({"steps_per_epoch": None, **make()})
    validation_data = given.pop("validation_data", None)
    steps = given.pop("validation_steps", None)
    hook = given.pop("at_epoch_end", lambda: None)
    feed = make_feed(**given, class_weight=None, shuffle=False, seed=7, max_queue_size=4)
    model = SimpleNamespace(
        distribute_strategy=tf.distribute.get_strategy(),
        steps_per_execution=1,
        stop_evaluating=False,
    )
    validation = Validation(
        model, validation_data, batch_size=None, steps=steps, freq=1, beside=given["x"]
    )
    doubts = [*feed.inexact_reasons(), *validation.inexact_reasons(), *between(feed, validation)]
    found = Reading(doubts=doubts)

    def evaluate(model: Any, arguments: Any, steps: Any, callbacks: Any) -> dict[str, Any]:
        iterator = evaluation.iterator_of(model)
        iterator.reset()
        with iterator.catch_stop_iteration():
            for _, _, batches in iterator:
                found.batches.append(("validation", epoch, digest(next(batches))))
        return {}

    def hold(batch: int) -> bool:
        time.sleep(patience)
        state = {
            "feed": feed.state(),
            "validation": validation.state(),
            "generators": {**random_state.capture(), **feed.unread()},
        }
        found.states.append((epoch, batch, copy.deepcopy(state), len(found.batches)))
        return kill is not None and len(found.states) > kill

    epoch, batch = 0, -1
    if after is None:
        feed.start()
    else:
        epoch, batch, state, _ = after
        validation.expect(state["validation"])
        feed.restore(state["feed"], validation.catch_up)
        validation.restore(state["validation"])
        random_state.restore(state["generators"])
    try:
        with mock.patch.object(evaluation, "evaluate", evaluate):
            while epoch < epochs:
                if batch < 0:
                    if hold(-1):
                        return found
                    feed.begin_epoch(epoch)
                    batch = 0
                while feed.more(batch):
                    if hold(batch):
                        return found
                    lot = feed.take(batch, limit)
                    for one in lot or ():
                        found.batches.append(("training", epoch, digest(one)))
                        batch += 1
                        at_batch()
                if validation_data is not None:
                    validation.run(None, feed.place())
                hook()
                epoch, batch = epoch + 1, -1
    finally:
        found.way = feed.how_resumed()
        found.doubts += [
            d
            for d in (*feed.inexact_reasons(), *validation.inexact_reasons())
            if d not in found.doubts
        ]
        feed.close()
        validation.close()
        found.generators = repr(random_state.capture())
    return found


def digest(batch: Any) -> str:
    """Return a digest of all tensors of a batch."""
    content = hashlib.md5(usedforsecurity=False)
    for leaf in keras.tree.flatten(batch):
        if isinstance(leaf, tf.RaggedTensor):
            leaf = leaf.flat_values
        if isinstance(leaf, tf.SparseTensor):
            leaf = leaf.values
        content.update(np.asarray(leaf).tobytes() if leaf is not None else b"-")
    return content.hexdigest()[:8]


def assert_exact(make: Callable[[], dict[str, Any]], **options: Any) -> Reading:
    """Read once untouched; then once for each of some kills, and compare. Returns the first."""
    untouched = read(make, **options)
    count = len(untouched.states)
    # In the first epoch, at the second's begin, in its midst, and before the last batch.
    second = next(at for at, (epoch, *_) in enumerate(untouched.states) if epoch == 1)
    for at in sorted({1, second, count // 2, count - 2}):
        epoch, batch, state, read_before = untouched.states[at]
        resumed = read(make, after=(epoch, batch, state, read_before), **options)
        expected = untouched.batches[read_before:]
        assert resumed.batches == expected, f"killed in epoch {epoch} at batch {batch}"
        assert resumed.generators == untouched.generators
    return untouched
