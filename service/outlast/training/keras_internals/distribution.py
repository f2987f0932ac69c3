"""Private parts of tf.distribute and of Keras' use of it: strategies, and variables with copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from keras.src.backend.tensorflow.core import Variable
from keras.src.backend.tensorflow.trainer import reduce_per_replica
from keras.src.losses import loss as loss_module
from keras.src.ops.operation import Operation
from tensorflow.python.distribute import distribute_lib, values


def strategy_of(part: Any) -> Any:
    """Return the strategy in whose scope a model or optimizer was made, or None."""
    for name in ("_distribute_strategy", "_distribution_strategy"):
        found = getattr(part, name, None)
        if found is not None and found.extended is not _default().extended:
            return found
    return None


def current_strategy() -> Any:
    """Return the strategy whose scope is current, or None."""
    return distribute_lib.get_strategy() if distribute_lib.has_strategy() else None


def _default() -> Any:
    return distribute_lib._get_default_strategy()


def before_first_part(make_ready: Callable[[], None]) -> None:
    """Call a function once, before the script makes its first part of a model.

    That is a layer, model, optimizer or variable of Keras, or it asks for the current strategy. (An
    optimizer asks for it after it has made its first variable.)
    """
    make, fill = Operation.__new__, Variable.__init__
    ask, look = tf.distribute.get_strategy, tf.distribute.has_strategy

    def ready() -> None:
        Operation.__new__, Variable.__init__ = staticmethod(make), fill
        tf.distribute.get_strategy, tf.distribute.has_strategy = ask, look
        make_ready()

    def made(kind: Any, *arguments: Any, **options: Any) -> Any:
        ready()
        return make(kind, *arguments, **options)

    def filled(variable: Any, *arguments: Any, **options: Any) -> None:
        ready()
        fill(variable, *arguments, **options)

    def asked() -> Any:
        ready()
        return ask()

    def looked() -> Any:
        ready()
        return look()

    Operation.__new__, Variable.__init__ = staticmethod(made), filled
    tf.distribute.get_strategy, tf.distribute.has_strategy = asked, looked


def copies(variable: Any) -> tuple[Any, ...]:
    """Return the copies of a raw variable, one a replica; itself if it has none."""
    if isinstance(variable, values.DistributedVariable):
        return tuple(variable.values)
    return (variable,)


def is_summed_up(variable: Any) -> bool:
    """Return whether each replica has a value of its own, and a reader outside gets an aggregate.

    These are the variables of metrics.
    """
    return isinstance(variable, values.SyncOnReadVariable)


def may_differ(variable: Any) -> bool:
    """Return whether replicas may assign different values to their copies of a raw variable.

    What is trained is the same on all replicas, because the optimizer updates all copies at once.
    """
    if not isinstance(variable, values.DistributedVariable):
        return False
    alone = variable.aggregation == tf.VariableAggregation.NONE
    return is_summed_up(variable) or (alone and not variable.trainable)


def containers_of(variables: list[Any]) -> list[Any]:
    """Return raw variables with each copy replaced by the variable that it is one of, each once."""
    found = {id(whole): whole for whole in map(_container, variables)}
    return list(found.values())


def _container(variable: Any) -> Any:
    for holder in (variable, getattr(variable, "handle", None)):
        found = getattr(holder, "_distributed_container", None)
        if found is not None and (whole := found()) is not None:
            return whole
    return variable


def mean_of_replicas(logs: Any, strategy: Any) -> Any:
    """Return the logs of all replicas as Keras' fit reports them."""
    return reduce_per_replica(logs, strategy, reduction="auto")


@contextmanager
def losses_weighted_by(share: Callable[[], Any]) -> Iterator[None]:
    """While tracing, weight each replica's loss by `share()` instead of 1 / replicas.

    `share` returns the replica's part of the batch: a float64 scalar, which may be 0.
    """
    before = loss_module.scale_loss_for_distribution, loss_module.unscale_loss_for_distribution

    def scale(value: Any) -> Any:
        part = share()
        weighted = value * tf.cast(part, value.dtype)
        return tf.where(part > 0, weighted, tf.zeros_like(weighted))

    def unscale(value: Any) -> Any:
        part = share()
        return tf.math.divide_no_nan(value, tf.cast(part, value.dtype))

    loss_module.scale_loss_for_distribution = scale
    loss_module.unscale_loss_for_distribution = unscale
    try:
        yield
    finally:
        loss_module.scale_loss_for_distribution, loss_module.unscale_loss_for_distribution = before
