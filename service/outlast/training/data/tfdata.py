"""`DatasetSource`: tf.data as training data, resumed by iterator checkpoint, skip or replay."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from outlast.training.data.source import Plain, Source
from outlast.training.data.tfdata_parts import remove_stale_locks
from outlast.training.data.tfdata_passes import Passes
from outlast.training.keras_internals.data_adapters import DataAdapter, TFDatasetAdapter

SMALL_BYTES = 1 << 20
QUICK_S = 0.02


class DatasetSource(Source):
    """A tf.data.Dataset, batched by the user.

    The parts of the pipeline decide how a resume finds its batch:
    - "iterator": a pipeline without hidden state, shuffle or cache restores the iterator's
      checkpoint. If the first save finds that checkpoint slow or large, the mode becomes "skip".
    - "skip": a pipeline without hidden state is opened as often as before and skipped ahead.
      Earlier passes are read only where that decides what a later one yields: those that fill a
      cache behind a shuffle, and those that open a shuffle several times.
    - "replay": a pipeline with stateful ops (Python functions, generators, variables) runs again
      from its first pass.
    """

    kind = "tf.data"

    def __init__(self, dataset: tf.data.Dataset, class_weight: dict[int, float] | None) -> None:
        adapter = TFDatasetAdapter(dataset, class_weight=class_weight)
        self.dataset = adapter.get_tf_dataset()
        self.num_batches = adapter.num_batches
        self.spec = self.dataset.element_spec
        self.passes = Passes(self.dataset)
        pipeline = self.passes.pipeline
        if pipeline.stateful:
            self.mode, self.cost = "replay", f"{pipeline.stateful} keeps state"
        elif pipeline.buffers:
            self.mode, self.cost = "skip", f"it has a {' and a '.join(pipeline.buffers)}"
        elif pipeline.random:
            self.mode, self.cost = "skip", "it has random ops"
        elif pipeline.unproven:
            self.mode, self.cost = "skip", f"it has {' and '.join(pipeline.unproven)}"
        else:
            self.mode, self.cost = "iterator", "not measured yet"
        self._iterator: Any = None

    def open(self, index: int) -> Iterator[Any]:
        self._iterator = iter(self.passes)
        return self._iterator  # type: ignore[no-any-return]

    def end(self) -> None:
        self.passes.end()

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        started = time.perf_counter()
        self.skip_passes(taken[:-1])
        last = len(taken) - 1
        self._iterator = iter(self.passes)
        if position is not None:
            _restore_iterator(self._iterator, position)
        else:
            for batch in range(taken[-1]):
                self.reached(last, batch)
                self.last_skipped = next(self._iterator)
        self.reached(last, taken[-1])
        self.cost = f"{time.perf_counter() - started:.2f} s this time"
        return self._iterator  # type: ignore[no-any-return]

    def skip_passes(self, taken: list[int]) -> None:
        for index, count in enumerate(taken):
            self.passes.pass_over(count, partial(self.reached, index))

    def content(self) -> str | None:
        return self.passes.pipeline.content

    def drawn(self) -> str | None:
        return self.passes.pipeline.seeds

    def stale_locks(self, before: float) -> list[str]:
        return remove_stale_locks(self.passes.pipeline.parts.cache_files(), before)

    def position(self) -> Any:
        if self.mode != "iterator":
            return None
        started = time.perf_counter()
        try:
            written = _write_iterator(self._iterator)
        except tf.errors.OpError as error:
            self.mode, self.cost = "skip", f"its iterator has no checkpoint: {error.message[:80]}"
            return None
        seconds = time.perf_counter() - started
        size = sum(part.nbytes for part in written.values())
        self.cost = f"{size} bytes, {seconds * 1e3:.1f} ms per save"
        if size > SMALL_BYTES or seconds > QUICK_S:
            self.mode = "skip"
        return written

    def how_resumed(self) -> str:
        return f"{self.mode} ({self.cost})"

    def inexact_reasons(self) -> list[str]:
        return self.passes.pipeline.inexact_reasons()


def contents_of(given: Mapping[str, Any], class_weight: dict[int, float] | None = None) -> Plain:
    """Return the digests of the datasets among some data by name; `class_weight` is that of "x"."""
    return {
        name: DatasetSource(data, class_weight if name == "x" else None).content()
        for name, data in given.items()
        if isinstance(data, tf.data.Dataset)
    }


class AdapterSource(DatasetSource):
    """A custom Keras `DataAdapter`, which Keras' fit accepts as `x`."""

    kind = "data adapter"

    def __init__(self, adapter: DataAdapter) -> None:
        super().__init__(adapter.get_tf_dataset(), None)
        self.num_batches = adapter.num_batches
        self._adapter = adapter

    def on_epoch_begin(self) -> None:
        self._adapter.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._adapter.on_epoch_end()


def _write_iterator(iterator: Any) -> Plain:
    """Return the files of the iterator's checkpoint, as uint8 arrays by file name."""
    with tempfile.TemporaryDirectory(prefix="outlast-iterator-") as folder:
        tf.train.Checkpoint(iterator=iterator).write(f"{folder}/it")
        return {
            path.name: np.frombuffer(path.read_bytes(), np.uint8)
            for path in sorted(Path(folder).iterdir())
        }


def _restore_iterator(iterator: Any, written: Plain) -> None:
    with tempfile.TemporaryDirectory(prefix="outlast-iterator-") as folder:
        for name, content in written.items():
            Path(folder, Path(name).name).write_bytes(content.tobytes())
        tf.train.Checkpoint(iterator=iterator).read(f"{folder}/it").assert_consumed()
