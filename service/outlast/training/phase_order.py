"""Which phase of the job each `fit` and `Loop` of the script is: by its name, else by its turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from outlast.training.errors import PhaseUnfinished
from outlast_checkpoints.errors import UsageError


class PhaseOrder:
    """The phases that the job has, and those that the script has entered.

    A name means its phase, whatever the order. Phases without a name keep their order among each
    other. What is not there yet is a new phase, which can begin once all others are ended: what
    comes later is what a restart finds.

    Args:
        names: Names of the stored phases by index, None for one without a name.
        ended: Those that are finished, or were left for good.
    """

    def __init__(self, names: Mapping[int, str | None], ended: Iterable[int]) -> None:
        self.names = dict(names)
        self.entered: list[tuple[int, str | None]] = []
        self._open = set(names) - set(ended)
        self._new: set[int] = set()  # has no checkpoint yet

    def enter(self, name: str | None) -> int:
        """Return the index of the phase that starts now.

        Raises `UsageError` for a name that was used before, `PhaseUnfinished` when a new phase
        would begin while another one is unfinished.
        """
        used = [one for _, one in self.entered]
        if name is not None and name in used:
            raise UsageError(
                field="name",
                problem=f"{name!r} names an earlier phase of this script",
                hint="Give each fit a name of its own.",
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
        """Note that the phase has, or may have, a checkpoint."""
        self._new.discard(index)

    def end(self, index: int) -> None:
        """Note that the phase is finished, or left for good."""
        self._new.discard(index)
        self._open.discard(index)

    def withdraw(self, index: int) -> None:
        """Take back the phase entered last, which ended before it was saved or will be retried."""
        self.entered = [one for one in self.entered if one[0] != index]
        if index in self._new:
            self._new.discard(index)
            self._open.discard(index)
            del self.names[index]

    def later_than(self, index: int) -> bool:
        """Whether the job has a phase that comes after this one."""
        return max(self.names) > index


def _called(index: int, name: str | None) -> str:
    return f"phase {index}" if name is None else f"phase {index} ({name!r})"


def _named(name: str | None) -> str:
    return "without a name" if name is None else f"named {name!r}"
