"""Writes the learning curves of a job's history as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlast.atomic_file import replacing
from outlast.plotting.curves import Curves
from outlast.plotting.plot import draw
from outlast_checkpoints.errors import UsageError

if TYPE_CHECKING:
    from outlast_checkpoints.history import HistoryReader


def plot_history(
    reader: HistoryReader, path: Path, *, title: str, metrics: Sequence[str] = ()
) -> Curves:
    """Write the learning curves of a job to a PNG file; return the curves.

    Args:
        reader: History of the job.
        path: File to write; must end in .png.
        title: Title of the plot.
        metrics: Metrics to draw; default: all, at most `plot.MOST_PANELS`.

    Raises:
        UsageError: not a PNG file, an unknown metric, or an empty history.
        StorageError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(
            field="--plot",
            problem=f"{path.name!r} is not a PNG file",
            hint="Use a name that ends in .png.",
        )
    curves = Curves.of(reader.columns(), reader.restarts())
    for name in metrics:
        if name not in curves.panels:
            raise UsageError(
                field="--metric",
                problem=f"the history has no metric {name!r}",
                hint=f"Known metrics: {', '.join(curves.panels) or 'none yet'}.",
            )
    if not curves.panels:
        raise UsageError(
            field="--plot", problem=f"{title} has no history yet", hint="Try again later."
        )
    with replacing(path) as file:
        file.write(draw(curves, title=title, metrics=metrics))
    return curves
