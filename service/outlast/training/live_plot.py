"""`view_metrics`: the curves of a running training, in the notebook or as a PNG."""

from __future__ import annotations

import importlib.util
import sys
import threading
from typing import Any

from keras import callbacks

from outlast.attempt.context import AttemptContext
from outlast.errors import ExtraMissing
from outlast.job.log_events import LogEvent
from outlast.plotting.plot import draw
from outlast.training.history import curves_of
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout


class MetricsView:
    """Draws the metrics by epoch in the background, one picture at a time.

    In a notebook, the picture appears below the cell and is updated in place. Elsewhere it is
    `metrics.png` in the job's folder. The constructor raises `ExtraMissing` without matplotlib.
    """

    def __init__(self, ctx: AttemptContext, history: callbacks.History) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            raise ExtraMissing(feature="view_metrics", package="matplotlib", extra="plot")
        self._ctx = ctx
        self._history = history
        self._thread: threading.Thread | None = None
        self._display: Any = None

    def update(self) -> None:
        """Draw the epochs so far, unless the previous picture is still being drawn."""
        if self._thread is None or not self._thread.is_alive():
            curves = curves_of(self._history)
            self._thread = threading.Thread(
                target=self._draw, args=(curves,), name="outlast-view", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Draw the last picture and wait for it."""
        if self._thread is not None:
            self._thread.join()
        self._draw(curves_of(self._history))

    def _draw(self, curves: Any) -> None:
        try:
            png = draw(curves, title=self._ctx.spec.job, unit="epoch")
            if "IPython" in sys.modules and self._show(png):
                return
            self._ctx.storage.replace(layout.METRICS_PLOT, png, durable=False)
        except (OutlastError, OSError, ValueError, RuntimeError) as error:
            self._ctx.log.warning(LogEvent.LIVE_PLOT_FAILED, error=str(error))

    def _show(self, png: bytes) -> bool:
        from IPython import display, get_ipython

        if get_ipython() is None or not hasattr(get_ipython(), "kernel"):
            return False
        picture = display.Image(data=png)
        if self._display is None:
            self._display = display.display(picture, display_id=True)
        else:
            self._display.update(picture)
        return True
