"""The numbers that Keras appends to the names of layers and models."""

from __future__ import annotations

import collections

from keras.src.backend.common import global_state

_NUMBERS = "object_name_uids"


def capture() -> dict[str, int]:
    """Return how many names of each kind Keras has made."""
    return dict(global_state.get_global_attribute(_NUMBERS) or {})


def restore(numbers: dict[str, int]) -> None:
    """Let Keras continue to count from these numbers."""
    counted: collections.defaultdict[str, int] = collections.defaultdict(int, numbers)
    global_state.set_global_attribute(_NUMBERS, counted)
