"""How Keras walks through a model when it saves its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.naming import to_snake_case


def is_saveable(value: Any) -> bool:
    """Whether Keras saves this object by its attributes: a layer, optimizer, metric, …"""
    return isinstance(value, KerasSaveable)


def attributes(saveable: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that Keras looks at, in its order."""
    yield from saving_lib._walk_saveable(saveable)


def members(container: Any) -> Iterator[tuple[str, Any]]:
    """Yield the saveables and the containers in a list, tuple or dict, by their group's name.

    Keras leaves containers within containers out of its weights files before 3.15, and what is in
    them is lost. Here the layout is that of 3.15 under every version: one Keras goes on from the
    checkpoint of another, and an older `load_weights` passes over the groups that it does not know.
    """
    used: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if is_saveable(child):
            yield _unique(to_snake_case(type(child).__name__), used), child
        elif isinstance(child, list | dict | tuple):
            yield _unique("container", used), child


def _unique(name: str, used: dict[str, int]) -> str:
    """Return "dense", then "dense_1", … Only some versions of Keras have a function for it."""
    if name in used:
        used[name] += 1
        return f"{name}_{used[name]}"
    used[name] = 0
    return name
