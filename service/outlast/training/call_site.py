"""`CallSite`: where a script calls a `fit` or `Loop`: in which turn of its loops, in which run."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import linecache
import os
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import numpy as np

from outlast.training.state.random_state import seed_of_script

_LONGEST = 60  # characters of a value; a longer one becomes a digest
_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
    str(Path(__file__).parents[1]) + os.sep,
    "<frozen ",
)
_LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class CallSite:
    """Where the script calls.

    Attributes:
        place: Values of the loops around the call, outermost first, such as "fold=2, lr=0.1".
            `None` outside of loops.
        run: The running module or notebook cell, `None` if unknown. Each run has another.
        script: Digest of the script's file and arguments, `None` in a notebook.
        lines: Lines of that file that lead to the call, such as "12 40".
        seed: The seed that the script set last, by `keras.utils.set_random_seed` or TensorFlow's.
    """

    place: str | None = None
    run: FrameType | None = None
    script: str | None = None
    lines: str = ""
    seed: int | None = None

    @classmethod
    def here(cls) -> CallSite:
        """Return where the script called Outlast."""
        frame = sys._getframe(1)
        file = main_file()
        lines = [str(one.f_lineno) for one in _callers(frame) if one.f_code.co_filename == file]
        modules = (one for one in _callers(frame) if one.f_code.co_name == "<module>")
        run = next(filter(lambda one: is_of_script(one.f_code), modules), None)
        return cls(place_of(frame), run, _digest(file), " ".join(reversed(lines)), seed_of_script())

    def described(self) -> dict[str, Any]:
        """Return what `difference` compares, as plain data."""
        return {"script": self.script, "lines": self.lines, "seed": self.seed}

    def difference(self, stored: dict[str, Any]) -> tuple[str, Any, Any] | None:
        """Return what shows that a described call is another one, with both values.

        Lines are compared only if the script is the same, and seeds only if it sets them.
        """
        same_script = self.script is not None and self.script == stored["script"]
        if same_script and self.lines != stored["lines"]:
            return "lines of the call", stored["lines"], self.lines
        if None not in (self.seed, stored.get("seed")) and self.seed != stored["seed"]:
            return "seed that the script sets", stored["seed"], self.seed
        return None

    def repeats(self, earlier: CallSite) -> bool:
        """Return whether this is a later run of the same code, such as a cell that is run again."""
        if self.run is None or earlier.run is None or self.run is earlier.run:
            return False
        return self.run.f_code == earlier.run.f_code


def is_of_script(code: CodeType) -> bool:
    """Return whether the user wrote this code, and not a library."""
    file = code.co_filename
    return not file.startswith(_LIBRARIES) and _INSTALLED.search(file) is None


@functools.cache
def _digest(file: str | None) -> str | None:
    """Return a digest of the script's file and arguments; `None` without a file."""
    try:
        content = None if file is None else Path(file).read_bytes()
    except OSError:
        return None
    if content is None:
        return None
    return hashlib.sha256(content + "\0".join(sys.argv[1:]).encode()).hexdigest()[:16]


def main_file() -> str | None:
    """Return the script's file; `None` in a notebook."""
    return getattr(sys.modules.get("__main__"), "__file__", None)


def place_of(frame: FrameType | None) -> str | None:
    """Return the values of the loops in which this frame and its callers are now."""
    texts: list[str] = []
    while frame is not None:
        if is_of_script(frame.f_code) and loops_in(frame.f_code.co_filename):
            texts = [*_loop_values(frame), *texts]
        frame = frame.f_back
    return ", ".join(texts) or None


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _loop_values(frame: FrameType) -> Iterator[str]:
    """Yield the values of the loops in which the frame is now.

    A `for` loop has its variables, a `while` loop the counters and lengths in its condition.
    """
    at = _position(frame)
    for loop in loops_in(frame.f_code.co_filename):
        if loop.first <= at <= loop.last:
            for name in loop.names:
                found = frame.f_locals.get(name)
                value = _plain(found) if loop.is_for else _count(found)
                if value is not None:
                    yield f"{name}={_text(value)}"


def _position(frame: FrameType) -> tuple[int, int]:
    """Return the line and column of the current instruction."""
    where = list(frame.f_code.co_positions())
    here = where[frame.f_lasti // 2] if 0 <= frame.f_lasti // 2 < len(where) else (None,) * 4
    return (here[0] or frame.f_lineno, here[2] or 0)


@dataclass(frozen=True)
class _LoopInCode:
    first: tuple[int, int]  # line and column of its body
    last: tuple[int, int]
    names: tuple[str, ...]  # of its variables
    is_for: bool


@functools.cache
def loops_in(file: str) -> list[_LoopInCode]:
    """Return the loops in a file, outer ones first."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):  # a notebook's magic commands
        return []
    return [_described(node) for node in ast.walk(tree) if isinstance(node, _LOOPS)]


def _described(node: Any) -> _LoopInCode:
    if isinstance(node, ast.For | ast.While):
        first, last = node.body[0], node.body[-1]
        sources = [node.target if isinstance(node, ast.For) else node.test]
    else:
        first, last, sources = node, node, [each.target for each in node.generators]
    names = [one.id for each in sources for one in ast.walk(each) if isinstance(one, ast.Name)]
    start, end = (
        (first.lineno, first.col_offset),
        (last.end_lineno or first.lineno, last.end_col_offset or 0),
    )
    return _LoopInCode(start, end, tuple(dict.fromkeys(names)), not isinstance(node, ast.While))


def _plain(value: Any) -> Any:
    """Return a value that another process recognizes, or `None` for one that it does not."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name, None)) for each in fields(value)}
    if isinstance(value, SimpleNamespace):
        return _plain(vars(value))
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", None)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return None


def _count(value: Any) -> Any:
    """Return a counter, or the length of a container; no number that may be a time."""
    if isinstance(value, list | tuple | dict | set | deque):
        return len(value)
    return value if isinstance(value, bool | int | str) else None


def _text(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":")).replace(", ", ",")
    return text if len(text) <= _LONGEST else hashlib.sha256(text.encode()).hexdigest()[:16]
