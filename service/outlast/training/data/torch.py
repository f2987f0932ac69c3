"""`TorchSource`: torch DataLoaders as training data, resumed from torch's random generators."""

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

    A resume restores torch's generators as they were when the pass began, because samplers and
    workers draw their seeds from them, and skips ahead to its batch. Torch starts the workers. On
    Linux they are forks of the training process and lack TensorFlow's threads, so TensorFlow and
    Keras may hang in them, while numpy and torch work. A dataset that uses TensorFlow needs
    `multiprocessing_context="spawn"`.
    """

    kind = "torch DataLoader"

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.num_batches = len(loader) if hasattr(loader.dataset, "__len__") else None
        # Keras reads the first batches as well, and that advances torch's generators.
        peek = BATCHES_FOR_SPEC
        first = list(itertools.islice(iterate(loader), peek))
        if not first or not isinstance(first[0], list | tuple):
            raise TypeError(
                "A torch DataLoader must yield (inputs,), (inputs, targets) or (inputs, targets, "
                f"sample_weights). Received: {type(first[0]) if first else 'no batch'}"
            )
        self.spec = spec_of([tuple(of_numpy(batch)) for batch in first])
        self._pass: Any = None  # the current pass
        self._place = "before"  # before, within or after the current pass
        self._generators: dict[str, Any] = {}  # when the current pass began
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
            self._pass.close()  # releases torch's iterator, which ends its workers
            self._pass = None

    def how_resumed(self) -> str:
        return f"skip within the pass ({self._cost})"

    def inexact_reasons(self) -> list[str]:
        inexact_reasons = []
        if self._loader.num_workers and self._loader.persistent_workers:
            inexact_reasons.append(
                "persistent_workers=True: the workers' random generators carry state from pass to "
                "pass, which a resume loses; remove it if the dataset draws random numbers"
            )
        if self._loader.num_workers and not getattr(self._loader, "in_order", True):
            inexact_reasons.append("in_order=False lets batches arrive in any order; remove it")
        return inexact_reasons

    def _whole(self) -> Iterator[Any]:
        # A generator, because Keras' rules open passes that are never used. Those draw no seed.
        self._place, self._generators = "within", generators_of(self._loader)
        yield from self._rest(iterate(self._loader))

    def _rest(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield as_tensors(tuple(of_numpy(batch)), self.spec)
        self._place = "after"

    def _go_to(self, count: int) -> Iterator[Any]:
        """Return the rest of the current pass after its first `count` batches."""
        if self._place != "within":
            return iter(())
        started = time.perf_counter()
        batches = iterate(self._loader)
        for _ in range(count):
            skipped = next(batches, None)
            if skipped is None:
                raise RuntimeError(
                    f"the torch DataLoader ended before batch {count}, where the training "
                    "resumes. Make it yield the same batches each time the script runs"
                )
            self.last_skipped = as_tensors(tuple(of_numpy(skipped)), self.spec)
        self._cost = f"{time.perf_counter() - started:.2f} s this time"
        return batches


def iterate(loader: Any) -> Iterator[Any]:
    """Return an iterator of a DataLoader whose worker processes leave signals to the training."""
    iterator: Iterator[Any]
    if not loader.num_workers:
        iterator = iter(loader)
        return iterator
    own = loader.worker_init_fn
    # Torch installs its SIGTERM handler in a worker before it calls this.
    loader.worker_init_fn = loader_workers.ignoring_signals(own)
    try:
        with loader_workers.block_signals():
            iterator = iter(loader)
    finally:
        loader.worker_init_fn = own
    loader_workers.WorkerProcesses().add(getattr(iterator, "_workers", ()))
    return iterator


class Iterated:
    """Stands in for a DataLoader in Keras' adapter, and iterates it with `iterate`."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iterate(self._loader)


def generators_of(loader: Any) -> dict[str, Any]:
    """Return the states of torch's global generator and of the DataLoader's generator."""
    import torch

    own = loader.generator
    return {
        "torch": torch.get_rng_state().numpy().copy(),
        "own": own.get_state().numpy().copy() if own is not None else None,
    }


def set_generators(loader: Any, states: dict[str, Any]) -> None:
    """Restore generator states that `generators_of` returned."""
    import torch

    torch.set_rng_state(torch.from_numpy(np.array(states["torch"])))
    if loader.generator is not None and states["own"] is not None:
        loader.generator.set_state(torch.from_numpy(np.array(states["own"])))
