"""JSON documents of a type, decoded by any number of threads.

msgspec prepares a type when it is first decoded. A second thread that decodes it meanwhile reads
what is not there yet, and the process dies of SIGSEGV. So one thread at a time prepares.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar

import msgspec

Kind = TypeVar("Kind")

_preparing = threading.RLock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode(data: bytes | memoryview | str, kind: type[Kind]) -> Kind:
    """Return the document as an instance of `kind`. Raises msgspec's errors."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _preparing:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    found: Kind = decoder.decode(data)
    return found


def _after_fork() -> None:
    global _preparing
    _preparing = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
