"""Learning curves of any number of history rows, gathered in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from outlast_checkpoints.history.columns import Columns, Numbers, Points

MOST_SPANS = 4096  # about four for each pixel of a plot's width


class Curve:
    """Values by place, as minimum, mean and maximum over spans of equal length.

    Spans start with a length of 1. Their length doubles whenever a place is beyond the last of
    `MOST_SPANS`. So the memory is bounded, and every value counts. A span without a finite value
    is a gap, because an infinity would distort the axis.
    """

    def __init__(self) -> None:
        self._length = 1.0
        self._seen = np.zeros(MOST_SPANS)
        self._places = np.zeros(MOST_SPANS)
        self._finite = np.zeros(MOST_SPANS)
        self._total = np.zeros(MOST_SPANS)
        self._low = np.full(MOST_SPANS, np.inf)
        self._high = np.full(MOST_SPANS, -np.inf)

    def add(self, places: Numbers, values: Numbers) -> None:
        """Add values at their places (at least 0, in any order)."""
        if not len(places):
            return
        while places.max() >= MOST_SPANS * self._length:
            self._double()
        spans = (places / self._length).astype(np.intp)
        finite = np.isfinite(values)
        self._seen += np.bincount(spans, minlength=MOST_SPANS)
        self._places += np.bincount(spans, places, MOST_SPANS)
        if not finite.all():
            spans, values = spans[finite], values[finite]
        self._finite += np.bincount(spans, minlength=MOST_SPANS)
        self._total += np.bincount(spans, values, MOST_SPANS)
        np.minimum.at(self._low, spans, values)
        np.maximum.at(self._high, spans, values)

    def _double(self) -> None:
        self._length *= 2
        for sums in (self._seen, self._places, self._finite, self._total):
            _halve(sums, sums.reshape(-1, 2).sum(axis=1), 0.0)
        _halve(self._low, self._low.reshape(-1, 2).min(axis=1), np.inf)
        _halve(self._high, self._high.reshape(-1, 2).max(axis=1), -np.inf)

    def __bool__(self) -> bool:
        """Return whether the curve has any value."""
        return bool(self._seen.any())

    @property
    def exact(self) -> bool:
        """Whether no span has more than one value, so that each value is exact."""
        return bool(self._seen.max() <= 1)

    @property
    def x(self) -> Numbers:
        """The mean place of each span with values, ascending."""
        seen = self._seen > 0
        return self._places[seen] / self._seen[seen]

    @property
    def y(self) -> Numbers:
        """The mean of the finite values of each such span; NaN if there are none."""
        return self._of_seen(self._total / np.maximum(1, self._finite))

    @property
    def low(self) -> Numbers:
        """The minimum of these values."""
        return self._of_seen(self._low)

    @property
    def high(self) -> Numbers:
        """The maximum of these values."""
        return self._of_seen(self._high)

    def _of_seen(self, numbers: Numbers) -> Numbers:
        return np.where(self._finite > 0, numbers, np.nan)[self._seen > 0]


def _halve(numbers: Numbers, joined: Numbers, empty: float) -> None:
    numbers[: len(joined)] = joined
    numbers[len(joined) :] = empty


@dataclass
class Panel:
    """The curves of one metric."""

    own: Curve = field(default_factory=Curve)
    """Value of each step."""
    running: Curve = field(default_factory=Curve)
    """Running mean over the epoch, at each step."""
    epoch: Curve = field(default_factory=Curve)
    """Value of each epoch."""
    validation: Curve = field(default_factory=Curve)
    """Value of each validation."""


class Curves:
    """All learning curves of a job. The steps of its phases follow each other on one axis.

    Attributes:
        panels: Curves by metric.
        phases: (place, name) of the start of each phase.
        restarts: (place, attempt) where later attempts resumed.
    """

    def __init__(self) -> None:
        self.panels: dict[str, Panel] = {}
        self.phases: list[tuple[float, str]] = []
        self.restarts: list[tuple[float, int]] = []
        self._begins: dict[int, float] = {}
        self._end = 0.0

    @classmethod
    def of(cls, blocks: Iterable[Columns], restarts: Iterable[tuple[int, int, int]] = ()) -> Curves:
        """Gather the columns of a history; `restarts` are (attempt, phase, step)."""
        curves = cls()
        for columns in blocks:
            curves._add(columns)
        curves.restarts = [
            (curves._begins[phase] + step, attempt)
            for attempt, phase, step in restarts
            if phase in curves._begins
        ]
        return curves

    def _add(self, columns: Columns) -> None:
        if columns.phase not in self._begins:
            self._begins[columns.phase] = self._end
            self.phases.append((self._end, f"phase {columns.phase}"))
        if columns.name:
            self.phases[-1] = (self.phases[-1][0], columns.name)
        if columns.kind not in ("step", "epoch"):
            return
        begin = self._begins[columns.phase]
        self._end = max(self._end, begin + float(columns.steps.max()))
        own = columns.batch_loss if columns.kind == "step" else None
        if own is not None:
            self._gather("loss", "own", begin, own)
        for name, points in columns.logs.items():
            if own is not None and name == "loss":
                continue  # its running mean would only repeat it
            metric = name.removeprefix("val_")
            kind = "running" if columns.kind == "step" else "epoch"
            self._gather(metric, "validation" if metric != name else kind, begin, points)

    def _gather(self, metric: str, curve: str, begin: float, points: Points) -> None:
        if metric not in self.panels:
            self.panels[metric] = Panel()
        getattr(self.panels[metric], curve).add(begin + points.steps, points.numbers)


def of_epochs(history: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> Curves:
    """Return the curves of a Keras History: lists of metrics by epoch, counted from 1."""
    steps = np.array(epochs, float) + 1
    logs = {}
    for name, values in history.items():
        there = [at for at, one in enumerate(values[: len(steps)]) if isinstance(one, (int, float))]
        if there:
            logs[name] = Points(steps[there], np.array([values[at] for at in there], float))
    return Curves.of([Columns("epoch", 0, steps, logs=logs)] if len(steps) else [])
