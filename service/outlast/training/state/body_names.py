"""The variables that the body of a `for` loop carries from one turn to the next."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from types import FrameType
from typing import Any

from outlast.training.state.function_state import is_data


class BodyVariables:
    """The variables of a frame that the body of its loop carries from turn to turn.

    `counts` says which values may be state. What is large at the beginning is left out.
    """

    function = None  # it stands for no code

    def __init__(self, frame: FrameType, counts: Callable[[Any], bool]) -> None:
        self._frame = frame
        self._counts = counts
        found = self._all(carried(frame))
        self._names = [name for name, value in found.items() if not is_data(value)]

    def read(self) -> dict[str, Any]:
        """Return the variables with their present values."""
        return {n: value for n, value in self._all(self._names).items() if self._counts(value)}

    def set(self, name: str, value: Any) -> None:
        """Do nothing: these variables are named, not restored."""

    def _all(self, names: list[str]) -> dict[str, Any]:
        own, outside = self._frame.f_locals, self._frame.f_globals
        both = {name: own if name in own else outside for name in names}
        return {name: where[name] for name, where in both.items() if name in where}


def carried(frame: FrameType) -> list[str]:
    """Return the names that the body reads before it sets them, in the loop where a frame is now.

    Empty if the source is unknown.
    """
    source = "".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals))
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a notebook's magic commands
        return []
    line = frame.f_lineno
    loops = [n for n in ast.walk(tree) if isinstance(n, ast.For) and _begins(n, line)]
    if not loops:
        return []
    reading = _Reading()
    reading.store(loops[-1].target)
    for statement in loops[-1].body:
        reading.visit(statement)
    return list(reading.found)


def _begins(loop: ast.For, line: int) -> bool:
    """Return whether a line is that of the loop's head, where it takes its next value."""
    return loop.lineno <= line < max(loop.body[0].lineno, loop.lineno + 1)


_WITH_OWN_NAMES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class _Reading(ast.NodeVisitor):
    """Reads code in the order in which it runs, and notes names that may be read before set."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}
        self._set: set[str] = set()

    def store(self, node: Any) -> None:
        self._set |= _stored(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.store(node)
        elif node.id not in self._set:
            self.found.setdefault(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id not in self._set:
            self.found.setdefault(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._maybe([node.target, *node.body])
        self._maybe(node.orelse)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._maybe(node.body)
        self._maybe(node.orelse)

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self._maybe(node.body)
        self._maybe(node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        self._maybe(node.body)
        for handler in node.handlers:
            self._maybe([handler])
        self._maybe(node.orelse)
        for statement in node.finalbody:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inner(node, [node.name])

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, _WITH_OWN_NAMES):
            self._inner(node, [])
        else:
            super().generic_visit(node)

    def _maybe(self, nodes: list[Any]) -> None:
        """Read code that may not run. What it sets counts as set within it alone."""
        before = set(self._set)
        for node in nodes:
            self.visit(node)
        self._set = before

    def _inner(self, node: Any, names: list[str]) -> None:
        """Read a function or comprehension, whose own variables do not count."""
        own = _stored(node) | {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
        for one in ast.walk(node):
            if isinstance(one, ast.Name) and one.id not in own | self._set:
                self.found.setdefault(one.id)
        self._set.update(names)


def _stored(node: Any) -> set[str]:
    names = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}
