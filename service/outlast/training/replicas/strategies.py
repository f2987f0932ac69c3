"""Which strategies a training accepts, and what it refuses under one with several replicas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from outlast.training.errors import NotSupported
from outlast.training.keras_internals import data_adapters, distribution
from outlast.training.keras_internals.models import all_layers, was_compiled_for_xla
from outlast.training.replicas.job_strategy import wanted_replicas
from outlast.training.replicas.replica_steps import ReplicaSteps

_KNOWN = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)


def replicas_of(model: Any) -> ReplicaSteps | None:
    """Return the replicas of a model, or None if it was made outside of any strategy."""
    strategy = distribution.strategy_of(model)
    return None if strategy is None else ReplicaSteps(strategy)


def scope_of(model: Any) -> AbstractContextManager[Any]:
    """Return the scope of a model's strategy, in which its variables must be created."""
    strategy = distribution.strategy_of(model)
    return nullcontext() if strategy is None else strategy.scope()


def strategy_of_all(parts: Iterable[Any]) -> Any:
    """Return the strategy of the first part that has one, or None."""
    return next(filter(None, map(distribution.strategy_of, parts)), None)


def check_scopes(parts: Iterable[Any]) -> None:
    """Raise `NotSupported` unless all models and optimizers are of one strategy that can train."""
    kinds = keras.Model | keras.optimizers.Optimizer
    made = [part for part in parts if isinstance(part, kinds)]
    for part in made:
        strategy = distribution.strategy_of(part)
        _check_count(strategy)
        _check_current(strategy)
        if strategy is not distribution.strategy_of(made[0]):
            raise NotSupported(
                field="state",
                problem=f"{part.name!r} and {made[0].name!r} are of different strategies",
                hint="Create all models and optimizers in the scope of one strategy.",
            )
        if strategy is not None and type(strategy) not in _KNOWN:
            raise NotSupported(
                field="model",
                problem=f"it was created under a {type(strategy).__name__}",
                hint="Use tf.distribute.MirroredStrategy, or no strategy and --replicas.",
            )


def check_strategy(model: Any, *, jit_compile: Any = None) -> None:
    """Raise `NotSupported` for what `fit` cannot train under the strategy of a model."""
    check_scopes([model])
    strategy = distribution.strategy_of(model)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    _check_optimizer(model, strategy)
    if jit_compile is True or (jit_compile is None and was_compiled_for_xla(model)):
        raise NotSupported(
            field="jit_compile",
            problem="XLA cannot compile a step that runs on several devices",
            hint="Compile the model without jit_compile=True, or pass fit(jit_compile=False).",
        )


@contextmanager
def refusing_late_variables(replicas: ReplicaSteps | None) -> Iterator[None]:
    """Raise `NotSupported` if a step that is traced in the block creates variables."""
    try:
        yield
    except Exception as error:
        late = "tf.Variables created on the first call" in str(error)
        if replicas is None or not (late or type(error).__name__ == "UnliftableError"):
            raise
        raise NotSupported(
            field="model",
            problem="its step creates variables when it first runs, which TensorFlow cannot do "
            "under a strategy",
            hint="Create them before, in strategy.scope(): build further optimizers, and give "
            "keras.random a SeedGenerator.",
        ) from error


def check_validation(model: Any, data: Any, steps: int | None) -> None:
    """Raise `NotSupported` for validation data that replicas would read ahead of an evaluation.

    TensorFlow reads ahead for the devices, and what a generator has yielded would be lost.
    """
    strategy = distribution.strategy_of(model)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    x = data_adapters.unpack(data)[0] if data is not None else None
    partly = bool(steps) and not data_adapters.can_convert_arrays((x,))
    if isinstance(x, Iterator) or (partly and not data_adapters.is_tf_dataset(x)):
        raise NotSupported(
            field="validation_data",
            problem=f"with several replicas, it must not be a {type(x).__name__} of which an "
            "evaluation reads a part",
            hint="Pass arrays or a tf.data.Dataset, or leave out validation_steps.",
        )


def check_last_batch(model: Any, replicas: int, samples: int) -> None:
    """Raise `NotSupported` if a batch is too small for a model that normalizes by batches."""
    if samples >= replicas:
        return
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized:
            raise NotSupported(
                field="batch_size",
                problem=f"a batch has {samples} samples for {replicas} replicas, and "
                f"{layer.name!r} cannot normalize a replica's empty share",
                hint="Choose a batch_size that leaves a larger last batch, or use "
                "BatchNormalization(synchronized=True).",
            )


def _check_count(strategy: Any) -> None:
    count = 1 if strategy is None else strategy.num_replicas_in_sync
    wanted = wanted_replicas()
    if wanted is not None and wanted != count:
        raise NotSupported(
            field="model",
            problem=f"it has {_replicas(count)}, and the job has {_replicas(wanted)}",
            hint="Make it after the import of outlast, and outside of other strategies; or start "
            "a new job with another --replicas.",
        )


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _check_current(strategy: Any) -> None:
    current = distribution.current_strategy()
    if current is None or current is strategy or current.num_replicas_in_sync == 1:
        return
    raise NotSupported(
        field="model",
        problem="it was not created under the strategy that is current now, which has "
        f"{current.num_replicas_in_sync} replicas",
        hint="Create and compile the model in the scope of that strategy.",
    )


def _check_optimizer(model: Any, strategy: Any) -> None:
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return
    if distribution.strategy_of(optimizer) is not strategy:
        raise NotSupported(
            field="optimizer",
            problem="it was created outside of the scope of the model's strategy",
            hint="Create the optimizer, and compile the model, in strategy.scope().",
        )
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if getattr(inner, option, None) and (option[0] == "g" or inner.use_ema):
            raise NotSupported(
                field="optimizer",
                problem=f"{option} does not work under a strategy with several replicas; "
                "TensorFlow cannot update all replicas within a condition",
                hint=f"Leave {option} out"
                + (", with a larger batch_size." if option[0] == "g" else "."),
            )
