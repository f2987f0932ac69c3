"""States of random generators, checked before a generator takes them.

numpy does not check the position in a buffer of random words: with a wrong one it would read and
write beside it. A Mersenne Twister of zeros, and a PCG whose increment is even, may give the same
number for ever, and then drawing a normal number never ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_PYTHONS_VERSION = 3
_PYTHONS_WORDS = 625
# By bit generator: where in its state the position stands, and the last one.
_WORDS = 624  # of a Mersenne Twister
_PCG = ("PCG64", "PCG64DXSM")
_POSITIONS = {"MT19937": (("state", "pos"), 624), "Philox": (("buffer_pos",), 4)}


def python_state(version: Any, words: Any, gauss: Any) -> tuple[Any, ...]:
    """Return a state for `random.setstate` from its parts. Raises `ValueError`, `TypeError`."""
    if version != _PYTHONS_VERSION or len(words) != _PYTHONS_WORDS:
        raise ValueError("it is not the state of Python's generator")
    if gauss is not None and type(gauss) is not float:
        raise TypeError("the next normal number is not a number")
    found = tuple(int(word) for word in words)
    _check_moves(found[:_WORDS])
    return version, found, gauss


def numpy_state(state: Any) -> Any:
    """Return the state of one of numpy's bit generators, its position checked.

    Raises `ValueError`, `TypeError` and `LookupError`.
    """
    if not isinstance(state, dict):
        raise TypeError("it is not the state of a bit generator")
    places, last = _POSITIONS.get(state["bit_generator"], ((), 0))
    found: Any = state
    for place in places:
        found = found[place]
    if places and (not isinstance(found, int | np.integer) or not 0 <= found <= last):
        raise ValueError(f"{places[-1]} is {str(found)[:100]}, not a number up to {last}")
    if state["bit_generator"] == "MT19937":
        key = state["state"]["key"]
        if len(key) != _WORDS:
            raise ValueError(f"it has {len(key)} words instead of {_WORDS}")
        _check_moves([int(word) for word in key])
    if state["bit_generator"] in _PCG and int(state["state"]["inc"]) % 2 == 0:
        raise ValueError("its increment is even")
    return state


def _check_moves(words: Sequence[int]) -> None:
    """Raise `ValueError` for the one state of a Mersenne Twister that never changes.

    Of its first word, only the highest bit counts.
    """
    if not words[0] >> 31 and not any(words[1:]):
        raise ValueError("its words are all zero, so it would give the same number for ever")
