"""Means of logged values over an epoch, weighted by batch size, for a hand-written loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from outlast_checkpoints.errors import UsageError


class Means:
    """Weighted sums by name. A shorter last batch has a smaller weight."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._fixed: dict[str, float] = {}

    def add(self, values: dict[str, float], weight: float) -> None:
        """Add the values of one step, with this weight."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def fix(self, values: dict[str, float]) -> None:
        """Set values of the whole epoch, which are not averaged."""
        self._fixed.update(values)

    def result(self) -> dict[str, float]:
        """Return the means so far, and the fixed values."""
        means = {name: total / self._weights[name] for name, total in self._sums.items()}
        return {**means, **self._fixed}

    def clear(self) -> None:
        """Begin a new epoch."""
        self._sums, self._weights, self._fixed = {}, {}, {}

    def state(self) -> dict[str, Any]:
        """Return the sums and weights as plain data."""
        return {"sums": self._sums, "weights": self._weights, "fixed": self._fixed}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore data that `state` returned."""
        self._sums, self._weights = dict(state["sums"]), dict(state["weights"])
        self._fixed = dict(state["fixed"])


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return logged values as floats, by names that UTF-8 can spell.

    Raises `UsageError` for a value that is not a number.
    """
    found = {}
    for name, value in values.items():
        try:
            found[_text(name)] = float(np.asarray(value).item())
        except (TypeError, ValueError):
            raise UsageError(
                field="log",
                problem=f"{name!r} is {value!r}, not a number",
                hint="Log numbers, or arrays and tensors with one element.",
            ) from None
    return found


def _text(name: Any) -> str:
    # Names of files may have bytes that are not UTF-8.
    return str(name).encode(errors="backslashreplace").decode()
