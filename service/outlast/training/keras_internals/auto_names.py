"""The numbers that Keras appends to the names of layers and models."""

from __future__ import annotations

import collections

from keras.src.backend.common import global_state

_NUMBERS = "object_name_uids"
# A trace makes symbolic tensors, and a resumed process traces again. Nothing reads their names.
_OF_PROCESS = "keras_tensor"


def capture() -> dict[str, int]:
    """Return how many names of each kind Keras has made, symbolic tensors apart."""
    return {kind: number for kind, number in _numbers().items() if kind != _OF_PROCESS}


def restore(numbers: dict[str, int]) -> None:
    """Let Keras continue to count from these numbers."""
    counted: collections.defaultdict[str, int] = collections.defaultdict(int, numbers)
    counted.pop(_OF_PROCESS, None)
    if (tensors := _numbers().get(_OF_PROCESS)) is not None:
        counted[_OF_PROCESS] = tensors
    global_state.set_global_attribute(_NUMBERS, counted)


def _numbers() -> dict[str, int]:
    return global_state.get_global_attribute(_NUMBERS) or {}
