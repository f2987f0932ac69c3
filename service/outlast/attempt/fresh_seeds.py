"""Seeds for the generators of NumPy that a script leaves unseeded.

`default_rng()` and `RandomState()` take their seed from the operating system. In an attempt they
take the next of a sequence that the job's seed decides, so that a restart repeats them.
"""

from __future__ import annotations

import importlib
import os
import random
from dataclasses import dataclass
from typing import Any


@dataclass
class _Sequence:
    seed: int
    pid: int
    drawn: int = 0

    def randbits(self, bits: int) -> int:
        """Return so many random bits: the next of the sequence, or others in a child process."""
        if os.getpid() != self.pid:  # children would all get the same
            return random.SystemRandom().getrandbits(bits)
        self.drawn += 1
        return random.Random(f"{self.seed} {self.drawn}").getrandbits(bits)  # nosec B311


_sequence: _Sequence | None = None


def begin(seed: int) -> None:
    """Let NumPy, which is imported, take its seeds from the sequence of this seed."""
    global _sequence
    _sequence = _Sequence(seed, os.getpid())
    bit_generator: Any = importlib.import_module("numpy.random.bit_generator")
    bit_generator.randbits = _sequence.randbits


def drawn() -> int | None:
    """Return how many seeds were drawn; None if they come from the operating system."""
    return None if _sequence is None else _sequence.drawn


def go_on(after: int | None) -> None:
    """Continue after so many seeds, which `drawn` returned."""
    if _sequence is not None and after is not None:
        _sequence.drawn = after
