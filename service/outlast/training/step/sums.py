"""Sums in a step's graph whose order of addition TensorFlow leaves to a race.

TensorFlow's AddN adds into the buffer of an input that nobody else reads any more, and adds that
input first. Where another op reads an input too, it depends on the scheduling of threads whether it
has finished, so a sum of three or more tensors may round one way or the other from call to call, also
under op determinism (tensorflow/core/kernels/aggregate_ops.cc). AddN comes from GradientTape, which
adds up the gradients of a tensor with it, and from Grappler, which makes it out of nested additions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

_ADDITIONS = frozenset({"Add", "AddV2"})
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
# AddN never adds into what these give out: something else holds it.
_HELD = frozenset({"Const", "ReadVariableOp", "VariableV2"})


def racy_sums(graph: Any) -> list[str]:
    """Return the names of the sums in a `GraphDef`, and in its functions, whose order may vary."""
    found = [*_Nodes(graph.node).racy_sums()]
    for function in graph.library.function:
        found += _Nodes(function.node_def).racy_sums()
    return found


class _Nodes:
    """The nodes of one graph, by name, and who reads each of their outputs."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._readers: dict[str, set[str]] = defaultdict(set)
        self._outputs: dict[str, set[str]] = defaultdict(set)
        for node in nodes:
            for output in _inputs(node):
                self._readers[output].add(node.name)
                self._outputs[output.partition(":")[0]].add(output)

    def racy_sums(self) -> Iterator[str]:
        parts = {
            part.name
            for node in self._nodes.values()
            if node.op in _ADDITIONS
            for part in self._additions_in(node)
        }
        for name, node in self._nodes.items():
            if node.op == "AddN" or (node.op in _ADDITIONS and name not in parts):
                addends = self._addends(node)
                if len(addends) > 2 and self._has_others(addends, name):
                    yield name

    def _additions_in(self, node: Any) -> Iterator[Any]:
        """Yield the additions whose results only this one reads: they may become one AddN."""
        for output in _inputs(node):
            source, alone = self._source(output)
            if alone and (maker := self._maker(source)) is not None and maker.op in _ADDITIONS:
                yield maker

    def _addends(self, node: Any) -> list[str]:
        if node.op == "AddN":
            return [self._source(output)[0] for output in _inputs(node)]
        addends = []
        for output in _inputs(node):
            source, alone = self._source(output)
            maker = self._maker(source)
            if alone and maker is not None and maker.op in _ADDITIONS:
                addends += self._addends(maker)
            else:
                addends.append(source)
        return addends

    def _has_others(self, addends: list[str], total: str) -> bool:
        """Return whether an addend has a reader that need not have finished before the sum."""
        before = self._ancestors(total)
        return any(
            reader not in before
            for addend in addends
            if (maker := self._maker(addend)) is None or maker.op not in _HELD
            for reader in self._read_by(addend)
        )

    def _read_by(self, output: str) -> Iterator[str]:
        for reader in self._readers[output]:
            if self._nodes[reader].op in _TRANSPARENT:
                for passed_on in self._outputs[reader]:
                    yield from self._read_by(passed_on)
            else:
                yield reader

    def _ancestors(self, name: str) -> set[str]:
        """Return the nodes that have certainly run before this one ends, itself among them."""
        seen, todo = {name}, [name]
        while todo:
            for text in self._nodes[todo.pop()].input:
                maker = text.lstrip("^").partition(":")[0]
                if maker in self._nodes and maker not in seen:
                    seen.add(maker)
                    todo.append(maker)
        return seen

    def _source(self, output: str) -> tuple[str, bool]:
        """Return what an output is, transparent ops left out, and whether it has one reader."""
        alone = len(self._readers[output]) == 1
        while (maker := self._maker(output)) is not None and maker.op in _TRANSPARENT:
            output = next(_inputs(maker))
            alone = alone and len(self._readers[output]) == 1
        return output, alone

    def _maker(self, output: str) -> Any:
        return self._nodes.get(output.partition(":")[0])


def _inputs(node: Any) -> Iterator[str]:
    """Yield the outputs that a node reads, as "name:0" in a graph and "name:part:0" in a function."""
    for text in node.input:
        if not text.startswith("^"):
            yield text if ":" in text else f"{text}:0"
