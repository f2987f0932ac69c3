"""torch DataLoader and Grain datasets as training data."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import tree
from keras.src.trainers.data_adapters import data_adapter_utils

from service.training.source import Source, as_tensors, spec_of


class TorchSource(Source):
    """A torch.utils.data.DataLoader.

    A pass is made again from torch's generator as it was when the pass began (its samplers and
    workers draw their seeds from there) and skipped to its batch; a loader with its own
    `state_dict` (torchdata's StatefulDataLoader) goes there directly.
    """

    kind = "torch DataLoader"

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.num_batches = len(loader) if hasattr(loader.dataset, "__len__") else None
        before = self._generators()
        peek = data_adapter_utils.NUM_BATCHES_FOR_TENSOR_SPEC
        batches = [_numpy(b) for b in itertools.islice(loader, peek)]
        self._set_generators(before)
        self.spec = tuple(spec_of(batches))
        self._began: Any = None
        self._stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._cost = "not needed yet"

    def open(self, index: int) -> Iterator[Any]:
        self._began = None
        return self._batches(0)

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        if position is None:
            return self._batches(0)
        self._began = position["began"]
        if position["own"] is not None:
            self._loader.load_state_dict(position["own"])
            return self._batches(0)
        return self._batches(taken[-1], position["began"])

    def position(self) -> Any:
        if self._began is None:
            return None
        own = self._loader.state_dict() if self._stateful else None
        return {"began": self._began, "own": own}

    def how_resumed(self) -> str:
        way = "its own state" if self._stateful else "skip within the pass"
        return f"{way} ({self._cost})"

    def _batches(self, skip: int, began: Any = None) -> Iterator[Any]:
        # A generator: Keras' rules open passes that are never used, which must draw no seed.
        started = time.perf_counter()
        if began is not None:
            self._set_generators(began)
        self._began = self._generators()
        batches = iter(self._loader)
        for _ in range(skip):
            next(batches)
        if began is not None:
            self._cost = f"{time.perf_counter() - started:.2f} s this time"
        for batch in batches:
            yield as_tensors(_numpy(batch), self.spec)

    def _generators(self) -> dict[str, Any]:
        import torch

        own = getattr(self._loader, "generator", None)
        return {
            "torch": torch.get_rng_state().numpy().copy(),
            "own": own.get_state().numpy().copy() if own is not None else None,
        }

    def _set_generators(self, state: dict[str, Any]) -> None:
        import torch

        torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
        own = getattr(self._loader, "generator", None)
        if own is not None and state["own"] is not None:
            own.set_state(torch.from_numpy(np.array(state["own"])))


class GrainSource(Source):
    """A grain DataLoader, MapDataset or IterDataset, resumed by its iterator's own state."""

    kind = "Grain"
    num_batches = None

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        peek = data_adapter_utils.NUM_BATCHES_FOR_TENSOR_SPEC
        self.spec = spec_of([_numpy(b) for b in itertools.islice(iter(dataset), peek)])
        self._iterator: Any = None
        self._position: Any = None

    def open(self, index: int) -> Iterator[Any]:
        self._iterator, self._position = None, None
        return self._batches(None)

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        self._iterator, self._position = None, position
        return self._batches(position)

    def position(self) -> Any:
        return self._position if self._iterator is None else self._iterator.get_state()

    def how_resumed(self) -> str:
        return "its iterator's own state"

    def _batches(self, position: Any) -> Iterator[Any]:
        dataset = self._dataset
        if hasattr(dataset, "to_iter_dataset"):
            dataset = dataset.to_iter_dataset()
        self._iterator = iter(dataset)
        if position is not None:
            self._iterator.set_state(position)
        for batch in self._iterator:
            yield as_tensors(_numpy(batch), self.spec)


def _numpy(batch: Any) -> Any:
    def convert(value: Any) -> Any:
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        return np.asarray(value) if hasattr(value, "__array__") else value

    converted = tree.map_structure(convert, batch, none_is_leaf=False)
    return tuple(converted) if isinstance(converted, list) else converted
