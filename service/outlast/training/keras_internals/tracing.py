"""Graphs that TensorFlow has traced, before it makes functions of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager.polymorphic_function import atomic_function

# Grappler's arithmetic optimiser leaves additions with this attribute alone.
OPTIMISED: Final = "_grappler_ArithmeticOptimizer_AddOpsRewriteStage"

_make: Final = atomic_function.from_func_graph
_changes: list[Callable[[Any], None]] = []


@contextmanager
def changing_graphs(change: Callable[[Any], None]) -> Iterator[None]:
    """Within the block, call `change` with every graph before TensorFlow makes a function of it.

    These are the graphs of functions, their gradients, and the branches and bodies in them.
    """
    atomic_function.from_func_graph = _changed_first
    _changes.append(change)
    try:
        yield
    finally:
        _changes.remove(change)
        if not _changes:
            atomic_function.from_func_graph = _make


def _changed_first(name: str, graph: Any, *arguments: Any, **options: Any) -> Any:
    for change in dict.fromkeys(_changes):
        change(graph)
    return _make(name, graph, *arguments, **options)


def keep_as_written(graph: Any, names: Iterable[str]) -> None:
    """Keep Grappler from making one AddN out of these additions."""
    for name in names:
        graph.get_operation_by_name(name)._set_attr(OPTIMISED, attr_value_pb2.AttrValue(b=True))


def run_after(graph: Any, name: str, earlier: Iterable[str]) -> None:
    """Let an operation wait until others have run."""
    waiting = graph.get_operation_by_name(name)
    waiting._add_control_inputs([graph.get_operation_by_name(one) for one in sorted(earlier)])
