"""`Pipeline`: the buffers, the hidden state and the missing seeds of a tf.data pipeline.

It inspects the pipeline part by part, because serializing the whole would copy its data twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from outlast.training.keras_internals import pipelines

# Ops that draw their order from a seed, and the index of the input with its first half.
SEEDS = {
    "RandomDataset": 0,
    "RandomDatasetV2": 0,
    "ShuffleAndRepeatDataset": 2,
    "ShuffleAndRepeatDatasetV2": 2,
    "ShuffleDataset": 2,
    "ShuffleDatasetV3": 2,
}


# What users write to get the most common stateful ops.
MAKERS = {
    "DummySeedGenerator": "a shuffle within a function",
    "EagerPyFunc": "tf.py_function",
    "PyFunc": "from_generator or numpy_function",
    "ReadVariableOp": "a variable, for example of a Keras augmentation layer",
}


class Pipeline:
    """The parts of a dataset, and of the datasets that its functions make.

    Attributes:
        stateful: First op whose state no checkpoint contains, or None. A seeded shuffle is not
            stateful.
        buffers: Kinds of parts that hold many elements at a time.
        unseeded: Kinds of parts that draw a different order in every process.
        unordered: Whether batches may arrive in any order.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self.stateful: str | None = None
        buffers: set[str] = set()
        unseeded: set[str] = set()
        loose = dataset.options().deterministic is False
        for part in _parts(dataset):
            buffers |= _buffer_in(type(part).__name__)
            if _is_unseeded(*pipelines.seeds_of(part)):
                unseeded.add(_kind(type(part).__name__))
            loose = loose or pipelines.may_reorder(part)
            for function in pipelines.functions_of(part):
                state, graph = _look_into(function)
                self.stateful = self.stateful or state
                for nodes in [graph.node, *(f.node_def for f in graph.library.function)]:
                    constants = {n.name: n for n in nodes if n.op == "Const"}
                    for node in nodes:
                        buffers |= _buffer_in(node.op)
                        loose = loose or node.attr["deterministic"].s == b"false"
                        if node.op in SEEDS and _is_unseeded(*_seeds_of(node, constants)):
                            unseeded.add(_kind(node.op))
        self.buffers = sorted(buffers)
        self.unseeded = sorted(unseeded)
        # With op determinism, TensorFlow keeps the order regardless of the pipeline's options.
        self.unordered = loose and not pipelines.is_op_determinism_enabled()

    def doubts(self) -> list[str]:
        """Return the reasons why a resume may see different batches, each with a remedy."""
        doubts = []
        if self.unordered:
            doubts.append(
                "deterministic=False in the pipeline lets batches arrive in any order; remove it"
            )
        if self.unseeded:
            doubts.append(
                f"{' and '.join(self.unseeded)} in the pipeline without a seed: the order differs "
                "in every process; pass a seed (.shuffle(size, seed=7)), or call "
                "keras.utils.set_random_seed before you make the pipeline"
            )
        if self.stateful:
            maker = f" ({MAKERS[self.stateful]})" if self.stateful in MAKERS else ""
            doubts.append(
                f"{self.stateful}{maker} in the pipeline keeps state that no checkpoint contains; "
                "a resume replays the pipeline from its start, which is exact only if the replay "
                "yields the same batches; use stateless ops (tf.random.stateless_* seeded with the "
                "element's index) and TensorFlow ops instead of Python functions"
            )
        return doubts


def _parts(dataset: Any) -> Iterator[Any]:
    left, seen = [dataset], set()
    while left:
        part = left.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            left.extend(pipelines.inputs_of(part))


def _look_into(function: Any) -> tuple[str | None, Any]:
    """Return the first stateful op of a function, or None, and its graph, without running it."""
    # TensorFlow only checks datasets, so the function becomes part of an empty dataset. Zeros
    # replace the tensors that it closes over, because those may be the data.
    captured = [
        t if t.dtype in (tf.resource, tf.variant) else tf.zeros([], t.dtype)
        for t in function.captured_inputs
    ]
    probe = pipelines.probe(function, captured)
    try:
        return None, pipelines.graph_of(probe, refuse_state=True)
    except tf.errors.FailedPreconditionError as error:
        found = re.search(r"(\w+) is stateful", str(error.message))
        state = found[1] if found else str(error.message)
    return state, pipelines.graph_of(probe, refuse_state=False)


def _buffer_in(name: str) -> set[str]:
    return {_kind(name)} if re.match(r"_?(Shuffle|Cache)", name) else set()


def _kind(name: str) -> str:
    """Return the kind of a part: "shuffle" for "_ShuffleDataset" and "ShuffleDatasetV3"."""
    return re.sub(r"Dataset(V\d+)?$", "", name).strip("_").lower()


def _seeds_of(node: Any, constants: dict[str, Any]) -> list[Any]:
    first = SEEDS[node.op]
    names = [name.partition(":")[0] for name in node.input[first : first + 2]]
    return [
        tf.make_ndarray(constants[name].attr["value"].tensor) if name in constants else None
        for name in names
    ]


def _is_unseeded(seed: Any, seed2: Any) -> bool:
    known = seed is not None and seed2 is not None and tf.executing_eagerly()
    return known and int(seed) == 0 and int(seed2) == 0
