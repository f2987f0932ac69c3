"""Compiled metrics and losses, whose variables Keras makes from the first batch."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import keras
from keras.src.backend.common.name_scope import current_path

# Each has `built` and `build(y_true, y_pred)`.
_PARTS = ("_compile_metrics", "_compile_loss")


class LateMetrics:
    """Records what a model's metrics and losses are built with, to build them alike in a resume.

    `recorded` has, by part, the structures of targets and predictions, with "dtype:shape" for each
    tensor, and the name scope, from which variables have their paths. It is empty while nothing has
    been built. `new` tells of variables that were made since it was set to False.
    """

    def __init__(self, model: Any) -> None:
        self._unbuilt = {name: getattr(model, name, None) for name in _PARTS}
        self.recorded: dict[str, list[Any]] = {}
        self.new = False
        for name, part in self._unbuilt.items():
            if part is not None and not part.built:
                self._record(name, part)

    def _record(self, name: str, part: Any) -> None:
        build = part.build

        def build_and_record(y_true: Any, y_pred: Any) -> None:
            build(y_true, y_pred)
            specs = [keras.tree.map_structure(_spell, y) for y in (y_true, y_pred)]
            self.recorded[name] = [current_path(), *specs]
            self.new = True

        part.build = build_and_record

    def build_as(self, recorded: dict[str, list[Any]]) -> None:
        """Build what is unbuilt here and was built there. What Keras refuses stays unbuilt."""
        for name, (path, *specs) in recorded.items():
            part = self._unbuilt.get(name)
            if part is None or part.built:
                continue
            with ExitStack() as stack:
                for scope in filter(None, path.split("/")):
                    stack.enter_context(keras.name_scope(scope))
                stack.enter_context(suppress(Exception))  # the script's metrics are others
                part.build(*(keras.tree.map_structure(_read, spec) for spec in specs))


def _spell(tensor: Any) -> str | None:
    if tensor is None:
        return None
    sizes = ["None" if size is None else str(size) for size in tensor.shape]
    return f"{keras.backend.standardize_dtype(tensor.dtype)}:{','.join(sizes)}"


def _read(spelled: str | None) -> Any:
    if spelled is None:
        return None
    dtype, _, sizes = spelled.partition(":")
    shape = [None if size == "None" else int(size) for size in sizes.split(",") if size]
    return keras.KerasTensor(shape, dtype)
