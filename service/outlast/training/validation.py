"""Validation inside fit: Keras' own evaluate, with an eye on the stop flag between batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import keras
from keras.callbacks import Callback, CallbackList

from outlast.attempt.context import AttemptContext
from outlast.training.data.pydataset_workers import enqueue
from outlast.training.data.source import Plain
from outlast.training.data.tfdata_graph import Pipeline
from outlast.training.data.torch import Iterated, generators_of, set_generators
from outlast.training.keras_internals import data_adapters, evaluation


class StopProbe(Callback):  # type: ignore[misc]
    """Ends evaluate early when a stop was asked for, and shows that validation moves."""

    async_safe = True

    def __init__(self, ctx: AttemptContext) -> None:
        super().__init__()
        self._ctx = ctx

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._ctx.status.tick()
        if self._ctx.stop.reason is not None:
            self.model.stop_evaluating = True


class Validation:
    """The validation data of one fit, in any form that `Model.evaluate` takes.

    freq: every so many epochs, or the list of epochs (counted from 1), as in Keras.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        batch_size: int | None,
        steps: int | None,
        freq: int | list[int],
    ) -> None:
        self.model = model
        self.freq = freq
        self.runs = 0  # evaluations done so far
        self._given = data is not None
        self._steps = steps
        self._arguments: dict[str, Any] = {}
        evaluation.forget_iterator(model)
        if self._given:
            x, y, sample_weight = data_adapters.unpack(data)
            self._arguments = {
                "x": x,
                "y": y,
                "sample_weight": sample_weight,
                "batch_size": batch_size,
            }

    def due(self, model: Any, epoch: int) -> bool:
        return self._given and evaluation.is_due(model, epoch, self.freq)

    def add_probe(self, callbacks: CallbackList, ctx: AttemptContext) -> StopProbe:
        probe = StopProbe(ctx)
        probe.set_model(self.model)
        callbacks.callbacks.append(probe)
        return probe

    def run(self, callbacks: CallbackList) -> dict[str, Any]:
        """Evaluate as `Model.fit` does, with its iterator kept from epoch to epoch."""
        self._iterator()
        results = evaluation.evaluate(self.model, self._arguments, self._steps, callbacks)
        self.runs += 1
        return results

    def state(self) -> Plain:
        """Return, as plain data, what `restore` needs to find the data as it is now."""
        x = self._arguments.get("x")
        generators = generators_of(x) if data_adapters.is_torch_dataloader(x) else None
        return {"runs": self.runs, "torch": generators}

    def restore(self, state: Plain) -> float | None:
        """Bring the validation data to where the evaluations of `state` have left it.

        Arrays need nothing, a torch DataLoader torch's generators. A tf.data pipeline is opened as
        often as before (a shuffle draws a seed each time); one with hidden state, and a generator,
        is run through again. Returns the seconds that took, None where nothing had to be done.
        """
        self.runs = state["runs"]
        x = self._arguments.get("x")
        started = time.perf_counter()
        replayed = bool(self.runs) and self._moves_on(x)
        if replayed:
            self._replay(consume=self._is_consumed(x))
        if state["torch"] is not None:
            if self.runs:
                self._iterator()  # takes its look at the first batches now, not later
            set_generators(x, state["torch"])
        return time.perf_counter() - started if replayed else None

    def _replay(self, *, consume: bool) -> None:
        iterator = self._iterator()
        for _ in range(self.runs):
            iterator.reset()
            with iterator.catch_stop_iteration():
                for _, _, batches in iterator:
                    for _ in range(self.model.steps_per_execution if consume else 0):
                        next(batches)
                    if not consume and iterator.num_batches is None:
                        break

    def close(self) -> None:
        """Let go of the data; ends its workers, also where an evaluation was left early."""
        evaluation.release_iterator(self.model)

    def _moves_on(self, x: Any) -> bool:
        """Whether evaluating changes what the next evaluation sees, torch's generators aside."""
        if isinstance(x, keras.utils.PyDataset):
            return _has_hooks(x) or self._leaves_batches(x)
        return data_adapters.is_tf_dataset(x) or isinstance(x, Iterator)

    def _is_consumed(self, x: Any) -> bool:
        """Whether the batches themselves have to be taken again, not only the passes opened."""
        if data_adapters.is_tf_dataset(x):
            return Pipeline(x).stateful is not None
        # What Keras' workers have fetched ahead is what an evaluation begins with.
        return isinstance(x, Iterator) or x.workers > 0

    def _leaves_batches(self, x: Any) -> bool:
        """Whether an evaluation ends before the batches that workers have fetched ahead."""
        return x.workers > 0 and (self._steps is not None or x.num_batches is None)

    def _iterator(self) -> Any:
        kept = evaluation.iterator_of(self.model)
        if kept is not None:
            return kept
        arguments = {**self._arguments, "x": self._with_our_workers()}
        return evaluation.keep_iterator(self.model, arguments, self._steps)

    def _with_our_workers(self) -> Any:
        """Return the data, adapted as Keras does, where we start its worker processes."""
        x = self._arguments["x"]
        if self._arguments["y"] is None and self._arguments["sample_weight"] is None:
            if isinstance(x, keras.utils.PyDataset) and x.workers > 0 and x.use_multiprocessing:
                adapter = data_adapters.PyDatasetAdapter(x)
                adapter.enqueuer = enqueue(x, x)
                return adapter
            if data_adapters.is_torch_dataloader(x) and x.num_workers > 0:
                return data_adapters.torch_adapter(x, Iterated(x))
        return x


def _has_hooks(x: Any) -> bool:
    kind, base = type(x), keras.utils.PyDataset
    return (kind.on_epoch_begin, kind.on_epoch_end) != (base.on_epoch_begin, base.on_epoch_end)
