"""The History that `fit` and `Loop` return: Keras' own, that also shows itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras import callbacks

from outlast.errors import ExtraMissing
from outlast.plotting.curves import Curves, of_epochs
from outlast.plotting.plot import draw


class History(callbacks.History):  # type: ignore[misc]
    """`keras.callbacks.History`, complete over all attempts of the job.

    history: lists of values by metric, one an epoch. epoch: the epochs' numbers, from 0.
    params: verbose, epochs and steps as in Keras. epochs_of: the epochs of each metric's values,
    where they are known: with `validation_freq=2` every other epoch has a `val_loss`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs_of: dict[str, list[int]] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        for name in logs or {}:
            self.epochs_of.setdefault(name, []).append(epoch)

    def by_epoch(self) -> dict[str, list[Any]]:
        """Return each metric's values, one for each of `epoch`: None in those without it."""
        aligned = {}
        for name, values in self.history.items():
            epochs = self.epochs_of.get(name) or self.epoch[: len(values)]
            known = dict(zip(epochs, values, strict=False))
            aligned[name] = [known.get(epoch) for epoch in self.epoch]
        return aligned

    def curves(self) -> Curves:
        """Return the metrics by epoch (counted from 1), ready to draw."""
        return of_epochs(self.by_epoch(), self.epoch)

    def plot(self, path: str | Path | None = None, *, title: str = "history") -> bytes:
        """Draw the metrics by epoch; return the PNG, and write it to `path` when one is given.

        Raises `ExtraMissing` when matplotlib is not installed.
        """
        png = draw(self.curves(), title=title, unit="epoch")
        if path is not None:
            Path(path).write_bytes(png)
        return png

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, one row an epoch, NaN where an epoch lacks a metric.

        Raises `ExtraMissing` without pandas.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ExtraMissing(feature="A data frame", package="pandas", extra="frame") from None
        return pd.DataFrame(self.by_epoch(), index=pd.Index(self.epoch, name="epoch"))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows for it."""
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
                    f"  {name:<20} last {numbers[-1]:.6g}  least {min(numbers):.6g}"
                    f"  most {max(numbers):.6g}"
                )
        return "\n".join(lines)


def curves_of(history: callbacks.History) -> Curves:
    """Return the curves of a History, which may be Keras' own."""
    if isinstance(history, History):
        return history.curves()
    return of_epochs(history.history, history.epoch)
