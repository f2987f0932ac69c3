"""Outlast: fault-tolerant Keras training. A script only needs `from outlast import fit`.

Importing this package imports neither TensorFlow nor Keras; the first use of `fit` does. `adopt`
waits until the script imports Keras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast.attempt.adoption import adopt
    from outlast.attempt.kept_files import keep
    from outlast.training.fit import fit
    from outlast.training.loop import Loop

__all__ = ["Loop", "adopt", "fit", "keep"]
_ROOMS = {"adopt": "outlast.attempt.adoption", "keep": "outlast.attempt.kept_files"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        room = importlib.import_module(_ROOMS.get(name, "outlast.training"))
        return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
