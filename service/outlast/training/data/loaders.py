"""torch DataLoader and Grain datasets as training data."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import tree

from outlast.attempt import loader_workers
from outlast.training.data.source import Source, as_tensors, spec_of
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
        self.spec = spec_of([tuple(_of_numpy(batch)) for batch in first])
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
            yield as_tensors(tuple(_of_numpy(batch)), self.spec)
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


class GrainSource(Source):
    """A grain DataLoader, MapDataset or IterDataset, resumed by its iterator's own state.

    Its worker processes hold signals back for good: Grain has no place where each could be asked to
    `go_on`. It ends them itself, with SIGKILL if it has to.
    """

    kind = "Grain"
    num_batches = None

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        peek = BATCHES_FOR_SPEC
        with loader_workers.hold_back():
            first = [_of_numpy(batch) for batch in itertools.islice(dataset, peek)]
        self.spec = spec_of(first)
        self._pass: Any = None
        self._iterator: Any = None  # Grain's, of the pass in progress
        self._position: Any = None  # where that is to begin

    def open(self, index: int) -> Iterator[Any]:
        return self._open(None)

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        return self._open(position)

    def skip_passes(self, taken: list[int]) -> None:
        """Nothing to do: a pass does not depend on those before."""

    def position(self) -> Any:
        return self._position if self._iterator is None else self._iterator.get_state()

    def how_resumed(self) -> str:
        return "its iterator's own state"

    def close(self) -> None:
        if self._pass is not None:
            self._pass.close()
        self._pass = self._iterator = None

    def _open(self, position: Any) -> Iterator[Any]:
        self.close()
        self._position = position
        self._pass = self._batches()
        return self._pass  # type: ignore[no-any-return]

    def _batches(self) -> Iterator[Any]:
        # A generator: Keras' rules open passes that are never used, which must start no worker.
        with loader_workers.hold_back():
            iterator = self._iterator = iter(self._dataset)
            if self._position is not None:
                iterator.set_state(_of_this_process(self._position, iterator.get_state()))
            first = next(iterator, None)  # starts the workers
        if first is None:
            return
        yield as_tensors(_of_numpy(first), self.spec)
        for batch in iterator:
            yield as_tensors(_of_numpy(batch), self.spec)


def _of_this_process(stored: Any, present: Any) -> Any:
    """Return the stored state of a Grain iterator as one of this process has it.

    A DataLoader's state names its sampler and its data source by their repr and is refused when
    that differs, as the address in python's own repr always does.
    """
    if not isinstance(stored, bytes):
        return stored
    state, mine = json.loads(stored), json.loads(present)
    for name, value in state.items():
        if isinstance(value, str) and _without_address(value) == _without_address(mine[name]):
            state[name] = mine[name]
    return json.dumps(state).encode()


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


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


def _of_numpy(batch: Any) -> Any:
    """Return a batch with arrays in place of tensors, and tuples in place of lists, as Keras."""

    def convert(value: Any) -> Any:
        if hasattr(value, "detach"):  # a torch tensor
            return np.asarray(value.detach().cpu())
        return np.asarray(value) if hasattr(value, "__array__") else value

    return tree.lists_to_tuples(tree.map_structure(convert, batch, none_is_leaf=False))
