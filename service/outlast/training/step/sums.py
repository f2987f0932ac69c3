"""Sums in a step's graph whose order of addition TensorFlow leaves to a race.

TensorFlow's AddN adds into the buffer of an input that nobody else reads any more, and adds that
input first. Where another op reads an input too, the scheduling of threads decides whether it has
finished. So a sum of three or more tensors may round differently from call to call, also under op
determinism (tensorflow/core/kernels/aggregate_ops.cc). AddN comes from GradientTape, which adds up
the gradients of a tensor with it, and from Grappler, which makes it out of nested additions.

`put_in_order` ends the race where there is one: AddN waits for the other readers of its inputs, so
it always finds the same buffers, and nested additions stay nested. Each function is judged by
itself: who else reads an argument is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from outlast.training.keras_internals import tracing

_ADDITIONS = frozenset({"Add", "AddN", "AddV2"})
# Grappler may take these out: their output can be the very input, with its other readers.
_TRANSPARENT = frozenset(
    {
        "Cast",
        "ExpandDims",
        "Identity",
        "Mean",
        "PreventGradient",
        "Reshape",
        "Snapshot",
        "Squeeze",
        "StopGradient",
        "Sum",
    }
)
_HELD = frozenset({"Const", "ReadVariableOp", "VariableV2"})


@dataclass(frozen=True)
class RacySum:
    """A sum of at least three tensors, and what gives it one order."""

    name: str
    """Name of the node."""
    additions: frozenset[str] = frozenset()
    """Nested additions that Grappler must not make one AddN of; empty for an AddN."""
    readers: frozenset[str] = frozenset()
    """Other readers of its addends, for which an AddN must wait."""


def racy_sums(graph: Any) -> list[RacySum]:
    """Return the sums in a `GraphDef`, and in its functions, whose order may vary."""
    found = [*_Nodes(graph.node).racy_sums()]
    for function in graph.library.function:
        found += _Nodes(function.node_def).racy_sums()
    return found


def put_in_order(graph: Any) -> None:
    """Give each sum of a traced graph one order."""
    if not any(op.type in _ADDITIONS for op in graph.get_operations()):
        return
    for found in _Nodes(graph.as_graph_def().node).racy_sums():
        tracing.keep_as_written(graph, found.additions)
        if found.readers:
            tracing.run_after(graph, found.name, found.readers)


class _Nodes:
    """The nodes of one graph, by name, and who reads each of their outputs."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._readers: dict[str, list[str]] = {}
        for name, node in self._nodes.items():
            for output in _inputs(node):
                self._readers.setdefault(output, []).append(name)
        self._before: dict[str, set[str]] = {}

    @cached_property
    def _outputs(self) -> dict[str, list[str]]:
        """The outputs of each node that are read."""
        outputs: dict[str, list[str]] = {}
        for output in self._readers:
            outputs.setdefault(_maker_of(output), []).append(output)
        return outputs

    def racy_sums(self) -> Iterator[RacySum]:
        """Yield the sums. Each is judged as if those yielded before were in order by then."""
        additions = [node for node in self._nodes.values() if node.op in _ADDITIONS]
        parts = {part.name for node in additions for part in self._parts_of(node)}
        for node in additions:
            if node.op == "AddN":
                yield from self._racy_add_n(node)
            if node.name not in parts:
                yield from self._racy_group(node)

    def _racy_add_n(self, node: Any) -> Iterator[RacySum]:
        """Yield the AddN if any buffer is open; Grappler sorts its addends by their names."""
        addends = [self._source(output)[0] for output in _inputs(node)]
        if len(addends) < 3:
            return
        ends, others = self._ends(node.name, addends)
        readers = [of for end, of in zip(ends, others, strict=True) if end == "open"]
        if readers:
            waits_for = frozenset[str]().union(*readers)
            self._directly_before(node.name).update(waits_for)
            yield RacySum(node.name, readers=waits_for)

    def _racy_group(self, node: Any) -> Iterator[RacySum]:
        """Yield the sum of nested additions: Grappler may make one AddN of it, in any order."""
        group, addends = self._group(node)
        if len(group) > 1 and len(addends) > 2:
            ends, _ = self._ends(node.name, addends)
            if "open" in ends:
                yield RacySum(node.name, additions=frozenset(group))

    def _ends(self, name: str, addends: list[str]) -> tuple[list[str], list[frozenset[str]]]:
        """Return what is known of each addend's buffer when the sum runs, and its open readers.

        "free": all other readers have certainly run. "held": something holds it anyhow, or a reader
        runs after the sum. "open": that depends on a race.
        """
        readers = [frozenset(self._read_by(addend)) - {name} for addend in addends]
        before = self._ancestors(name) if any(readers) else set()
        ends, open_readers = [], []
        for addend, readers_of in zip(addends, readers, strict=True):
            others = readers_of - before
            maker = self._maker(addend)
            held = addends.count(addend) > 1 or (maker is not None and maker.op in _HELD)
            if not held and others:
                held = any(name in self._ancestors(other) for other in others)
            ends.append("held" if held else "open" if others else "free")
            open_readers.append(others)
        return ends, open_readers

    def _parts_of(self, node: Any) -> Iterator[Any]:
        """Yield the additions whose results only this one reads: they may become one AddN."""
        if tracing.OPTIMISED in node.attr:
            return
        for output in _inputs(node):
            source, alone = self._source(output)
            maker = self._maker(source)
            if maker is None or tracing.OPTIMISED in maker.attr:
                continue
            if alone and maker.op in _ADDITIONS:
                yield maker

    def _group(self, node: Any) -> tuple[set[str], list[str]]:
        """Return the additions that may become one AddN with this one, and what they add up."""
        group, addends = {node.name}, []
        parts = {part.name: part for part in self._parts_of(node)}
        for output in _inputs(node):
            source, _ = self._source(output)
            part = parts.get(_maker_of(source))
            if part is None:
                addends.append(source)
            else:
                names, more = self._group(part)
                group |= names
                addends += more
        return group, addends

    def _read_by(self, output: str) -> Iterator[str]:
        """Yield the readers of an output, transparent ops left out. An output that nobody reads on
        is returned, and counts as a reader."""
        for reader in self._readers.get(output, ()):
            passed = self._outputs.get(reader, ())
            if self._nodes[reader].op in _TRANSPARENT and passed:
                for passed_on in passed:
                    yield from self._read_by(passed_on)
            else:
                yield reader

    def _ancestors(self, name: str) -> set[str]:
        """Return the nodes that have certainly run before this one ends, itself among them."""
        seen, todo = {name}, [name]
        while todo:
            new = self._directly_before(todo.pop()) - seen
            seen |= new
            todo += new
        return seen

    def _directly_before(self, name: str) -> set[str]:
        if name not in self._before:
            node = self._nodes.get(name)  # None for an argument of a function
            # what is before the next iteration of a loop is not before this one
            inputs = () if node is None or node.op == "NextIteration" else node.input
            self._before[name] = {_maker_of(text) for text in inputs}
        return self._before[name]

    def _source(self, output: str) -> tuple[str, bool]:
        """Return the source of an output, behind transparent ops, and whether it has one reader."""
        alone = len(self._readers[output]) == 1
        while (maker := self._maker(output)) is not None and maker.op in _TRANSPARENT:
            output = next(_inputs(maker))
            alone = alone and len(self._readers[output]) == 1
        return output, alone

    def _maker(self, output: str) -> Any:
        return self._nodes.get(_maker_of(output))


def _maker_of(text: str) -> str:
    """Return the name of the node that an input names: "name", "name:part:0" or "^name"."""
    return text.lstrip("^").partition(":")[0]


def _inputs(node: Any) -> Iterator[str]:
    """Yield the outputs that a node reads: "name:0" in a graph, "name:part:0" in a function."""
    for text in node.input:
        if not text.startswith("^"):
            yield text if ":" in text else f"{text}:0"
