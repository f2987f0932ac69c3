"""A private random generator for storage clients, so that retries do not consume the training's
random numbers.

Python's global generator belongs to the training: its state is in every checkpoint. Storage clients
draw from it in their threads, for pauses and the order of connections, as often as the network
makes them retry. Without a private generator the same training would end with other bytes whenever
the network behaves differently.
"""

from __future__ import annotations

import random
import sys
from typing import Any, Final

_CLIENTS: Final = frozenset(
    {
        "adlfs",
        "aiobotocore",
        "aiohttp",
        "azure",
        "botocore",
        "gcsfs",
        "google",
        "requests",
        "s3fs",
        "s3transfer",
        "tenacity",
        "urllib3",
    }
)


class _PrivateRng(random.Random):
    """A generator that stands in for the module `random`, including the module's classes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(random, name)


rng: Final = _PrivateRng()


def use_private_rng() -> None:
    """Make the clients that are imported now draw from `rng`."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _CLIENTS and getattr(module, "random", None) is random:
            vars(module)["random"] = rng
