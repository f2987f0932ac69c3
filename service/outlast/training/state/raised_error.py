"""The error that left a phase, converted to plain data and back without pickle."""

from __future__ import annotations

import dis
import importlib
import inspect
import sys
from types import CodeType
from typing import Any

from outlast.training.errors import PhaseLeft
from outlast.training.state import trees

Plain = dict[str, Any]

BREAK: Plain = {"by": "break"}
_DROPS = ("POP_TOP", "POP_ITER", "END_FOR")  # of Python 3.11 to 3.13, and since 3.14


def describe(error: BaseException) -> Plain | None:
    """Return what `rebuild` needs, or `None` for an error that it cannot rebuild."""
    kind = type(error)
    found: Plain = {"by": "error", "module": kind.__module__, "class": kind.__qualname__}
    try:
        args = _python_own(kind).__reduce__(error)[1]
        attributes = {name: value for name, value in vars(error).items() if _is_plain(value)}
        attributes.pop("__notes__", None)
        again = _make(kind, args, attributes)
        same = (str(again), again.args) == (str(error), error.args)
    except Exception:  # noqa: BLE001 - the error's class is the user's
        return None
    if _find(found) is not kind or not _is_plain(args) or not same:
        return None
    return {**found, "args": args, "attributes": attributes}


def rebuild(left: Plain, phase: int) -> BaseException:
    """Return the error again, with a note that says where it comes from.

    Raises `PhaseLeft` if the script no longer has the error's class.
    """
    kind = _find(left)
    if kind is None:
        raise PhaseLeft(phase=phase, error=f"{left['module']}.{left['class']}")
    error = _make(kind, left["args"], left["attributes"])
    error.add_note(f"An earlier attempt left phase {phase} by this error. It is raised again.")
    return error


def consumers() -> list[tuple[int, CodeType]]:
    """Return the frames that take the next value of the caller's generator, identified.

    They are generators that wrap it, such as a progress bar, and the frame with the `for` loop.
    """
    here = inspect.currentframe()
    found = []
    frame = None if here is None else here.f_back
    while frame is not None:
        found.append((id(frame), frame.f_code))
        frame = frame.f_back if frame.f_code.co_flags & inspect.CO_GENERATOR else None
    return found


def left_by_break(loop: list[tuple[int, CodeType]]) -> bool:
    """Return whether the caller's generator was dropped by `break` or `return` from its loop.

    An error in the loop's body drops the generator as well, at the instruction that raised it.
    `loop` is what `consumers` returned at the last step. Only these frames count: when a variable
    holds the generator, any other one may drop it, long after an error. An unknown instruction
    counts as an error, which refuses the next phase, so that nothing passes in silence.
    """
    here = inspect.currentframe()
    frame = None if here is None else here.f_back
    while frame is not None and (id(frame), frame.f_code) in loop:
        if frame.f_lasti >= 0 and dis.opname[frame.f_code.co_code[frame.f_lasti]] in _DROPS:
            return True
        frame = frame.f_back
    return False


def _make(kind: Any, args: Any, attributes: Plain) -> BaseException:
    """Create an error without its own `__init__`, whose arguments are no longer known."""
    error: BaseException = kind.__new__(kind, *args)
    _python_own(kind).__init__(error, *args)
    vars(error).update(attributes)
    return error


def _python_own(kind: Any) -> Any:
    """Return the nearest built-in base class, which may keep data outside of the attributes."""
    return next(one for one in kind.__mro__ if one.__module__ == "builtins")


def _find(left: Plain) -> Any:
    found: Any = sys.modules.get(left["module"])
    try:
        found = found or importlib.import_module(left["module"])
        for part in left["class"].split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _is_plain(value: Any) -> bool:
    try:
        trees.encode(value, {}, "error")
    except trees.NotPlain:
        return False
    return True
