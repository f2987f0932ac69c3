"""K training steps in which every op takes one thread, however many processors there are.

How many threads an op may take is set for a whole process before it starts, with one exception:
what a tf.data pipeline calls follows its own `tf.data.ThreadingOptions.max_intra_op_parallelism`.
So the call is made by a pipeline, without end, whose every element is the logs of K steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from outlast.training.keras_internals.pipelines import definition_of
from outlast.training.step.program import nodes_of

# The steps stay a function of their own in the pipeline, which TensorFlow then optimizes as it does
# where nobody else calls it. Inlined, they would not be, and would round otherwise.
APART = {"_noinline": True}

# Stateful ops that change variables or call others. All others leave something behind, print or
# draw from hidden state, and are left to be called as ever.
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
_ITS_WORDS = "Function invocation produced OutOfRangeError"


class OneThreadAnOp:
    """Calls of K steps in which an op takes one thread.

    call: a `tf.function` with the attributes `APART`, which takes lots, int64 of shape (K, size),
    and how many of them to train; it returns logs and own losses. size: None for any. Raises what
    the steps raise; TensorFlow puts the name of the pipeline's iterator before it.
    """

    def __init__(self, call: Callable[[Any, Any], Any], size: int | None) -> None:
        some = tf.zeros([1, size or 1], tf.int64)
        self._lots = tf.Variable(some, shape=[None, size], trainable=False)
        self._count = tf.Variable(0, trainable=False, dtype=tf.int32)
        self._has_own = True

        def train(_: Any) -> Any:
            values, own = call(self._lots.read_value(), self._count.read_value())
            self._has_own = own is not None
            return tuple(values) if own is None else (*values, own)

        options = tf.data.Options()
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        options.deterministic = True
        options.experimental_optimization.apply_default_optimizations = False
        calls = tf.data.Dataset.range(1).repeat()
        calls = calls.map(tf.autograph.experimental.do_not_convert(train)).with_options(options)
        self._calls = iter(calls)

    def __call__(self, lots: Any, count: Any) -> tuple[list[Any], Any]:
        """Train `count` of the `lots`; return logs and own losses as the `tf.function` does."""
        self._lots.assign(lots)
        self._count.assign(count)
        try:
            results = list(next(self._calls))
        except tf.errors.InvalidArgumentError as error:
            # A pipeline says so, for it ends by that error itself.
            if _ITS_WORDS not in error.message:
                raise
            raise tf.errors.OutOfRangeError(error.node_def, error.op, error.message) from error
        own = results.pop() if self._has_own else None
        return results, own


def only_computes(graph: Any) -> bool:
    """Whether the steps of this `GraphDef` do nothing but compute and change variables."""
    functions = {f.signature.name for f in graph.library.function}
    return all(_only_computes(name) for name in {node.op for node in nodes_of(graph)} - functions)


def _only_computes(name: str) -> bool:
    if name in _PLAIN or name.startswith("Resource"):
        return True  # the latter gather from variables, scatter and apply to them
    op = definition_of(name)
    return (
        op is not None
        and not op.is_stateful
        and all(part.type != tf.resource.as_datatype_enum for part in op.input_arg)
    )
