"""What the script defines itself: its modules, and the classes and functions in them."""

from __future__ import annotations

import functools
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib")
)

_OURS = ("outlast", "outlast_checkpoints")


def is_defined_by_script(kind: Any) -> bool:
    """Return whether the script defines a class or function, and no installed package does."""
    return _is_of_script(kind.__module__)


def is_class_of_script(value: Any) -> bool:
    """Return whether a value is a class that the script defines."""
    return isinstance(value, type) and is_defined_by_script(value)


def is_function_of_script(value: Any) -> bool:
    """Return whether a value is a function that the script defines."""
    return type(value) is types.FunctionType and is_defined_by_script(value)


def is_module_of_script(value: Any) -> bool:
    """Return whether a value is a module that the script consists of."""
    return type(value) is types.ModuleType and _is_of_script(value.__name__)


@functools.cache
def _is_of_script(name: str) -> bool:
    if name == "__main__":
        return True
    if name.partition(".")[0] in _OURS:  # also where it is installed from a checkout
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not any(path.is_relative_to(folder) for folder in _INSTALLED)
