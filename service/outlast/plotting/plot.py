"""Draws learning curves as a PNG with restarts marked. The only importer of matplotlib."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from outlast.errors import ExtraMissing
from outlast.plotting.curves import Curve, Curves, Panel
from outlast_checkpoints.printable import printable

MOST_PANELS = 6
MOST_LABELS, FEW = 40, 8  # most restarts with a number, and with the word "attempt"
# A name such as "x$_$" is no formula.
_STYLE = {"font.size": 9, "axes.spines.top": False, "text.parse_math": False}
_BLUE, _ORANGE, _GREY, _RED = "#0072b2", "#d55e00", "#8c8c8c", "#b22222"


def draw(
    curves: Curves,
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    unit: str = "step",
) -> bytes:
    """Return a PNG of `curves` with one panel for each metric, the loss on top.

    Args:
        curves: The curves.
        title: Title of the plot.
        metrics: Metrics to draw; default: all, at most MOST_PANELS.
        unit: Label of the axis.

    Raises:
        ExtraMissing: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ExtraMissing(feature="A plot", package="matplotlib", extra="plot") from None
    # Use a canvas directly, so that no global setting of the user's process changes.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(metrics) if metrics else sorted(curves.panels, key=lambda name: name != "loss")
    names = names[:MOST_PANELS]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 1.2 + 2.8 * len(names)), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(printable(title))
        all_axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(all_axes, names, strict=True):
            _draw_panel(axes, name, curves.panels.get(name, Panel()))
            _draw_marks(axes, curves)
            # Beside the curves, so that it hides none.
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
        all_axes[-1].set_xlabel(unit)
        png = io.BytesIO()
        # Omit the version of matplotlib, so that equal curves give equal bytes.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # it draws a box instead
            figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_panel(axes: Any, name: str, panel: Panel) -> None:
    axes.set_ylabel(printable(name))
    axes.spines["right"].set_visible(False)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    if panel.own:
        _draw_each(axes, panel.own, "each batch")
        axes.plot(panel.own.x, smooth(panel.own.y), color=_BLUE, linewidth=1.4, label="smoothed")
    elif panel.running:
        if not panel.running.exact:
            _draw_each(axes, panel.running, "range")
        axes.plot(
            panel.running.x, panel.running.y, color=_BLUE, linewidth=1.0, label="mean in the epoch"
        )
    elif panel.epoch:
        _draw_epochs(axes, panel.epoch, color=_BLUE, marker=".", label="epoch")
    if panel.validation:
        _draw_epochs(
            axes,
            panel.validation,
            color=_ORANGE,
            marker="o",
            markersize=3,
            linewidth=1.4,
            label="validation",
        )


def _draw_each(axes: Any, curve: Curve, label: str) -> None:
    """Draw every value in a pale colour; if there are too many, the range of values."""
    if curve.exact:
        axes.plot(curve.x, curve.y, color=_BLUE, alpha=0.25, linewidth=0.6, label=label)
    else:
        axes.fill_between(
            curve.x, curve.low, curve.high, color=_BLUE, alpha=0.25, linewidth=0.3, label=label
        )


def _draw_epochs(axes: Any, curve: Curve, **style: Any) -> None:
    if not curve.exact:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.25)
        style |= {"marker": None}
    axes.plot(curve.x, curve.y, **style)


def _draw_marks(axes: Any, curves: Curves) -> None:
    for place, name in curves.phases if len(curves.phases) > 1 else []:
        axes.axvline(place, color=_GREY, linewidth=0.8)
        _label(axes, place, f" {printable(name)}", _GREY)
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


def smooth(values: Iterable[float]) -> list[float]:
    """Return an exponential mean over about a fiftieth of `values`; NaN stays NaN."""
    values = list(values)
    weight = 1.0 / max(1.0, len(values) / 50)
    smoothed: list[float] = []
    mean, seen = 0.0, 0.0
    for value in values:
        if math.isnan(value):
            smoothed.append(value)
            continue
        # Dividing by the weight so far avoids a bias towards zero at the start.
        mean += weight * (value - mean)
        seen += weight * (1.0 - seen)
        smoothed.append(mean / seen)
    return smoothed
