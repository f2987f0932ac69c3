"""Chance for those who talk to stores, apart from the training's.

Python's own generator belongs to the training: its state is in every checkpoint. The clients of
stores draw from it for their pauses and the order of their connections, in threads of their own, as
often as a network makes them; a training that met other faults would not end with the same bytes.
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
        "tenacity",
        "urllib3",
    }
)


class _Chance(random.Random):
    """A generator that clients may take for the module: it has the module's classes as well."""

    def __getattr__(self, name: str) -> Any:
        return getattr(random, name)


chance: Final = _Chance()


def keep_apart() -> None:
    """Let the clients that are imported draw from `chance` from now on."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _CLIENTS and getattr(module, "random", None) is random:
            vars(module)["random"] = chance
