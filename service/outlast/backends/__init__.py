"""Where attempts run: a registry of names, each imported when it is first asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Final

from outlast.backends.base import Backend
from outlast.errors import BackendUnknown

GROUP: Final = "outlast.backends"  # entry points of other packages
_BUILT_IN: Final = {
    "local": "outlast.backends.local:LocalBackend",
    # Beside their supervisor, in the pod or the allocation.
    "kubernetes": "outlast.backends.local:LocalBackend",
    "slurm": "outlast.backends.local:LocalBackend",
}


def names() -> list[str]:
    """Return the names of all backends that can be asked for."""
    found = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    return sorted(found | set(_BUILT_IN))


def get(name: str) -> Backend:
    """Return a new backend. Raises `BackendUnknown`, saying which ones there are."""
    where = _BUILT_IN.get(name)
    if where is not None:
        module, _, kind = where.partition(":")
        backend: Backend = getattr(importlib.import_module(module), kind)()
        return backend
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name:
            found: Backend = point.load()()
            return found
    raise BackendUnknown(backend=name, known=", ".join(names()))
