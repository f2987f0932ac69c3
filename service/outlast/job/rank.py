"""Which of an attempt's processes this one is: a gang has several, and one attempt number."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from outlast.errors import SpecInvalid

RANK: Final = "OUTLAST_RANK"
WORLD_SIZE: Final = "OUTLAST_WORLD_SIZE"


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """Process `number` (from 0) of `of`. The first speaks for all: it alone begins and commits."""

    number: int = 0
    of: int = 1

    @property
    def first(self) -> bool:
        """Whether it speaks for the attempt."""
        return self.number == 0

    def variables(self, local: int) -> dict[str, str]:
        """Return the variables of such a process; local: its number among those of its machine.

        Ours, which `here` reads, and those of torchrun, for the script.
        """
        ours = {RANK: str(self.number), WORLD_SIZE: str(self.of)}
        theirs = {"RANK": str(self.number), "WORLD_SIZE": str(self.of), "LOCAL_RANK": str(local)}
        return ours | theirs


def here(environ: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank of this process, the only one of its attempt where nothing else is said.

    RANK alone says nothing: any launcher may have set it. Raises `SpecInvalid`.
    """
    given = [environ.get(name, "") for name in (RANK, WORLD_SIZE)]
    if given == ["", ""]:
        return Rank()
    number, of = (int(text) if text.isdecimal() else -1 for text in given)
    if not 0 <= number < of:
        raise SpecInvalid(
            field=RANK, problem=f"{RANK}={given[0]!r}, {WORLD_SIZE}={given[1]!r} name no process"
        )
    return Rank(number=number, of=of)


def none(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a process that is of no gang, or of another one."""
    return {name: text for name, text in environ.items() if name not in (RANK, WORLD_SIZE)}
