"""`PyDatasetSource`: `keras.utils.PyDataset` as training data, fetched by Keras' workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

import keras

from outlast.training.data import fingerprint
from outlast.training.data.permutation import epoch_order
from outlast.training.data.pydataset_workers import enqueue
from outlast.training.data.source import Source, as_tensors, spec_of
from outlast.training.keras_internals import data_adapters
from outlast.training.state import random_state
from outlast.training.state.object_state import ObjectState

DRAWN_BY_WORKERS: Final = (
    "__getitem__ of the PyDataset changes random generators or attributes, and several workers "
    "call it: which of them comes first is a matter of speed; derive what is random from the "
    "index, for example np.random.default_rng((7, index)), or use workers=1"
)


def has_workers(dataset: Any) -> bool:
    """Return whether threads or processes call a PyDataset, and not the training itself."""
    return bool(dataset.workers > 1 or (dataset.workers > 0 and dataset.use_multiprocessing))


class PyDatasetSource(Source):
    """A PyDataset, finite or infinite.

    With shuffle=True, seed and pass decide the order of batches. The attributes that its
    `on_epoch_end` changes are part of the state, like those of a callback.
    """

    kind = "PyDataset"

    def __init__(
        self,
        dataset: Any,
        *,
        class_weight: dict[int, float] | None,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.num_batches = dataset.num_batches
        self._adapter = data_adapters.PyDatasetAdapter(dataset, class_weight=class_weight)
        self._enqueuer: Any = None
        peek = data_adapters.BATCHES_FOR_SPEC
        if self.num_batches is not None:
            peek = min(peek, self.num_batches)
        if peek == 0:
            raise ValueError("The PyDataset has no batches: its length is 0")
        before, own = random_state.capture(), ObjectState("dataset", dataset)
        unchanged = repr(own.capture())
        self._first = [self._standard(dataset[i]) for i in range(peek)]
        drawn = random_state.differing(before, random_state.capture())
        self._draws = bool(drawn) or repr(own.capture()) != unchanged
        self.spec = spec_of(self._first)
        self._own = ObjectState("dataset", dataset)

    def open(self, index: int) -> Iterator[Any]:
        return self._batches(index, 0)

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        if self.num_batches is None:
            return self._batches(0, sum(taken))
        return self._batches(len(taken) - 1, taken[-1])

    def state(self) -> Any:
        return self._own.capture()

    def restore(self, state: Any) -> None:
        self._own.restore(state)

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.close()
        self.dataset.on_epoch_end()

    def drawn(self) -> str | None:
        return None if self._draws else fingerprint.of_batches(self._first)

    def inexact_reasons(self) -> list[str]:
        return [DRAWN_BY_WORKERS] if self._draws and has_workers(self.dataset) else []

    def close(self) -> None:
        if self._enqueuer is not None:
            self._enqueuer.stop()
            self._enqueuer = None

    def _standard(self, batch: Any) -> Any:
        return data_adapters.standard_batch(self._adapter, batch)

    def _batches(self, index: int, start: int) -> Iterator[Any]:
        # A generator, because Keras' rules open passes that are never used. Those fetch nothing and
        # start no worker.
        order = self._order(index, start)
        for batch in self._fetch(order):
            yield as_tensors(self._standard(batch), self.spec)

    def _order(self, index: int, start: int) -> Iterator[int]:
        if self.num_batches is None:
            return itertools.count(start)
        order = epoch_order(self.num_batches, 1, self.shuffle, self.seed, index)
        return iter(order[start:].tolist())

    def _fetch(self, order: Iterator[int]) -> Iterator[Any]:
        dataset = self.dataset
        if not has_workers(dataset):
            for i in order:
                yield dataset[i]
            return
        indices = None if self.num_batches is None else list(order)
        start = next(order) if indices is None else 0
        while indices is None or start < len(indices):
            self.close()
            enqueuer = self._enqueuer = enqueue(_InOrder(dataset, indices, start), dataset)
            enqueuer.start()
            for batch in enqueuer.get():
                start += 1
                yield batch
                # The end of an epoch stops the workers. Batches that they fetched ahead are fetched
                # again, so that no batch depends on how far ahead of `on_epoch_end` they were.
                if self._enqueuer is not enqueuer or start == len(indices or ()):
                    break


class _InOrder(keras.utils.PyDataset):  # type: ignore[misc]
    """The user's dataset from `start` on, in the order `indices`, which is None if infinite."""

    def __init__(self, dataset: Any, indices: list[int] | None, start: int) -> None:
        super().__init__()
        self._dataset = dataset
        self._indices = indices
        self._start = start

    @property
    def num_batches(self) -> int | None:
        return None if self._indices is None else len(self._indices) - self._start

    def __getitem__(self, i: int) -> Any:
        i += self._start
        return self._dataset[i if self._indices is None else self._indices[i]]
