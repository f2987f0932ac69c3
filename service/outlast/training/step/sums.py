"""Sums in a step's graph whose order of addition TensorFlow leaves to a race.

TensorFlow's AddN adds into the buffer of an input that nobody else reads any more, and adds that
input first. Where another op reads an input too, the scheduling of threads decides whether it has
finished. So a sum of three or more tensors may round differently from call to call, also under op
determinism (tensorflow/core/kernels/aggregate_ops.cc). AddN comes from GradientTape, which adds up
the gradients of a tensor with it, and from Grappler, which makes it out of nested additions.
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
        self._before = {node.name: [_maker_of(text) for text in node.input] for node in nodes}
        self._readers: dict[str, set[str]] = defaultdict(set)
        self._outputs: dict[str, set[str]] = defaultdict(set)
        for node in nodes:
            for output in _inputs(node):
                self._readers[output].add(node.name)
                self._outputs[_maker_of(output)].add(output)

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
                if len(addends) > 2 and self._order_varies(node, addends):
                    yield name

    def _order_varies(self, node: Any, addends: list[str]) -> bool:
        """Return whether it depends on a race which buffer AddN takes, and the result on that."""
        readers = [set(self._read_by(addend)) for addend in addends]
        if all(some == {node.name} for some in readers):
            return False
        before = self._ancestors(node.name)
        held = [self._is_held(addend) for addend in addends]
        free = [not h and some <= before for h, some in zip(held, readers, strict=True)]
        if node.op != "AddN":  # Grappler may put them into any order
            return not all(map(max, held, free))
        # The first buffer that can be taken changes places with the first addend. Between the first
        # two that changes nothing; where none can be taken, no addend changes places.
        first = free.index(True) if any(free) else len(free)
        takers = [index for index in range(first) if not held[index]]
        orders = {max(index, 1) for index in takers}
        orders.add(max(first, 1) if first < len(free) else 1)
        return len(orders) > 1

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

    def _is_held(self, output: str) -> bool:
        """Return whether something holds the buffer besides its readers, so AddN never takes it."""
        maker = self._maker(output)
        return maker is not None and maker.op in _HELD

    def _read_by(self, output: str) -> Iterator[str]:
        """Yield the readers of an output, transparent ops left out. An output that nobody reads on
        is returned, and counts as a reader."""
        for reader in self._readers[output]:
            if self._nodes[reader].op in _TRANSPARENT and self._outputs[reader]:
                for passed_on in self._outputs[reader]:
                    yield from self._read_by(passed_on)
            else:
                yield reader

    def _ancestors(self, name: str) -> set[str]:
        """Return the nodes that have certainly run before this one ends, itself among them."""
        seen, todo = {name}, [name]
        while todo:
            new = [maker for maker in self._before.get(todo.pop(), ()) if maker not in seen]
            seen.update(new)
            todo += new
        return seen

    def _source(self, output: str) -> tuple[str, bool]:
        """Return what an output is, transparent ops left out, and whether it has one reader."""
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
