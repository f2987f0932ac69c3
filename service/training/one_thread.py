"""K training steps in which every op takes one thread, however many processors there are.

On processors TensorFlow splits an op of some hundred thousand numbers between threads, and waking
them can take longer than the op. How many an op may take is set for a whole process before it
starts, with one exception: what a tf.data pipeline calls follows its own
`tf.data.ThreadingOptions.max_intra_op_parallelism`. So the call is made by a pipeline, without end,
whose every element is the logs of K steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import tree
from tensorflow.python.framework import op_def_registry

# Ops that change variables, which can be put back, and those that call others.
_RESTORABLE = frozenset(
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
# Ops whose results have a shape that depends on values: what follows may be done in another way in
# every step.
_SHAPED_BY_VALUES = frozenset(
    {
        "DynamicPartition",
        "ListDiff",
        "NonMaxSuppression",
        "NonMaxSuppressionV2",
        "NonMaxSuppressionV3",
        "NonMaxSuppressionV4",
        "NonMaxSuppressionV5",
        "Unique",
        "UniqueV2",
        "UniqueWithCounts",
        "UniqueWithCountsV2",
        "Where",
    }
)


class OneThreadAnOp:
    """Calls of K steps in which an op takes one thread.

    call: takes lots and their count as `CompiledSteps` has them, and returns logs and own losses;
    a `tf.function`. lots: an example, whose shapes all others have but for the first dimension.
    Raises what the steps raise; TensorFlow puts the name of the pipeline's iterator before it.
    """

    def __init__(self, call: Callable[[Any, Any], Any], lots: Any) -> None:
        self._lots = tree.map_structure(_input, lots)
        self._count = tf.Variable(0, trainable=False, dtype=tf.int32)
        self._has_own = True

        def train(_: Any) -> Any:
            lots = tree.map_structure(lambda variable: variable.read_value(), self._lots)
            values, own = call(lots, self._count.read_value())
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
        tree.map_structure(lambda variable, part: variable.assign(part), self._lots, lots)
        self._count.assign(count)
        results = list(next(self._calls))
        own = results.pop() if self._has_own else None
        return results, own


def _input(part: Any) -> Any:
    return tf.Variable(part, shape=[None, *part.shape[1:]], trainable=False)


def threads_an_op() -> int:
    """How many threads TensorFlow lets an op take."""
    told = tf.config.threading.get_intra_op_parallelism_threads()
    told = told or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
    return told or len(os.sched_getaffinity(0))


def repeatable(graph: Any) -> bool:
    """Whether steps of this `GraphDef` can be undone by putting variables back, and are the same
    computation for all values: only then can one be done twice and be compared."""
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return all(_repeatable(name) for name in {node.op for node in nodes} - _functions(graph))


def _repeatable(name: str) -> bool:
    if name in _RESTORABLE or name.startswith("Resource"):
        return True  # the latter gather from variables, scatter and apply to them
    op = op_def_registry.get(name)
    return (
        op is not None
        and not op.is_stateful
        and name not in _SHAPED_BY_VALUES
        and not name.startswith(("Ragged", "Sparse", "Lookup"))
        and all(part.type != tf.resource.as_datatype_enum for part in op.input_arg)
    )


def _functions(graph: Any) -> set[str]:
    return {f.signature.name for f in graph.library.function}
