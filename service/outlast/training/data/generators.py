"""`StreamSource`: Python generators and iterators as training data, read ahead in a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from outlast.training.data import fingerprint
from outlast.training.data.read_ahead import ReadAhead
from outlast.training.data.source import Plain, Source, as_tensors, spec_of, to_tuple
from outlast.training.keras_internals.data_adapters import BATCHES_FOR_SPEC
from outlast.training.state import random_state


@dataclass(frozen=True)
class _Item:
    """A batch, the state of its stream after it, and the global generators that it drew from.

    `before` are the states of these before the batch was read.
    """

    batch: Any
    position: Any
    before: Plain


_CALLED: Final = {
    "keras": "Keras' global generator",
    "numpy": "np.random",
    "python": "Python's random",
    "tensorflow": "TensorFlow's global seed",
    "tensorflow_global": "TensorFlow's global generator",
    "fresh": "new generators of NumPy without a seed",
}
MOST_JUMPS: Final = 2000  # each takes some kilobytes of a checkpoint


class StreamSource(Source):
    """A generator or iterator of (x,), (x, y) or (x, y, sample_weight).

    If it has `state_dict`/`load_state_dict` or `get_state`/`set_state`, the source keeps its state
    after each batch. Otherwise a resume replays it from its start. Once it is exhausted, every
    further pass consists of its first two batches, as in Keras, which keeps those.
    `max_queue_size` is the number of batches to read ahead, within an epoch.

    A generator may draw from the global generators of NumPy, Python and TensorFlow. What it drew
    ahead of the training is not part of their state in a checkpoint. What others draw between two
    batches of an epoch is a matter of speed, and is named.
    """

    kind = "generator"
    num_batches = None

    def __init__(self, stream: Iterator[Any], *, max_queue_size: int = 10) -> None:
        self._stream = stream
        self._size = max_queue_size
        self._methods = _state_methods(stream)
        self._began = self._methods[0]() if self._methods is not None else None
        self._left: Plain | None = None  # global generators as the last batch left them
        self._at_border = True  # whether others may draw before the next batch
        self._under_way: Plain | None = None  # global generators before the read that is under way
        self._reads = 0
        # Global generators where others had drawn from them between two epochs, by number of read.
        self._jumps: dict[int, Plain] = {}
        self._expected: int | None = 0  # batches that the epoch still takes
        self._drawn_by_others: set[str] = set()
        self._draws: set[str] = set()  # global generators that it draws from
        self._first = self._peek()
        if not self._first:
            raise ValueError(
                "When passing a Python generator to a Keras model, the generator must yield at "
                "least one batch. Received an empty generator."
            )
        first = self._first[0].batch
        if not isinstance(first, tuple):
            raise ValueError(
                "When passing a Python generator to a Keras model, the generator must return a "
                "tuple, either (input,) or (inputs, targets) or (inputs, targets, "
                f"sample_weights). Received: {first}"
            )
        self.spec = spec_of([item.batch for item in self._first])
        self._ahead: ReadAhead | None = None
        self._position: Any = None
        self._cost = "not needed yet"

    def open(self, index: int) -> Iterator[Any]:
        return self._batches(0, again=index > 0)

    def reopen(self, taken: list[int], position: Any) -> Iterator[Any]:
        started = time.perf_counter()
        again = len(taken) > 1
        skip = taken[-1]
        if position is not None and self._methods is not None:
            self._methods[1](position)
            self._position = position
            # In the first pass, the generator continues right after the batch of `position`.
            skip = skip if again else len(self._first)
        else:
            self.skip_passes(taken)
        self._cost = f"{time.perf_counter() - started:.2f} s this time"
        return self._batches(skip, again=again)

    def skip_passes(self, taken: list[int]) -> None:
        item: _Item | None = None
        for index, count in enumerate(taken):
            for batch in range(count):
                self.reached(index, batch)
                item = self._read() if batch >= len(self._first) else self._first[batch]
                if item is None:
                    raise RuntimeError(
                        f"the generator ended before batch {sum(taken)}, where the training "
                        "resumes. Make it yield the same batches each time the script runs"
                    )
            self.reached(index, count)
        if item is not None:
            self.last_skipped = as_tensors(item.batch, self.spec)

    def expect(self, count: int | None) -> None:
        self._at_border, self._expected = True, count
        if self._ahead is not None:
            self._ahead.allow(count)

    def unread(self) -> Plain:
        if self._ahead is None:
            return {}
        items = self._ahead.unread()
        states: Plain = {}
        under_way = self._under_way
        if under_way is not None:
            drawn = self._draws | random_state.differing(under_way, random_state.capture())
            states.update({name: under_way[name] for name in drawn})
        for item in reversed(items):
            states.update(item.before)
        return states

    def state(self) -> Any:
        return {"began": self._began, "jumps": [[at, one] for at, one in self._jumps.items()]}

    def restore(self, state: Any) -> None:
        self._jumps = dict(state["jumps"])
        if state["began"] is not None and self._methods is not None:
            self._methods[1](state["began"])
            self._began = state["began"]
            self._first = self._peek()

    def position(self) -> Any:
        return self._position

    def drawn(self) -> str | None:
        if self._methods is not None:
            return None
        return fingerprint.of_batches([item.batch for item in self._first])

    def how_resumed(self) -> str:
        way = "its own state" if self._methods is not None else "replay from its start"
        return f"{way} ({self._cost})"

    def inexact_reasons(self) -> list[str]:
        return [
            f"the generator and something else in the script, such as a callback, draw from "
            f"{_CALLED[name]} within an epoch: which of them draws first is a matter of speed; "
            "give the data a generator of its own, such as np.random.default_rng(7)"
            for name in sorted(self._drawn_by_others)
        ]

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            random_state.restore(self.unread())
            self._ahead = None

    def _batches(self, skip: int, *, again: bool) -> Iterator[Any]:
        for item in self._first[skip:]:
            if not again:
                self._position = item.position
            yield as_tensors(item.batch, self.spec)
        if self._ahead is None:
            self._ahead = ReadAhead(self._read, self._size)
            budget = self._expected
            unused = 0 if again or budget is None else len(self._first[skip:])
            self._ahead.allow(None if budget is None else max(0, budget - unused))
        for item in self._ahead:
            self._position = item.position
            yield as_tensors(item.batch, self.spec)

    def _peek(self) -> list[_Item]:
        items = (self._read() for _ in range(BATCHES_FOR_SPEC))
        return [item for item in items if item is not None]

    def _read(self) -> _Item | None:
        number, self._reads = self._reads, self._reads + 1
        random_state.restore(self._jumps.get(number, {}))
        before = self._under_way = random_state.capture()
        at_border, self._at_border = self._at_border or number in self._jumps, False
        try:
            batch = next(self._stream)
        except StopIteration:
            self._under_way = None
            return None
        after = random_state.capture()
        drawn = random_state.differing(before, after)
        self._draws |= drawn
        if self._left is not None:
            others = random_state.differing(self._left, before) & self._draws
            if not at_border or (others and len(self._jumps) == MOST_JUMPS):
                self._drawn_by_others |= others
            elif others:
                self._jumps[number] = {name: before[name] for name in others}
        self._left, self._under_way = after, None
        position = self._methods[0]() if self._methods is not None else None
        return _Item(to_tuple(batch), position, {name: before[name] for name in drawn})


def _state_methods(stream: Any) -> tuple[Any, Any] | None:
    for get, put in (("state_dict", "load_state_dict"), ("get_state", "set_state")):
        if callable(getattr(stream, get, None)) and callable(getattr(stream, put, None)):
            return getattr(stream, get), getattr(stream, put)
    return None
