"""`OneThreadPerOp`: K training steps in which each op uses one thread.

The number of threads per op is fixed for a process before it starts, with one exception: functions
that a tf.data pipeline calls obey `tf.data.ThreadingOptions.max_intra_op_parallelism`. So an
infinite pipeline makes the calls, and each of its elements is the logs of K steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from outlast.training.keras_internals.pipelines import definition_of
from outlast.training.step.program import nodes_of

# The steps stay a separate function in the pipeline, so TensorFlow optimizes them as usual. If
# inlined, they would not be optimized, and would round differently.
NOT_INLINED = {"_noinline": True}

# Stateful ops that change variables or call functions. All other stateful ops have side effects,
# print, or draw from hidden state; a step with one of them does not run in a pipeline.
_PLAIN = frozenset(
    {
        "Assert",
        "AssignAddVariableOp",
        "AssignSubVariableOp",
        "AssignVariableOp",
        "Case",
        "For",
        "If",
        "PartitionedCall",
        "ReadVariableOp",
        "StatefulPartitionedCall",
        "VarIsInitializedOp",
        "VariableShape",
        "While",
    }
)
_OUT_OF_RANGE = "Function invocation produced OutOfRangeError"


class OneThreadPerOp:
    """Runs K steps per call, with one thread per op.

    Calls raise the errors of the steps. TensorFlow prepends the name of the pipeline's iterator.

    Args:
        call: `tf.function` with the attributes `NOT_INLINED`. It takes indices, int64 of shape
            (K, size), and the number of rows to train, and returns logs and batch losses.
        size: Samples per batch, or None for any number.
    """

    def __init__(self, call: Callable[[Any, Any], Any], size: int | None) -> None:
        some = tf.zeros([1, size or 1], tf.int64)
        self._inputs = tf.Variable(some, shape=[None, size], trainable=False)
        self._count = tf.Variable(0, trainable=False, dtype=tf.int32)
        self._has_loss = True

        def train(_: Any) -> Any:
            values, loss = call(self._inputs.read_value(), self._count.read_value())
            self._has_loss = loss is not None
            return tuple(values) if loss is None else (*values, loss)

        options = tf.data.Options()
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        options.deterministic = True
        options.experimental_optimization.apply_default_optimizations = False
        calls = tf.data.Dataset.range(1).repeat()
        calls = calls.map(tf.autograph.experimental.do_not_convert(train)).with_options(options)
        self._calls = iter(calls)

    def __call__(self, inputs: Any, count: Any) -> tuple[list[Any], Any]:
        """Train the first `count` of the `inputs`; return logs and batch losses as `call` does."""
        self._inputs.assign(inputs)
        self._count.assign(count)
        try:
            results = list(next(self._calls))
        except tf.errors.InvalidArgumentError as error:
            # A pipeline ends with OutOfRangeError itself, so it converts that of a step.
            if _OUT_OF_RANGE not in error.message:
                raise
            raise tf.errors.OutOfRangeError(error.node_def, error.op, error.message) from error
        loss = results.pop() if self._has_loss else None
        return results, loss


def only_computes(graph: Any) -> bool:
    """Return whether the steps of this `GraphDef` only compute and change variables."""
    functions = {f.signature.name for f in graph.library.function}
    return all(_only_computes(name) for name in {node.op for node in nodes_of(graph)} - functions)


def _only_computes(name: str) -> bool:
    if name in _PLAIN or name.startswith("Resource"):
        return True  # "Resource…" ops gather from variables and update them
    op = definition_of(name)
    return (
        op is not None
        and not op.is_stateful
        and all(part.type != tf.resource.as_datatype_enum for part in op.input_arg)
    )
