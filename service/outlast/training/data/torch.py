"""torch DataLoaders as training data: a pass is made again from torch's generators."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from outlast.attempt import loader_workers
from outlast.training.data.source import Source, as_tensors, of_numpy, spec_of
from outlast.training.keras_internals.data_adapters import BATCHES_FOR_SPEC


class TorchSource(Source):
    """A torch.utils.data.DataLoader.

    A pass is made again from torch's generators as they were when the pass began (samplers and
    workers draw their seeds from there) and skipped to its batch. The workers are torch's own: on
    Linux forks of the training, in which TensorFlow's threads are missing. numpy and torch work
    there, TensorFlow and Keras may wait for ever; `multiprocessing_context="spawn"` is for those.
    """

    kind = "torch DataLoader"

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.num_batches = len(loader) if hasattr(loader.dataset, "__len__") else None
        # Keras looks at the first batches as well, which moves torch's generators on.
        peek = BATCHES_FOR_SPEC
        first = list(itertools.islice(iterate(loader), peek))
        if not first or not isinstance(first[0], list | tuple):
            raise TypeError(
                "A torch DataLoader must yield (inputs,), (inputs, targets) or (inputs, targets, "
                f"sample_weights). Received: {type(first[0]) if first else 'no batch at all'}"
            )
        self.spec = spec_of([tuple(of_numpy(batch)) for batch in first])
        self._pass: Any = None  # the one in progress
        self._place = "before"  # of it; or "within" or "after"
        self._generators: dict[str, Any] = {}  # at the begin of the pass that we are within
        self._cost = "not needed yet"

    def open(self, index: int) -> Iterator[Any]:
        self.close()
        self._place = "before"
        self._pass = self._whole()
        return self._pass  # type: ignore[no-any-return]

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        if self._place == "before":
            return self.open(len(taken) - 1)
        self._pass = self._rest(self._go_to(taken[-1]))
        return self._pass  # type: ignore[no-any-return]

    def skip_passes(self, taken: list[int]) -> None:
        self._go_to(taken[-1])

    def state(self) -> Any:
        within = self._place == "within"
        generators = self._generators if within else generators_of(self._loader)
        return {"place": self._place, "generators": generators}

    def restore(self, state: Any) -> None:
        self._place, self._generators = state["place"], state["generators"]
        set_generators(self._loader, self._generators)

    def close(self) -> None:
        if self._pass is not None:
            self._pass.close()  # drops torch's iterator, which ends its workers
            self._pass = None

    def how_resumed(self) -> str:
        return f"skip within the pass ({self._cost})"

    def doubts(self) -> list[str]:
        doubts = []
        if self._loader.num_workers and self._loader.persistent_workers:
            doubts.append(
                "persistent_workers=True: what the workers' random generators have drawn in "
                "earlier passes is lost with them; leave it out if the dataset draws at random"
            )
        if self._loader.num_workers and not getattr(self._loader, "in_order", True):
            doubts.append("in_order=False lets batches come in any order: leave it out")
        return doubts

    def _whole(self) -> Iterator[Any]:
        # A generator: Keras' rules open passes that are never used, which must draw no seed.
        self._place, self._generators = "within", generators_of(self._loader)
        yield from self._rest(iterate(self._loader))

    def _rest(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield as_tensors(tuple(of_numpy(batch)), self.spec)
        self._place = "after"

    def _go_to(self, count: int) -> Iterator[Any]:
        """Return what is left of the pass of which `count` batches are taken."""
        if self._place != "within":
            return iter(())
        started = time.perf_counter()
        batches = iterate(self._loader)
        for _ in range(count):
            if next(batches, None) is None:
                raise RuntimeError(
                    f"the torch DataLoader ended before batch {count}, to which the training has "
                    "to go back: it must yield the same batches when the script runs again"
                )
        self._cost = f"{time.perf_counter() - started:.2f} s this time"
        return batches


def iterate(loader: Any) -> Iterator[Any]:
    """Return a DataLoader's iterator; its worker processes leave signals to the training."""
    iterator: Iterator[Any]
    if not loader.num_workers:
        iterator = iter(loader)
        return iterator
    own = loader.worker_init_fn
    # Torch gives SIGTERM a handler of its own in a worker, before this is called.
    loader.worker_init_fn = loader_workers.going_on(own)
    try:
        with loader_workers.hold_back():
            iterator = iter(loader)
    finally:
        loader.worker_init_fn = own
    loader_workers.Crew().add(getattr(iterator, "_workers", ()))
    return iterator


class Iterated:
    """A DataLoader as Keras' adapter uses it: iterated by `iterate`."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iterate(self._loader)


def generators_of(loader: Any) -> dict[str, Any]:
    """Return the states of torch's global generator and of a DataLoader's own."""
    import torch

    own = loader.generator
    return {
        "torch": torch.get_rng_state().numpy().copy(),
        "own": own.get_state().numpy().copy() if own is not None else None,
    }


def set_generators(loader: Any, states: dict[str, Any]) -> None:
    """Put back what `generators_of` returned."""
    import torch

    torch.set_rng_state(torch.from_numpy(np.array(states["torch"])))
    if loader.generator is not None and states["own"] is not None:
        loader.generator.set_state(torch.from_numpy(np.array(states["own"])))
