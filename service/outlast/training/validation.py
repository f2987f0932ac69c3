"""`Validation`: validation during `fit` with Keras' evaluate, which a stop request interrupts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import keras
from keras.callbacks import Callback, CallbackList

from outlast.attempt.context import AttemptContext
from outlast.training.data.pydataset import DRAWN_BY_WORKERS, has_workers
from outlast.training.data.pydataset_workers import enqueue
from outlast.training.data.shared_objects import shares
from outlast.training.data.source import Plain
from outlast.training.data.tfdata_parts import remove_stale_locks
from outlast.training.data.tfdata_passes import Passes
from outlast.training.data.torch import Iterated, generators_of, set_generators
from outlast.training.keras_internals import data_adapters, evaluation
from outlast.training.state import random_state
from outlast.training.state.object_state import ObjectState


class StopProbe(Callback):  # type: ignore[misc]
    """Ends evaluate early after a stop request, and reports progress to the heartbeat."""

    async_safe = True

    def __init__(self, ctx: AttemptContext) -> None:
        super().__init__()
        self._ctx = ctx
        self.last: int | None = None
        """Index of the batch after which workers keep what they have fetched ahead."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ctx.status.tick()
        if self._ctx.stop.reason is not None:
            self.model.stop_evaluating = True
        if self.last is not None and batch >= self.last:
            evaluation.await_workers(self.model)


class Validation:
    """The validation data of one `fit` call, of any kind that `Model.evaluate` accepts.

    `freq` is Keras' `validation_freq`: every n epochs, or a list of epochs, counted from 1.
    `beside` is the training data.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        batch_size: int | None,
        steps: int | None,
        freq: int | list[int],
        beside: Any = None,
    ) -> None:
        self.model = model
        self.freq = freq
        self.runs = 0  # evaluations done so far
        self._given = data is not None
        self._steps = steps
        self._beside = beside
        self._own: ObjectState | None = None  # what a PyDataset changes in itself
        self._workers_draw = False
        self._in_order = True  # whether nothing is read ahead of an evaluation
        self._drawn_ahead = False
        self._arguments: dict[str, Any] = {}
        self.passes: Passes | None = None  # of a tf.data pipeline
        self._at: list[tuple[int, int]] = []  # the place of the training data at each evaluation
        self._replayed: int | None = None  # evaluations that a replay has repeated
        self._replay_seconds = 0.0
        evaluation.forget_iterator(model)
        if self._given:
            x, y, sample_weight = data_adapters.unpack(data)
            self._arguments = {
                "x": x,
                "y": y,
                "sample_weight": sample_weight,
                "batch_size": batch_size,
            }
            if data_adapters.is_tf_dataset(x):
                self.passes = Passes(x)
            elif isinstance(x, keras.utils.PyDataset):
                self._own = ObjectState("validation_data", x)

    def due(self, model: Any, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, ends with a validation."""
        return self._given and evaluation.is_due(model, epoch, self.freq)

    def add_probe(self, callbacks: CallbackList, ctx: AttemptContext) -> StopProbe:
        """Append a `StopProbe` to the callbacks and return it."""
        probe = StopProbe(ctx)
        probe.set_model(self.model)
        x = self._arguments.get("x")
        if self._steps and isinstance(x, keras.utils.PyDataset) and self._leaves_batches(x):
            probe.last = self._steps - 1
        callbacks.callbacks.append(probe)
        return probe

    def run(self, callbacks: CallbackList, place: tuple[int, int]) -> dict[str, Any]:
        """Evaluate as `Model.fit` does, with one iterator for all epochs, and return the logs.

        `place` is the one that the training data has reached.
        """
        self._iterator()
        if self.passes is not None:
            self.passes.expect_reading()
        before = {} if self._in_order else random_state.capture()
        results = evaluation.evaluate(self.model, self._arguments, self._steps, callbacks)
        if before and random_state.differing(before, random_state.capture()):
            self._drawn_ahead = True
        if self.passes is not None and self.model.stop_evaluating is False:
            self.passes.end()
        self.runs += 1
        self._at.append(place)
        return results

    def content(self) -> str | None:
        """Return a digest of a tf.data pipeline, or None."""
        return None if self.passes is None else self.passes.pipeline.content

    def drawn(self) -> str | None:
        """Return a digest of the seeds of a tf.data pipeline, or None."""
        return None if self.passes is None else self.passes.pipeline.seeds

    def inexact_reasons(self) -> list[str]:
        """Return the reasons why a resume may evaluate on different batches, each with a remedy."""
        if self._workers_draw:
            return [DRAWN_BY_WORKERS]
        if self._drawn_ahead:
            return [
                "the generator draws from a global random generator, and a thread reads it ahead; "
                "give it one of its own, such as np.random.default_rng(7)"
            ]
        return [] if self.passes is None else self.passes.pipeline.inexact_reasons()

    def state(self) -> Plain:
        """Return the state of the data as plain data, for `restore`."""
        x = self._arguments.get("x")
        generators = generators_of(x) if data_adapters.is_torch_dataloader(x) else None
        return {
            "runs": self.runs,
            "at": [list(place) for place in self._at],
            "torch": generators,
            "own": None if self._own is None else self._own.capture(),
        }

    def expect(self, state: Plain) -> None:
        """Take over the state of a checkpoint, before the training data is restored."""
        self.runs = state["runs"]
        self._at = [(index, taken) for index, taken in state["at"]]
        self._replayed = 0

    def catch_up(self, index: int, taken: int) -> None:
        """Repeat the evaluations that were done when the training data had reached this place."""
        while (
            self._replayed is not None
            and self._replayed < self.runs
            and self._at[self._replayed] <= (index, taken)
        ):
            self._replayed += 1
            if self._moves_on(self._arguments.get("x")):
                started = time.perf_counter()
                self._replay()
                self._replay_seconds += time.perf_counter() - started

    def restore(self, state: Plain) -> float | None:
        """Bring the validation data to its state after the evaluations so far.

        Arrays need nothing. A torch DataLoader needs torch's generators. A tf.data pipeline is
        opened as often as before, because a shuffle draws a seed each time. A pipeline with hidden
        state, and a generator, are replayed. Returns the seconds of the replay, or None without
        one.
        """
        x = self._arguments.get("x")
        if self._at:
            self.catch_up(*max(self._at))
        if self.runs and (state["torch"] is not None or self._own is not None):
            self._iterator()  # reads its first batches now, before the generators are restored
        if state["torch"] is not None:
            set_generators(x, state["torch"])
        if self._own is not None:
            self._own.restore(state["own"])
        return self._replay_seconds if self.runs and self._moves_on(x) else None

    def stale_locks(self, before: float) -> list[str]:
        """Remove what killed attempts left locked before a time, and return the paths."""
        if self.passes is None:
            return []
        return remove_stale_locks(self.passes.pipeline.parts.cache_files(), before)

    def _replay(self) -> None:
        """Repeat one evaluation, as far as it changes the data."""
        consume = self._is_consumed(self._arguments.get("x"))
        iterator = self._iterator()
        if self.passes is not None:
            self.passes.expect_reading()
        iterator.reset()
        with iterator.catch_stop_iteration():
            for _, _, batches in iterator:
                for _ in range(self.model.steps_per_execution if consume else 0):
                    next(batches)
                    evaluation.await_workers(self.model)
                if not consume and iterator.num_batches is None:
                    break
        if self.passes is not None:
            if consume:
                self.passes.end()
            else:
                self.passes.begin_unread()

    def close(self) -> None:
        """Release the data and end its workers, even after an interrupted evaluation."""
        evaluation.release_iterator(self.model)

    def _moves_on(self, x: Any) -> bool:
        """Return whether an evaluation changes the next one, apart from torch's generators."""
        if isinstance(x, keras.utils.PyDataset):
            return _has_hooks(x) or self._leaves_batches(x)
        return data_adapters.is_tf_dataset(x) or isinstance(x, Iterator)

    def _is_consumed(self, x: Any) -> bool:
        """Return whether a replay must read the batches, and not only open the passes."""
        if self.passes is not None:
            return self.passes.must_be_read
        # An evaluation begins with the batches that Keras' workers fetched ahead.
        return isinstance(x, Iterator) or x.workers > 0

    def _leaves_batches(self, x: Any) -> bool:
        """Return whether an evaluation leaves batches that workers fetched ahead."""
        return x.workers > 0 and (self._steps is not None or x.num_batches is None)

    def _iterator(self) -> Any:
        kept = evaluation.iterator_of(self.model)
        if kept is not None:
            return kept
        x = self._arguments["x"]
        watched = isinstance(x, keras.utils.PyDataset) and has_workers(x)
        own = ObjectState("validation_data", x) if watched else None
        before = (random_state.capture(), repr(own.capture())) if own is not None else None
        arguments = {**self._arguments, "x": self._with_our_workers()}
        made = evaluation.keep_iterator(self.model, arguments, self._steps, self.passes)
        if before is not None and own is not None:
            drawn = random_state.differing(before[0], random_state.capture())
            self._workers_draw = bool(drawn) or repr(own.capture()) != before[1]
        return made

    def _with_our_workers(self) -> Any:
        """Return the data, in Keras' adapter over our workers if it has worker processes."""
        x = self._arguments["x"]
        if self._arguments["y"] is None and self._arguments["sample_weight"] is None:
            if isinstance(x, keras.utils.PyDataset) and x.workers > 0 and x.use_multiprocessing:
                adapter = data_adapters.PyDatasetAdapter(x)
                adapter.enqueuer = enqueue(x, x)
                return adapter
            if data_adapters.is_torch_dataloader(x) and x.num_workers > 0:
                return data_adapters.torch_adapter(x, Iterated(x))
            if isinstance(x, Iterator):
                shared = shares(x, self._beside)
                before = random_state.capture()
                generator = data_adapters.OrderedGenerator(x)
                drawn = random_state.differing(before, random_state.capture())
                generator.in_order = shared or bool(drawn)
                self._in_order = generator.in_order
                return generator
        return x


def _has_hooks(x: Any) -> bool:
    kind, base = type(x), keras.utils.PyDataset
    return (kind.on_epoch_begin, kind.on_epoch_end) != (base.on_epoch_begin, base.on_epoch_end)
