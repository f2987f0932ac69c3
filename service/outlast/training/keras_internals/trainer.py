"""Keras' trainer class, from which every model inherits `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer


def fit_of_keras() -> Callable[..., Any]:
    """Return the `fit` that models inherit now."""
    fit: Callable[..., Any] = TensorFlowTrainer.fit
    return fit


def replace_fit(function: Callable[..., Any]) -> None:
    """Let models inherit this function as `fit`; also those that end theirs in `super().fit`."""
    TensorFlowTrainer.fit = function


def overrides_fit(model: Any) -> bool:
    """Return whether the model, or its class, has a `fit` of its own."""
    return "fit" in vars(model) or type(model).fit is not keras.Model.fit


def mentions_fit(model: Any) -> bool:
    """Return whether a method of the model's own classes uses an attribute called `fit`.

    Without one, the model's own `fit` cannot end in that of Keras.
    """
    own = [vars(model).get("fit")]
    for kind in type(model).__mro__:
        if kind is keras.Model:
            break
        own += vars(kind).values()
    return any("fit" in _names_in(getattr(one, "__code__", None)) for one in map(_plain, own))


def _plain(method: Any) -> Any:
    """Return the function of a method, a property or a decorated function."""
    method = getattr(method, "fget", None) or getattr(method, "__func__", method)
    return getattr(method, "__wrapped__", method)


def _names_in(code: Any) -> set[str]:
    if code is None:
        return set()
    found = set(code.co_names)
    for inner in code.co_consts:
        if hasattr(inner, "co_names"):
            found |= _names_in(inner)
    return found
