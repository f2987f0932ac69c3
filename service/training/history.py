"""The History that `fit` and `Loop` return: Keras' own, that also shows itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras import callbacks

from service.curves import Curves, of_epochs
from service.errors import ExtraMissing
from service.plot import draw


class History(callbacks.History):  # type: ignore[misc]
    """`keras.callbacks.History`, complete over all attempts of the job.

    history: lists of values by metric, one an epoch. epoch: the epochs' numbers, from 0.
    params: verbose, epochs and steps as in Keras.
    """

    def curves(self) -> Curves:
        """Return the metrics by epoch (counted from 1), ready to draw."""
        return of_epochs(self.history, self.epoch)

    def plot(self, path: str | Path | None = None, *, title: str = "history") -> bytes:
        """Draw the metrics by epoch; return the PNG, and write it to `path` when one is given.

        Raises `ExtraMissing` when matplotlib is not installed.
        """
        png = draw(self.curves(), title=title, unit="epoch")
        if path is not None:
            Path(path).write_bytes(png)
        return png

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, one row an epoch. Raises `ExtraMissing` without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise ExtraMissing(feature="A data frame", package="pandas", extra="frame") from None
        return pd.DataFrame(self.history, index=pd.Index(self.epoch, name="epoch"))

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
