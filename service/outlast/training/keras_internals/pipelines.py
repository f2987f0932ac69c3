"""The parts of a tf.data pipeline, and the graphs of its functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops.options import ExternalStatePolicy
from tensorflow.python.data.ops.structured_function import StructuredFunctionWrapper
from tensorflow.python.framework import config, op_def_registry
from tensorflow.python.ops import gen_dataset_ops

is_op_determinism_enabled = config.is_op_determinism_enabled

_LIBRARIES = ("tensorflow", "keras", "outlast", "outlast_checkpoints", "tf_keras")


def inputs_of(part: Any) -> list[Any]:
    """Return the input datasets of a dataset, also the file names that a reader conceals."""
    inputs = list(part._inputs())
    names = getattr(part, "_filenames", None)
    if isinstance(names, tf.data.Dataset) and all(one is not names for one in inputs):
        inputs.append(names)
    return inputs


def variant_of(part: Any) -> Any:
    """Return the variant tensor of a dataset."""
    return part._variant_tensor


def functions_of(part: Any) -> list[StructuredFunctionWrapper]:
    """Return the functions that a dataset calls. `.function` is the concrete function."""
    return [v for v in vars(part).values() if isinstance(v, StructuredFunctionWrapper)]


def settings_of(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a dataset's settings: tensors and plain Python values."""
    # How many calls run in parallel decides the speed only, and a cache's file may be temporary.
    left_out = {"_variant_tensor_attr", "_name", "_seed", "_seed2", "_graph_attr", "_options_attr"}
    left_out |= {"_num_parallel_calls", "_deterministic", "_filename", "_buffer_output_elements"}
    if type(part).__name__ == "_PrefetchDataset":
        left_out |= {"_buffer_size"}
    for name, value in sorted(vars(part).items()):
        if name in left_out or isinstance(value, tf.data.Dataset | StructuredFunctionWrapper):
            continue
        yield name, value


def seeds_of(part: Any) -> tuple[Any, Any]:
    """Return the two halves of a dataset's seed, each None if it has none."""
    return getattr(part, "_seed", None), getattr(part, "_seed2", None)


def draws_anew(part: Any) -> bool:
    """Return whether a dataset with a seed draws another order in each pass."""
    return bool(
        getattr(part, "_reshuffle_each_iteration", False)
        or getattr(part, "_rerandomize", False)
        or type(part).__name__ == "_ShuffleAndRepeatDataset"
    )


def count_of(part: Any) -> int | None:
    """Return the count of a repeat, or None if it is unknown."""
    count = _constant(getattr(part, "_count", None))
    return None if count is None else int(count)


def cache_file_of(part: Any) -> str | None:
    """Return the path prefix of the files of a cache, "" for one in memory."""
    name = _constant(getattr(part, "_filename", None))
    return name.decode() if isinstance(name, bytes) else name


def may_reorder(part: Any) -> bool:
    """Return whether a parallel dataset was made with `deterministic=False`."""
    return getattr(part, "_deterministic", None) == "false"


def probe(function: Any, captured: list[Any], empty: Any) -> Any:
    """Return a dataset that calls `function` on `empty`, a dataset, with these captured inputs."""
    return gen_dataset_ops.map_dataset(
        empty._variant_tensor,
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


def line_of(wrapper: StructuredFunctionWrapper, op: str) -> str | None:
    """Return "FILE:LINE" of the user's code that made `op` in a function, or of the function."""
    for made in wrapper.function.graph.get_operations():
        if made.type == op:
            frames = [f for f in made.traceback if _is_of_user(f.filename)]
            if frames:
                return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    code = _code_of_user(wrapper._func, set())
    return None if code is None else f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def _code_of_user(function: Any, seen: set[int]) -> Any:
    """Return the code of the first function of the user that `function` is or refers to."""
    if id(function) in seen or len(seen) > 100:
        return None
    seen.add(id(function))
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is not None and _is_of_user(code.co_filename):
        return code
    inner = [getattr(function, "__wrapped__", None)]
    for cell in getattr(function, "__closure__", None) or ():
        try:
            inner.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    if type(function).__module__.startswith("tensorflow."):
        inner.extend(getattr(function, "__dict__", {}).values())
    for one in inner:
        if one is not None and not isinstance(one, int | str | bytes | tf.Tensor):
            found = _code_of_user(one, seen)
            if found is not None:
                return found
    return None


def _is_of_user(filename: str) -> bool:
    if filename.startswith("<") or "autograph" in Path(filename).name:
        return False
    return not any(filename.startswith(folder) for folder in _folders())


def _folders() -> list[str]:
    modules = (sys.modules.get(name) for name in _LIBRARIES)
    return [f"{Path(m.__file__).parent}/" for m in modules if m is not None and m.__file__]


def _constant(value: Any) -> Any:
    """Return the value of an eager tensor, another value unchanged, None for a symbolic tensor."""
    if not isinstance(value, tf.Tensor):
        return value
    return value.numpy() if hasattr(value, "numpy") else None
