"""Keras' walk through a model when it saves the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.naming import to_snake_case

from outlast.training.keras_internals import auto_names


def is_saveable(value: Any) -> bool:
    """Return whether Keras saves this object by its attributes, as it does a layer or optimizer."""
    return isinstance(value, KerasSaveable)


def attributes(saveable: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that Keras visits, in Keras' order."""
    # Keras makes unnamed objects, to know their attributes. A save must not count their names.
    numbers = auto_names.capture()
    found = list(saving_lib._walk_saveable(saveable))
    auto_names.restore(numbers)
    yield from found


def members(container: Any) -> Iterator[tuple[str, Any]]:
    """Yield the saveables and containers in a list, tuple or dict, with their group names.

    Before 3.15, Keras leaves nested containers out of its weights files, and their content is lost.
    Here every version has the layout of 3.15. So each version of Keras resumes from the checkpoints
    of the others, and an older `load_weights` skips the groups that it does not know.
    """
    used: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if is_saveable(child):
            yield _unique(to_snake_case(type(child).__name__), used), child
        elif isinstance(child, list | dict | tuple):
            yield _unique("container", used), child


def _unique(name: str, used: dict[str, int]) -> str:
    """Return "dense", then "dense_1", … Only some versions of Keras have such a function."""
    if name in used:
        used[name] += 1
        return f"{name}_{used[name]}"
    used[name] = 0
    return name
