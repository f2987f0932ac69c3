"""`PhaseOrder`: which phase of the job each `fit` or `Loop` is, by its name or else its order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from outlast.training.errors import PhaseUnfinished
from outlast_checkpoints.errors import UsageError


class PhaseOrder:
    """The phases that the job has, and those that the script has entered.

    A name identifies its phase, in whatever order the script calls them. Phases without a name keep
    their order among themselves. Any other phase is new. It can begin only when all others have
    ended, because a restart finds only the latest phase.

    `names` has the names of the stored phases by index, `None` for a phase without a name. `ended`
    has the indices of those that are finished or were left for good.

    Attributes:
        names: Names of all phases by index.
        entered: Index and name of each phase that the script has entered, in order.
    """

    def __init__(self, names: Mapping[int, str | None], ended: Iterable[int]) -> None:
        self.names = dict(names)
        self.entered: list[tuple[int, str | None]] = []
        self._open = set(names) - set(ended)
        self._new: set[int] = set()  # without a checkpoint yet

    def enter(self, name: str | None) -> int:
        """Return the index of the phase that starts now.

        Raises `UsageError` for a name that was used before, and `PhaseUnfinished` if a new phase
        would begin while another one is unfinished.
        """
        used = [one for _, one in self.entered]
        if name is not None and name in used:
            raise UsageError(
                field="name",
                problem=f"{name!r} names an earlier phase of this script",
                hint="Use a different name for each phase.",
            )
        like = sorted(index for index, one in self.names.items() if one == name)
        turn = 0 if name is not None else used.count(None)
        index = like[turn] if turn < len(like) else self._add(name)
        self.entered.append((index, name))
        return index

    def _add(self, name: str | None) -> int:
        for index in sorted(self._open):
            raise PhaseUnfinished(phase=_called(index, self.names[index]), new=_named(name))
        index = max(self.names, default=-1) + 1
        self.names[index] = name
        self._open.add(index)
        self._new.add(index)
        return index

    def begun(self, index: int) -> None:
        """Note that the phase has a checkpoint, or may have one."""
        self._new.discard(index)

    def end(self, index: int) -> None:
        """Note that the phase is finished, or left for good."""
        self._new.discard(index)
        self._open.discard(index)

    def withdraw(self, index: int) -> None:
        """Withdraw the last entered phase: it ended before it was saved, or will be retried."""
        self.entered = [one for one in self.entered if one[0] != index]
        if index in self._new:
            self._new.discard(index)
            self._open.discard(index)
            del self.names[index]

    def later_than(self, index: int) -> bool:
        """Return whether the job has a later phase than this one."""
        return max(self.names) > index


def _called(index: int, name: str | None) -> str:
    return f"phase {index}" if name is None else f"phase {index} ({name!r})"


def _named(name: str | None) -> str:
    return "without a name" if name is None else f"named {name!r}"
