"""`History`, the result of `fit` and `Loop`: Keras' History with plots and data frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras import callbacks

from outlast.errors import ExtraMissing
from outlast.plotting.curves import Curves, of_epochs
from outlast.plotting.plot import draw
from outlast_checkpoints.printable import printable


class History(callbacks.History):  # type: ignore[misc]
    """A `keras.callbacks.History` that contains the epochs of all attempts of a job.

    `fit` returns one, and `Loop.history` is one. A notebook shows it as a picture.

    Attributes:
        history: Dict from metric names to lists of values, one per epoch.
        epoch: List of integers. Numbers of the epochs, from 0.
        params: Dict with "verbose", "epochs" and "steps", as in Keras.
        epochs_of: Dict from metric names to the epochs of their values, from 0. A metric may lack
            some epochs: with `validation_freq=2`, every other epoch has a `val_loss`.

    Example:

    ```python
    history = fit(model, x, y, epochs=10, job_dir="my-job")
    history.plot("curves.png")
    best = history.to_frame()["val_loss"].idxmin()
    ```
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs_of: dict[str, list[int]] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Append the logs of an epoch, as Keras does, and note which epoch they belong to."""
        super().on_epoch_end(epoch, logs)
        for name in logs or {}:
            self.epochs_of.setdefault(name, []).append(epoch)

    def by_epoch(self) -> dict[str, list[Any]]:
        """Return the values of each metric, aligned with `epoch`.

        Returns:
            Dict from metric names to lists as long as `epoch`. An epoch without the metric
            has `None`.
        """
        aligned = {}
        for name, values in self.history.items():
            epochs = self.epochs_of.get(name) or self.epoch[: len(values)]
            known = dict(zip(epochs, values, strict=False))
            aligned[name] = [known.get(epoch) for epoch in self.epoch]
        return aligned

    def curves(self) -> Curves:
        """Return the metrics by epoch, counted from 1, as `Curves` to draw."""
        return of_epochs(self.by_epoch(), self.epoch)

    def plot(self, path: str | Path | None = None, *, title: str = "history") -> bytes:
        """Draw the metrics by epoch.

        Args:
            path: File to write the PNG to. By default no file is written.
            title: Title of the picture. Defaults to "history".

        Returns:
            The PNG, as bytes.

        Raises:
            ExtraMissing: matplotlib is not installed.
        """
        png = draw(self.curves(), title=title, unit="epoch")
        if path is not None:
            Path(path).write_bytes(png)
        return png

    def to_frame(self) -> Any:
        """Return the metrics as a `pandas.DataFrame`.

        Returns:
            One row per epoch, one column per metric, NaN where an epoch lacks a metric. The index
            is the epoch, from 0.

        Raises:
            ExtraMissing: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ExtraMissing(feature="A data frame", package="pandas", extra="frame") from None
        return pd.DataFrame(self.by_epoch(), index=pd.Index(self.epoch, name="epoch"))

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook shows, or None if there is nothing to draw."""
        try:
            return self.plot() if self.epoch else None
        except ExtraMissing:
            return None

    def __repr__(self) -> str:
        if not getattr(self, "epoch", None):
            return "History(no epoch yet)"
        lines = [f"History of {len(self.epoch)} epochs, the last being {self.epoch[-1] + 1}:"]
        for name, values in self.history.items():
            numbers = [v for v in values if isinstance(v, int | float)]
            if numbers:
                lines.append(
                    f"  {printable(name):<20} last {numbers[-1]:.6g}  least {min(numbers):.6g}"
                    f"  most {max(numbers):.6g}"
                )
        return "\n".join(lines)


def curves_of(history: callbacks.History) -> Curves:
    """Return the curves of a `History`, or of a plain `keras.callbacks.History`."""
    if isinstance(history, History):
        return history.curves()
    return of_epochs(history.history, history.epoch)
