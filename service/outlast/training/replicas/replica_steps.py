"""`ReplicaSteps`: one step of a model on all its replicas, each with its share of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import tree

from outlast.training.keras_internals import distribution
from outlast.training.replicas.shares import divides, share_of, size_of


class ReplicaSteps:
    """Runs a function of a batch on all replicas, as Keras' fit does under the strategy.

    A batch that the replicas can share evenly gives the bytes of Keras' fit. Of any other, each
    replica's loss counts as much as its rows, so gradients and metrics are those of one device.
    (Keras counts the loss of each replica alike then, and leaves the last ones without rows.)
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.count: int = strategy.num_replicas_in_sync

    def is_even(self, size: int) -> bool:
        """Return whether the replicas can share a batch of this size evenly."""
        return divides(size, self.count)

    def step(self, function: Callable[[Any], Any], *, even: bool = True) -> Callable[[Any], Any]:
        """Return a function of a global batch that returns the mean of the replicas' logs."""

        def on_all(batch: Any) -> Any:
            logs = self._run(function, batch) if even else self._run_weighted(function, batch)
            return distribution.mean_of_replicas(logs, self.strategy)

        return on_all

    def spec_of_share(self, spec: Any) -> Any:
        """Return the spec of a replica's share of a batch with this spec, for building a model."""

        def share(part: Any) -> Any:
            if not isinstance(part, tf.TensorSpec) or not part.shape.rank:
                return part
            size = part.shape[0]
            rows = size // self.count if size and self.is_even(size) else None
            return tf.TensorSpec([rows, *part.shape[1:]], part.dtype)

        return tree.map_structure(share, spec)

    def _run(self, function: Callable[[Any], Any], batch: Any) -> Any:
        return self.strategy.run(lambda: function(share_of(batch, self.count, _replica())))

    def _run_weighted(self, function: Callable[[Any], Any], batch: Any) -> Any:
        rows = size_of(batch)

        def part() -> Any:
            replica = _replica()
            mine = rows // self.count + tf.cast(replica < rows % self.count, tf.int32)
            return tf.cast(mine, tf.float64) / tf.cast(rows, tf.float64)

        with distribution.losses_weighted_by(part):
            return self._run(function, batch)

    # -- the loss of a batch ---------------------------------------------------------------

    def before(self, batch_loss: Any) -> Any:
        """Call `batch_loss.before` on all replicas."""
        return self.strategy.run(batch_loss.before)

    def after(self, batch_loss: Any, sums: Any, logs: dict[str, Any]) -> Any | None:
        """Return the loss of the global batch, as `batch_loss.after` does for one device."""
        if batch_loss.tracker is None:
            return batch_loss.after(None, logs)
        total, count, mean = self.strategy.run(batch_loss.parts, args=(sums,))
        if mean is not None:
            logs["loss"] = tf.cast(
                distribution.mean_of_replicas(mean, self.strategy), logs["loss"].dtype
            )
        totals, counts = (
            tf.reduce_sum(tf.stack(self.strategy.experimental_local_results(v)))
            for v in (total, count)
        )
        return tf.cast(tf.math.divide_no_nan(totals, counts), tf.float64)


def shared(batch: Any, strategy: Any) -> Any:
    """Return a batch of tensors with each of them split into the shares of a strategy's replicas.

    `strategy.run(step, args=(batch,))` gives each replica its share.
    """
    count = 1 if strategy is None else strategy.num_replicas_in_sync
    if count == 1 or (not tree.is_nested(batch) and not tf.is_tensor(batch)):
        return batch
    return strategy.experimental_distribute_values_from_function(
        lambda context: share_of(batch, count, context.replica_id_in_sync_group)
    )


def _replica() -> Any:
    return tf.distribute.get_replica_context().replica_id_in_sync_group
