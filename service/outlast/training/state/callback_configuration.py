"""What a checkpoint never sets on Keras' callbacks: files, addresses, settings and hooks.

A checkpoint is data that others may have written. The state of Keras' callbacks is numbers, arrays
and tables; where they write, and what they call, comes from the script alone.
"""

from __future__ import annotations

import inspect
from pathlib import PurePath
from typing import Any

import keras

from outlast.training.state.code_state import CodeState

_FROM_KERAS = ("model", "params")  # set by set_model and set_params


def why_not_state(target: Any, name: str, child: Any) -> str | None:
    """Return why an attribute is no state of a callback of Keras, or of a subclass; else None.

    `target` is the callback, or what its class holds.
    """
    kind = target.function if isinstance(target, CodeState) else type(target)
    if not (isinstance(kind, type) and issubclass(kind, keras.callbacks.Callback)):
        return None
    bases = [base for base in kind.__mro__ if _is_keras(base)]
    plain = name.lstrip("_")
    for base in bases:
        if plain in _FROM_KERAS or plain in inspect.signature(base).parameters:
            return f"it is a setting of Keras' {base.__name__}, which only the script sets"
    if not _is_keras(kind):
        return None
    if isinstance(child, str | bytes | PurePath):
        return f"Keras' {kind.__name__} has no text in its state"
    return None


def _is_keras(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "keras"
