"""The parts of a tf.data pipeline, and the graphs of its functions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops.options import ExternalStatePolicy
from tensorflow.python.data.ops.structured_function import StructuredFunctionWrapper
from tensorflow.python.framework import config, op_def_registry
from tensorflow.python.ops import gen_dataset_ops

is_op_determinism_enabled = config.is_op_determinism_enabled


def inputs_of(part: Any) -> list[Any]:
    """Return the input datasets of a dataset."""
    return list(part._inputs())


def functions_of(part: Any) -> list[Any]:
    """Return the concrete functions that a dataset calls."""
    found = [v for v in vars(part).values() if isinstance(v, StructuredFunctionWrapper)]
    return [wrapper.function for wrapper in found]


def seeds_of(part: Any) -> tuple[Any, Any]:
    """Return the two halves of a dataset's seed, each None if it has none."""
    return getattr(part, "_seed", None), getattr(part, "_seed2", None)


def may_reorder(part: Any) -> bool:
    """Return whether a parallel dataset was made with `deterministic=False`."""
    return getattr(part, "_deterministic", None) == "false"


def probe(function: Any, captured: list[Any]) -> Any:
    """Return an empty dataset that calls `function`, with `captured` as its captured inputs."""
    return gen_dataset_ops.map_dataset(
        tf.data.Dataset.range(0)._variant_tensor,
        captured,
        f=function,
        output_types=[tf.int64],
        output_shapes=[tf.TensorShape([])],
    )


def graph_of(dataset: Any, *, refuse_state: bool) -> Any:
    """Return the GraphDef of a probe.

    With `refuse_state`, raise `tf.errors.FailedPreconditionError` for the first stateful op.
    """
    policy = ExternalStatePolicy.FAIL if refuse_state else ExternalStatePolicy.IGNORE
    graph = gen_dataset_ops.dataset_to_graph_v2(dataset, external_state_policy=policy.value)
    return tf.compat.v1.GraphDef.FromString(graph.numpy())


def definition_of(op: str) -> Any:
    """Return the OpDef of an op by its name, or None if it is unknown."""
    return op_def_registry.get(op)
