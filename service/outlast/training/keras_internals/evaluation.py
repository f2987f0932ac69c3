"""`Model.evaluate` as `Model.fit` calls it, with one iterator for all epochs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from keras.src.backend.tensorflow.trainer import TFEpochIterator

from outlast.training.keras_internals import distribution


def is_due(model: Any, epoch: int, freq: int | list[int]) -> bool:
    """Return whether an epoch, counted from 0, ends with a validation."""
    return bool(model._should_eval(epoch, freq))


def iterator_of(model: Any) -> Any:
    """Return the model's validation iterator, or None."""
    return getattr(model, "_eval_epoch_iterator", None)


def keep_iterator(
    model: Any, arguments: dict[str, Any], steps: int | None, passes: Any = None
) -> Any:
    """Make the model's validation iterator, store it in the model and return it.

    With `passes`, it opens its passes by iterating that.
    """
    model._eval_epoch_iterator = TFEpochIterator(
        **arguments,
        distribute_strategy=model.distribute_strategy,
        steps_per_execution=model.steps_per_execution,
        steps_per_epoch=steps,
        shuffle=False,
    )
    if passes is not None:
        if model.distribute_strategy.num_replicas_in_sync > 1:
            # A pass yields the shares of all replicas.
            passes.dataset = model._eval_epoch_iterator._distributed_dataset
        model._eval_epoch_iterator._distributed_dataset = passes
    return model._eval_epoch_iterator


def forget_iterator(model: Any) -> None:
    """Make the next evaluation create a new iterator."""
    model._eval_epoch_iterator = None


def await_workers(model: Any) -> None:
    """Wait until the workers of the kept iterator have fetched ahead as far as they can.

    An evaluation that ends before its data does leaves these batches to the next one. How many they
    are must not depend on how fast the workers are.
    """
    iterator = iterator_of(model)
    enqueuer = getattr(getattr(iterator, "data_adapter", None), "enqueuer", None)
    while enqueuer is not None and enqueuer.is_running():
        filler = enqueuer.run_thread
        blocked = getattr(enqueuer.future_queue.not_full, "_waiters", ())
        if filler is None or not filler.is_alive() or blocked:
            return  # all batches are there, or no more fit into the queue
        time.sleep(0.001)


def release_iterator(model: Any) -> None:
    """Release the iterator and end its workers."""
    iterator = iterator_of(model)
    if iterator is not None:
        enqueuer = getattr(iterator.data_adapter, "enqueuer", None)
        if enqueuer is not None:
            enqueuer.stop()
        del model._eval_epoch_iterator


def evaluate(
    model: Any, arguments: dict[str, Any], steps: int | None, callbacks: Any
) -> dict[str, Any]:
    """Evaluate with the model's validation iterator and return the logs."""
    with _not_built_again(model):
        logs: dict[str, Any] = model.evaluate(
            **arguments,
            steps=steps,
            callbacks=callbacks,
            return_dict=True,
            _use_cached_eval_dataset=True,
        )
    return logs


@contextmanager
def _not_built_again(model: Any) -> Iterator[None]:
    """Keep Keras from building a model under a strategy, which is built, from a validation batch.

    It reads a batch for that in each evaluation, and one of a generator would be lost.
    """
    if distribution.strategy_of(model) is None:
        yield
        return
    vars(model)["_maybe_symbolic_build"] = lambda iterator=None, data_batch=None: None
    try:
        yield
    finally:
        del vars(model)["_maybe_symbolic_build"]
