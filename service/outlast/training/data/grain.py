"""Grain datasets as training data: resumed by their iterator's own state."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from outlast.attempt import loader_workers
from outlast.training.data.source import Source, as_tensors, of_numpy, spec_of
from outlast.training.keras_internals.data_adapters import BATCHES_FOR_SPEC


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
            first = [of_numpy(batch) for batch in itertools.islice(dataset, peek)]
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
        yield as_tensors(of_numpy(first), self.spec)
        for batch in iterator:
            yield as_tensors(of_numpy(batch), self.spec)


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
