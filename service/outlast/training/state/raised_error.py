"""The error that left a phase, converted to plain data and back without pickle."""

from __future__ import annotations

import dis
import importlib
import inspect
import sys
from typing import Any

from outlast.training.errors import PhaseLeft
from outlast.training.state import trees

Plain = dict[str, Any]

BREAK: Plain = {"by": "break"}


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


def left_by_break() -> bool:
    """Return whether the caller's generator was dropped by `break` or `return` from its loop.

    An error in the loop's body drops the generator as well, at the instruction that raised it.
    """
    here = inspect.currentframe()
    frame = None if here is None else here.f_back
    generator = None if frame is None else frame.f_code.co_filename
    while frame is not None and frame.f_code.co_filename == generator:
        frame = frame.f_back  # it may delegate to another generator
    if frame is None or frame.f_lasti < 0:
        return False
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("POP_TOP", "POP_ITER", "END_FOR")


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
