"""What a tf.data pipeline is made of: buffers, hidden state, missing seeds.

Looked at part by part, since serializing the whole pipeline would copy the data in it twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from outlast.training.keras_internals import pipelines

# Ops that draw their order from a seed, and at which of their inputs the two halves of it are.
SEEDS = {
    "RandomDataset": 0,
    "RandomDatasetV2": 0,
    "ShuffleAndRepeatDataset": 2,
    "ShuffleAndRepeatDatasetV2": 2,
    "ShuffleDataset": 2,
    "ShuffleDatasetV3": 2,
}


# What makes the ops that are found most.
MAKERS = {
    "DummySeedGenerator": "a shuffle within a function",
    "EagerPyFunc": "tf.py_function",
    "PyFunc": "from_generator or numpy_function",
    "ReadVariableOp": "a variable, as a Keras layer for augmentation has",
}


class Pipeline:
    """The parts of a dataset, and of the datasets that its functions make.

    stateful: the first op whose state no checkpoint holds, None for none; a seeded shuffle is none.
    buffers: kinds of parts that hold many elements at a time. unseeded: kinds of parts that draw
    another order in every process. unordered: whether batches may come in any order.
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
        # With deterministic ops TensorFlow keeps the order whatever the pipeline says.
        self.unordered = loose and not pipelines.is_op_determinism_enabled()

    def doubts(self) -> list[str]:
        """Return reasons why the same batches may not come again, each with what to change."""
        doubts = []
        if self.unordered:
            doubts.append(
                "deterministic=False in the pipeline lets batches come in any order: leave it out"
            )
        if self.unseeded:
            doubts.append(
                f"{' and '.join(self.unseeded)} in the pipeline without a seed: another process "
                "gets another order; give it one (.shuffle(size, seed=7)), or call "
                "keras.utils.set_random_seed before the pipeline is made"
            )
        if self.stateful:
            maker = f" ({MAKERS[self.stateful]})" if self.stateful in MAKERS else ""
            doubts.append(
                f"{self.stateful}{maker} in the pipeline keeps state that no checkpoint holds; a "
                "resume runs the pipeline again from its start, which is exact only if it then "
                "does the same: better use stateless ops (tf.random.stateless_* seeded by the "
                "element's index) and plain TensorFlow in place of python functions"
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
    """Return the stateful op in a function, if any, and its graph; nothing of it is run."""
    # TensorFlow's own check is one of datasets. So the function becomes part of an empty one,
    # without the tensors that it closes over, which may be the data.
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
    """Return "shuffle" of "_ShuffleDataset" and of "ShuffleDatasetV3"."""
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
