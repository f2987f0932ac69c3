"""`Pipeline`: the state, the buffers and the missing seeds of a tf.data pipeline.

It inspects the pipeline part by part, because serializing the whole would copy its data twice.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import xxhash

from outlast.training.data import fingerprint, tfdata_ops
from outlast.training.data.tfdata_ops import kind_of
from outlast.training.data.tfdata_parts import Parts
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
_NO_CHECKPOINT = (
    "keeps state that no checkpoint contains; a resume replays the pipeline from its start, which "
    "is exact only if the replay yields the same batches; use stateless ops "
    "(tf.random.stateless_* seeded with the element's index) and TensorFlow ops instead of Python "
    "functions"
)


class Pipeline:
    """The parts of a dataset, and of the datasets that its functions make.

    Attributes:
        kinds: Kinds of all operations; see `tfdata_ops`.
        parts: What it takes to open the pipeline again as before.
        stateful: First op whose state no checkpoint contains, or None. A seeded shuffle is not
            stateful.
        random: Whether a function draws from TensorFlow's random ops, or makes shuffles. Each pass
            draws the same.
        buffers: Kinds of parts that hold many elements at a time.
        unseeded: Kinds of parts that draw a different order in every process.
        unordered: Whether batches may arrive in any order.
        unproven: Kinds of parts that no resume reproduces for certain, and why.
        content: Digest of its operations, functions and data. Of files, it knows names and sizes.
        seeds: Digest of its seeds.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._states: dict[str, str | None] = {}  # the line of each stateful op
        self._content, self._seeds = xxhash.xxh3_64(), xxhash.xxh3_64()
        self.random = False
        self._deterministic = pipelines.is_op_determinism_enabled()
        self.kinds: set[str] = set()
        self._unseeded: set[str] = set()
        self._loose = dataset.options().deterministic is False
        self.parts = Parts(dataset)
        empty: Any = None  # for all probes
        for part in self.parts.all:
            self.kinds.add(kind_of(type(part).__name__))
            self._hash_settings(part)
            if _is_unseeded(*pipelines.seeds_of(part)):
                self._unseeded.add(kind_of(type(part).__name__))
            self._loose = self._loose or pipelines.may_reorder(part)
            if kind_of(type(part).__name__) == "variant":  # its parts are known to TensorFlow only
                self._inspect(part, None, pipelines.variant_of(part))
            for wrapper in pipelines.functions_of(part):
                if empty is None:
                    empty = tf.data.Dataset.range(0)
                self._inspect(part, wrapper, _probe(wrapper.function, empty))
        self.content, self.seeds = self._content.hexdigest(), self._seeds.hexdigest()
        self.stateful = next(iter(self._states), None)
        self.buffers = sorted(self.kinds & {"cache", "shuffle", "shuffleandrepeat"})
        self.unseeded = sorted(self._unseeded)
        # With op determinism, TensorFlow keeps the order regardless of the pipeline's options.
        self.unordered = self._loose and not self._deterministic
        doubts = {kind: tfdata_ops.doubt_of(kind) for kind in sorted(self.kinds - {"variant"})}
        self.unproven = {kind: why for kind, why in doubts.items() if why is not None}

    def inexact_reasons(self) -> list[str]:
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
        lines: set[str | None] = set()
        for op, line in self._states.items():
            if line not in lines:  # one line makes several ops
                lines.add(line)
                maker = tfdata_ops.MAKERS.get(op)
                named = op if maker is None else f"{op} ({maker})"
                place = "in the pipeline" if line is None else f"at {line}"
                doubts.append(f"{named} {place} {_NO_CHECKPOINT}")
        for kind, why in self.unproven.items():
            if not (kind == "generator" and self.stateful):
                written = tfdata_ops.OPS[kind].written if kind in tfdata_ops.OPS else kind
                doubts.append(f"{written} in the pipeline: {why}")
        return doubts

    def _inspect(self, part: Any, wrapper: Any, dataset: Any) -> None:
        """Note what is in the graph of a dataset that calls a function of `part`."""
        graph, stateful = _graph_of(dataset)
        self._hash_graph(graph)
        for op in _stateful_ops(graph) if stateful else ():
            if op in tfdata_ops.MADE_ANEW or (op in tfdata_ops.RANDOM and self._deterministic):
                self.random = True
            elif op not in self._states:
                line = None if wrapper is None else pipelines.line_of(wrapper, op)
                self._states[op] = line
        if {kind_of(node.op) for node in graph.node} & {"shuffle", "shuffleandrepeat", "random"}:
            self.parts.draws_within(part)
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        constants = {n.name: n for n in nodes if n.op == "Const"}
        for node in nodes:
            if tfdata_ops.is_dataset(node.op):
                self.kinds.add(kind_of(node.op))
            self._loose = self._loose or node.attr["deterministic"].s == b"false"
            if node.op in SEEDS and _is_unseeded(*_seeds_of(node, constants)):
                self._unseeded.add(kind_of(node.op))

    def _hash_settings(self, part: Any) -> None:
        self._content.update(type(part).__name__.encode())
        self._seeds.update(repr([_number(seed) for seed in pipelines.seeds_of(part)]).encode())
        for name, value in pipelines.settings_of(part):
            self._content.update(name.encode())
            fingerprint.hash_values(value, self._content)
        for wrapper in pipelines.functions_of(part):
            fingerprint.hash_values(wrapper.function.captured_inputs, self._content)

    def _hash_graph(self, graph: Any) -> None:
        """Hash what the functions compute. Their names contain numbers that differ by process."""
        digests = []
        for function in graph.library.function:
            content = xxhash.xxh3_64()
            for node in function.node_def:
                content.update(f"{node.op} {len(node.input)}".encode())
                for key in ("seed", "seed2"):
                    self._seeds.update(str(node.attr[key].i if key in node.attr else 0).encode())
                for key in ("dtype", "T", "shape"):
                    if key in node.attr:
                        content.update(node.attr[key].SerializeToString(deterministic=True))
                if "value" in node.attr:
                    _hash_constant(node.attr["value"].tensor, content)
            digests.append(content.hexdigest())
        self._content.update("".join(sorted(digests)).encode())


def _hash_constant(tensor: Any, content: Any) -> None:
    """Hash a constant: its shape and, if it is large, its first and last bytes."""
    packed = tensor.tensor_content
    if len(packed) <= 2 * fingerprint.ROW:
        content.update(tensor.SerializeToString(deterministic=True))
        return
    content.update(tensor.tensor_shape.SerializeToString(deterministic=True))
    content.update(packed[: fingerprint.ROW] + packed[-fingerprint.ROW :])


def _number(value: Any) -> int | None:
    known = value is not None and (isinstance(value, int) or hasattr(value, "numpy"))
    return int(value) if known else None


def _probe(function: Any, empty: Any) -> Any:
    """Return a dataset that calls a function on an empty one."""
    # TensorFlow only checks datasets. Zeros replace the tensors that the function closes over,
    # because those may be the data.
    captured = [
        t if t.dtype in (tf.resource, tf.variant) else tf.zeros([], t.dtype)
        for t in function.captured_inputs
    ]
    return pipelines.probe(function, captured, empty)


def _graph_of(dataset: Any) -> tuple[Any, bool]:
    """Return the graph of a dataset without running it, and whether TensorFlow finds state."""
    try:
        return pipelines.graph_of(dataset, refuse_state=True), False
    except tf.errors.FailedPreconditionError:
        return pipelines.graph_of(dataset, refuse_state=False), True


def _stateful_ops(graph: Any) -> list[str]:
    """Return the ops of a graph whose state counts, in the graph's order, each once."""
    found: dict[str, None] = {}
    functions = {f.signature.name for f in graph.library.function}
    for node in (n for f in graph.library.function for n in f.node_def):
        passed_over = tfdata_ops.HARMLESS | tfdata_ops.CALLS | functions
        definition = pipelines.definition_of(node.op)
        if node.op in passed_over or tfdata_ops.is_dataset(node.op):
            continue
        if definition is None or definition.is_stateful:
            found[node.op] = None
    return list(found)


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
