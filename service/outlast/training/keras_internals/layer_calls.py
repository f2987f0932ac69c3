"""Which layers and losses are called by functions that are traced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import keras
import tensorflow as tf


class Watched(Protocol):
    """What is called when a layer or loss is called."""

    def called_by_trace(self) -> Callable[[], None] | None:
        """A function that calls it is traced. What is returned is called afterwards."""


_watched: list[Mapping[int, Watched]] = []  # by the id of a layer or loss


@contextmanager
def watching(parts: Mapping[int, Watched]) -> Iterator[None]:
    """Within the block, call a part's method whenever a trace calls its layer or loss."""
    _install()
    _watched.append(parts)
    try:
        yield
    finally:
        _watched.remove(parts)


@functools.cache
def _install() -> None:
    for kind in (keras.layers.Layer, keras.losses.Loss):
        kind.__call__ = _noting(kind.__call__)


def _noting(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noted(self: Any, *args: Any, **keywords: Any) -> Any:
        afterwards = []
        for parts in _watched:
            part = parts.get(id(self))
            if part is None or (args and isinstance(args[0], keras.KerasTensor)):
                continue
            if not tf.executing_eagerly():
                afterwards.append(part.called_by_trace())
        if not any(afterwards):
            return call(self, *args, **keywords)
        try:
            return call(self, *args, **keywords)
        finally:
            for put_back in filter(None, afterwards):
                put_back()

    return noted
