"""The rank of this process in its attempt. A gang has several processes in one attempt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

from outlast.errors import SpecInvalid

RANK: Final = "OUTLAST_RANK"
WORLD_SIZE: Final = "OUTLAST_WORLD_SIZE"


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """The rank of a process. Only the first process begins an attempt and commits."""

    number: int = 0
    """Index of the process, from 0."""
    of: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this is the first process, which acts for the attempt."""
        return self.number == 0

    def variables(self, local: int) -> dict[str, str]:
        """Return the environment variables of this process: Outlast's and torchrun's.

        Args:
            local: Index of the process on its machine, from 0.
        """
        ours = {RANK: str(self.number), WORLD_SIZE: str(self.of)}
        theirs = {"RANK": str(self.number), "WORLD_SIZE": str(self.of), "LOCAL_RANK": str(local)}
        return ours | theirs


def here(environ: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank of this process; by default it is the only one of its attempt.

    RANK alone is ignored, because any launcher may have set it.

    Raises:
        SpecInvalid: the variables do not name a process.
    """
    given = [environ.get(name, "") for name in (RANK, WORLD_SIZE)]
    if given == ["", ""]:
        return Rank()
    number, of = (int(text) if text.isdecimal() else -1 for text in given)
    if not 0 <= number < of:
        raise SpecInvalid(
            field=RANK,
            problem=f"{RANK}={given[0]!r}, {WORLD_SIZE}={given[1]!r} do not name a process",
        )
    return Rank(number=number, of=of)


def none(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without the rank, for a process outside this gang."""
    return {name: text for name, text in environ.items() if name not in (RANK, WORLD_SIZE)}
