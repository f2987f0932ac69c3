"""The learning curves of a job as a PNG, its restarts marked. Only importer of matplotlib."""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.errors import ExtraMissing

MOST_PANELS = 6
MOST_LABELS, FEW = 40, 8  # restarts that are numbered at all, and those with the word
_BLUE, _ORANGE, _GREY, _RED = "#0072b2", "#d55e00", "#8c8c8c", "#b22222"


@dataclass
class Curve:
    """One line: places (steps over all phases) and values."""

    x: array[float] = field(default_factory=lambda: array("d"))
    y: array[float] = field(default_factory=lambda: array("d"))

    def add(self, x: float, y: float) -> None:
        self.x.append(x)
        # A gap where the value is not finite: an infinity would take the whole axis along.
        self.y.append(y if math.isfinite(y) else math.nan)


@dataclass
class Panel:
    """A metric's lines: each step's own value, its running mean, each epoch's, validation's."""

    own: Curve = field(default_factory=Curve)
    running: Curve = field(default_factory=Curve)
    epoch: Curve = field(default_factory=Curve)
    validation: Curve = field(default_factory=Curve)


@dataclass
class Curves:
    """What is drawn: panels by metric, where phases begin, where later attempts took over.

    Steps of a script's phases follow one another on one axis.
    """

    panels: dict[str, Panel]
    phases: list[tuple[float, str]]
    restarts: list[tuple[float, int]]

    @classmethod
    def of(
        cls, rows: Iterable[Mapping[str, Any]], restarts: Sequence[tuple[int, int, int]]
    ) -> Curves:
        """Gather history rows; `restarts` are (attempt, phase, step) as history tells them."""
        panels: dict[str, Panel] = {}
        phases: list[tuple[float, str]] = []
        begins: dict[int, float] = {}
        end = 0.0
        for row in rows:
            phase = int(row["phase"])
            if phase not in begins:
                begins[phase] = end
                phases.append((end, f"phase {phase}"))
            if row["kind"] == "phase":
                if row.get("name"):
                    phases[-1] = (phases[-1][0], str(row["name"]))
                continue
            place = begins[phase] + int(row["step"])
            end = max(end, place)
            in_steps = row["kind"] == "step"
            if in_steps and isinstance(row.get("batch_loss"), float):
                panels.setdefault("loss", Panel()).own.add(place, row["batch_loss"])
            for name, value in row.get("logs", {}).items():
                if not isinstance(value, (int, float)):
                    continue
                panel = panels.setdefault(name.removeprefix("val_"), Panel())
                if name.startswith("val_"):
                    panel.validation.add(place, value)
                else:
                    (panel.running if in_steps else panel.epoch).add(place, value)
        marks = [
            (begins[phase] + step, attempt) for attempt, phase, step in restarts if phase in begins
        ]
        return cls(panels, phases, marks)


def draw(
    curves: Curves,
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    unit: str = "step",
) -> bytes:
    """Return a PNG of `curves`: one panel a metric, the loss on top.

    metrics: which to draw; default: all, at most MOST_PANELS. unit: what the axis counts. Raises
    ExtraMissing when matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ExtraMissing(feature="A plot", package="matplotlib", extra="plot") from None
    # The backend is named on the canvas, so that nothing global changes in the user's process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(metrics) if metrics else sorted(curves.panels, key=lambda name: name != "loss")
    names = names[:MOST_PANELS]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(10, 1.2 + 2.8 * len(names)), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        all_axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(all_axes, names, strict=True):
            _draw_panel(axes, name, curves.panels.get(name, Panel()))
            _draw_marks(axes, curves)
            # Beside the curves: over them it would hide some, and looking for room is slow.
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
        all_axes[-1].set_xlabel(unit)
        png = io.BytesIO()
        # Without the version of matplotlib in it, equal curves give equal bytes.
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_panel(axes: Any, name: str, panel: Panel) -> None:
    axes.set_ylabel(name)
    axes.spines["right"].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    own, running = panel.own, panel.running
    if own.x:
        axes.plot(own.x, own.y, color=_BLUE, alpha=0.25, linewidth=0.6, label="each batch")
        axes.plot(own.x, smooth(own.y), color=_BLUE, linewidth=1.4, label="smoothed")
    elif running.x:
        axes.plot(running.x, running.y, color=_BLUE, linewidth=1.0, label="mean in the epoch")
    elif panel.epoch.x:
        axes.plot(panel.epoch.x, panel.epoch.y, color=_BLUE, marker=".", label="epoch")
    if panel.validation.x:
        axes.plot(
            panel.validation.x,
            panel.validation.y,
            color=_ORANGE,
            marker="o",
            markersize=3,
            linewidth=1.4,
            label="validation",
        )


def _draw_marks(axes: Any, curves: Curves) -> None:
    for place, name in curves.phases if len(curves.phases) > 1 else []:
        axes.axvline(place, color=_GREY, linewidth=0.8)
        _label(axes, place, f" {name}", _GREY)
    for index, (place, attempt) in enumerate(curves.restarts):
        label = "restart" if index == 0 else None
        axes.axvline(place, color=_RED, linewidth=1.0, linestyle="--", label=label)
        if len(curves.restarts) <= MOST_LABELS:
            _label(
                axes,
                place,
                f" attempt {attempt}" if len(curves.restarts) <= FEW else f" {attempt}",
                _RED,
            )


def _label(axes: Any, place: float, text: str, color: str) -> None:
    across = axes.get_xaxis_transform()
    axes.text(place, 1.01, text, transform=across, color=color, fontsize=7, ha="left", va="bottom")


def smooth(values: Sequence[float]) -> list[float]:
    """Return an exponential mean over about a fiftieth of `values`; NaN stays where it is."""
    weight = 1.0 / max(1.0, len(values) / 50)
    smoothed: list[float] = []
    mean, seen = 0.0, 0.0
    for value in values:
        if math.isnan(value):
            smoothed.append(value)
            continue
        # Dividing by the weight seen so far keeps the start from leaning to zero.
        mean += weight * (value - mean)
        seen += weight * (1.0 - seen)
        smoothed.append(mean / seen)
    return smoothed
