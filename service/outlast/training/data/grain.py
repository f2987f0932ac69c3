"""`GrainSource`: Grain datasets as training data, resumed from the state of their iterator."""

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
    """A Grain DataLoader, MapDataset or IterDataset, resumed from the state of its iterator.

    Its worker processes block signals until they end, because Grain has no hook in which they could
    call `ignore_signals`. Grain ends them itself, if necessary with SIGKILL.
    """

    kind = "Grain"
    num_batches = None

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        peek = BATCHES_FOR_SPEC
        with loader_workers.block_signals():
            first = [of_numpy(batch) for batch in itertools.islice(dataset, peek)]
        self.spec = spec_of(first)
        self._pass: Any = None
        self._iterator: Any = None  # Grain's iterator of the current pass
        self._position: Any = None  # where the current pass begins

    def open(self, index: int) -> Iterator[Any]:
        return self._open(None)

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        return self._open(position)

    def skip_passes(self, taken: list[int]) -> None:
        """Do nothing: a pass does not depend on earlier ones."""

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
        # A generator, because Keras' rules open passes that are never used. Those start no worker.
        with loader_workers.block_signals():
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
    """Adapt the stored state of a Grain iterator to this process.

    A DataLoader's state contains the repr of its sampler and data source, and Grain refuses a state
    whose repr differs. Python's default repr contains an address, which differs in each process.
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
