"""Figures of benchmarks: ours and a peer's, measured alternately in one run on one machine."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

PAIRS = 5


class Spread(NamedTuple):
    """Median, minimum and maximum of several measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A row of the table.

    ours, peer: in `unit`; peer: what `against` names, None where there is nobody to compare with.
    ratio: ours / peer, pair by pair. bar: what is asked for, in words; holds: whether the medians
    meet it, None where the run was too small to tell.
    """

    name: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    against: str = ""
    ratio: Spread | None = None
    bar: str = ""
    holds: bool | None = None
    detail: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        found = dataclasses.asdict(self)
        for name in ("ours", "peer", "ratio"):
            spread = getattr(self, name)
            found[name] = None if spread is None else spread._asdict()
        return found

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Figure:
        """Return the figure that `plain` returned."""
        spreads = {
            name: None if plain[name] is None else Spread(**plain[name])
            for name in ("ours", "peer", "ratio")
        }
        return cls(**{**plain, **spreads})


def in_turn(
    ours: Callable[[], float], peer: Callable[[], float], pairs: int = PAIRS
) -> tuple[list[float], list[float]]:
    """Measure both `pairs` times, alternating which is first, so that drift favours neither."""
    found: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            found[which].append((ours, peer)[which]())
    return found


def compared(
    name: str, unit: str, ours: Sequence[float], peer: Sequence[float], against: str, **more: Any
) -> Figure:
    """Return the figure of measurements that were taken alternately."""
    ratios = [one / other for one, other in zip(ours, peer, strict=True)]
    spreads = Spread.of(ours), Spread.of(peer), Spread.of(ratios)
    return Figure(name, unit, spreads[0], spreads[1], against, spreads[2], **more)


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as aligned lines: median, minimum and maximum."""
    lines = [("", "ours", "peer", "ratio", "asked for", "")]
    for one in figures:
        lines.append(
            (
                f"{one.name} [{one.unit}]",
                str(one.ours),
                f"{one.peer}  {one.against}" if one.peer else "-",
                str(one.ratio) if one.ratio else "-",
                one.bar + {True: ": holds", False: ": MISSED", None: ""}[one.holds],
                one.detail,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def show(figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print the figures, as a table or as JSON."""
    plain = [one.plain() for one in figures]
    print(json.dumps(plain, indent=2) if as_json else table(figures))
