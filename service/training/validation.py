"""Validation inside fit: Keras' own evaluate, with an eye on the stop flag between batches."""

from __future__ import annotations

from typing import Any

from keras.callbacks import Callback, CallbackList
from keras.src.backend.tensorflow.trainer import TFEpochIterator
from keras.src.trainers.data_adapters import data_adapter_utils

from service.context import AttemptContext


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
        self._given = data is not None
        self._arguments: dict[str, Any] = {}
        model._eval_epoch_iterator = None
        if self._given:
            x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(data)
            self._arguments = {
                "x": x,
                "y": y,
                "sample_weight": sample_weight,
                "batch_size": batch_size,
            }
            self._steps = steps

    def due(self, model: Any, epoch: int) -> bool:
        return self._given and bool(model._should_eval(epoch, self.freq))

    def add_probe(self, callbacks: CallbackList, ctx: AttemptContext) -> StopProbe:
        probe = StopProbe(ctx)
        probe.set_model(self.model)
        callbacks.callbacks.append(probe)
        return probe

    def run(self, callbacks: CallbackList) -> dict[str, Any]:
        """Evaluate as `Model.fit` does, with its iterator kept from epoch to epoch."""
        if getattr(self.model, "_eval_epoch_iterator", None) is None:
            self.model._eval_epoch_iterator = TFEpochIterator(
                **self._arguments,
                distribute_strategy=self.model.distribute_strategy,
                steps_per_execution=self.model.steps_per_execution,
                steps_per_epoch=self._steps,
                shuffle=False,
            )
        results: dict[str, Any] = self.model.evaluate(
            **self._arguments,
            steps=self._steps,
            callbacks=callbacks,
            return_dict=True,
            _use_cached_eval_dataset=True,
        )
        return results

    def close(self) -> None:
        if getattr(self.model, "_eval_epoch_iterator", None) is not None:
            del self.model._eval_epoch_iterator
