"""`PhaseOrder`: which phase each `fit` or `Loop` is: by name, or else by its place and order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from outlast.training.call_site import CallSite
from outlast.training.errors import PhaseUnfinished
from outlast_checkpoints.errors import UsageError


@dataclass(frozen=True)
class Call:
    """One call of `fit` or `Loop`.

    Attributes:
        name: Its name, or `None`.
        site: Where the script calls.
        parts: Weak references to the models that it trains.
    """

    name: str | None = None
    site: CallSite = field(default_factory=CallSite)
    parts: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[str | None, str | None]:
        """What identifies the phase: its name, or the values of the loops around it."""
        return (self.name, None if self.name is not None else self.site.place)

    def repeats(self, earlier: Call) -> bool:
        """Return whether this call is an earlier one, made by a cell or script that is run again.

        A call without a name that trains the same model again goes on with it, as in Keras.
        """
        if not self.site.repeats(earlier.site):
            return False
        trained = {id(part()) for part in earlier.parts if part() is not None}
        return self.name is not None or not any(id(part()) in trained for part in self.parts)


class PhaseOrder:
    """The phases that the job has, and those that the script has entered.

    A name identifies its phase, in whatever order the script calls them. Phases without a name are
    identified by the values of the `for` loops around the call; those with equal values keep their
    order among themselves. Any other phase is new. It can begin only when all others have ended,
    because a restart finds only the latest phase.

    `known` has name and place of the stored phases by index. `ended` has the indices of those that
    are finished or were left for good. `left` is the unfinished phase that an earlier attempt left
    by an error or `break`: it has ended if the script does not call it again.

    Attributes:
        known: Name and place of all phases by index.
        entered: Index and call of each phase that the script has entered, in order.
    """

    def __init__(
        self,
        known: Mapping[int, tuple[str | None, str | None]],
        ended: Iterable[int],
        *,
        left: int | None = None,
    ) -> None:
        self.known = dict(known)
        self.entered: list[tuple[int, Call]] = []
        self._ended = set(ended)
        self._open = set(known) - self._ended
        self._new: set[int] = set()  # without a checkpoint yet
        self.left = left

    def candidates(self, call: Call) -> list[int]:
        """Return the known phases that the call may be, in order; empty for a new one.

        Raises `UsageError` for a name that was used before.
        """
        used = [(index, one) for index, one in self.entered if not call.repeats(one)]
        if call.name is not None and call.name in [one.name for _, one in used]:
            raise UsageError(
                field="name",
                problem=f"{call.name!r} names an earlier phase of this script",
                hint="Use a different name for each phase.",
            )
        taken = {index for index, _ in used}
        return sorted(
            index for index, key in self.known.items() if key == call.key and index not in taken
        )

    def enter(self, index: int, call: Call) -> None:
        """Note that the call is this known phase."""
        self.entered.append((index, call))
        if index == self.left:
            self.left = None

    def begin(self, call: Call) -> int:
        """Enter a new phase, and return its index.

        Raises `PhaseUnfinished` if another one is unfinished.
        """
        if self.left is not None:
            self.end(self.left)
        for index in sorted(self._open):
            raise PhaseUnfinished(
                phase=f"phase {index}{_called(self.known[index], brackets=True)}",
                new=_called(call.key) or "without a name",
            )
        index = max(self.known, default=-1) + 1
        self.known[index] = call.key
        self._open.add(index)
        self._new.add(index)
        self.enter(index, call)
        return index

    def is_running(self) -> bool:
        """Return whether the phase that the script entered last has not ended."""
        return bool(self.entered) and self.entered[-1][0] in self._open

    def passed_over(self) -> list[int]:
        """Return the phases that ended, but that the script has not called in this process.

        They do not count once it has called the last of them, which leaves the state of a run
        without restarts.
        """
        called = {index for index, _ in self.entered}
        return [] if max(self._ended, default=-1) in called else sorted(self._ended - called)

    def begun(self, index: int) -> None:
        """Note that the phase has a checkpoint, or may have one."""
        self._new.discard(index)

    def end(self, index: int) -> None:
        """Note that the phase is finished, or left for good."""
        self._new.discard(index)
        self._open.discard(index)
        self._ended.add(index)

    def withdraw(self, index: int) -> None:
        """Withdraw the last entered phase: it ended before it was saved, or will be retried."""
        self.entered = [one for one in self.entered if one[0] != index]
        if index in self._new:
            self._new.discard(index)
            self._open.discard(index)
            del self.known[index]

    def later_than(self, index: int) -> bool:
        """Return whether the job has a later phase than this one."""
        return max(self.known) > index


def _called(key: tuple[str | None, str | None], *, brackets: bool = False) -> str:
    name, place = key
    if name is None and place is None:
        return ""
    if brackets:
        return f" ({place if name is None else repr(name)})"
    return f"at {place}" if name is None else f"named {name!r}"
