"""How Keras walks through a model when it saves its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.naming import to_snake_case

from outlast.training.keras_internals.versions import number

# Since Keras 3.15 layers in a list of lists (or a dict of lists, …) stand in the weights file, as
# "<attribute>/container/<layer>". Before, Keras left them out.
NESTED = number(keras.__version__) >= (3, 15)


def is_saveable(value: Any) -> bool:
    """Whether Keras saves this object by its attributes: a layer, optimizer, metric, …"""
    return isinstance(value, KerasSaveable)


def attributes(saveable: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that Keras looks at, in its order."""
    yield from saving_lib._walk_saveable(saveable)


def members(container: Any) -> Iterator[tuple[str, Any]]:
    """Yield the saveables and the containers in a list, tuple or dict, by their group's name."""
    used: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if is_saveable(child):
            yield _unique(to_snake_case(type(child).__name__), used), child
        elif NESTED and isinstance(child, list | dict | tuple):
            yield _unique("container", used), child


def _unique(name: str, used: dict[str, int]) -> str:
    """Return "dense", then "dense_1", …: a function of its own in some versions of Keras only."""
    if name in used:
        used[name] += 1
        return f"{name}_{used[name]}"
    used[name] = 0
    return name
