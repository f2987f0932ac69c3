"""`StreamSource`: Python generators and iterators as training data, read ahead in a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from outlast.training.data.source import Source, as_tensors, spec_of, to_tuple
from outlast.training.keras_internals.data_adapters import BATCHES_FOR_SPEC

_END = object()


class StreamSource(Source):
    """A generator or iterator of (x,), (x, y) or (x, y, sample_weight).

    If it has `state_dict`/`load_state_dict` or `get_state`/`set_state`, the source keeps its state
    after each batch. Otherwise a resume replays it from its start. Once it is exhausted, every
    further pass consists of its first two batches, as in Keras, which keeps those.
    `max_queue_size` is the number of batches to read ahead.
    """

    kind = "generator"
    num_batches = None

    def __init__(self, stream: Iterator[Any], *, max_queue_size: int = 10) -> None:
        self._stream = stream
        self._size = max_queue_size
        self._methods = _state_methods(stream)
        self._began = self._methods[0]() if self._methods is not None else None
        self._first = self._peek()
        if not self._first:
            raise ValueError(
                "When passing a Python generator to a Keras model, the generator must yield at "
                "least one batch. Received an empty generator."
            )
        first = self._first[0][0]
        if not isinstance(first, tuple):
            raise ValueError(
                "When passing a Python generator to a Keras model, the generator must return a "
                "tuple, either (input,) or (inputs, targets) or (inputs, targets, "
                f"sample_weights). Received: {first}"
            )
        self.spec = spec_of([batch for batch, _ in self._first])
        self._ahead: _ReadAhead | None = None
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
            for _ in range(sum(max(0, count - len(self._first)) for count in taken)):
                if self._read() is None:
                    raise RuntimeError(
                        f"the generator ended before batch {sum(taken)}, where the training "
                        "resumes. Make it yield the same batches each time the script runs"
                    )
        self._cost = f"{time.perf_counter() - started:.2f} s this time"
        return self._batches(skip, again=again)

    def state(self) -> Any:
        return self._began

    def restore(self, state: Any) -> None:
        if state is not None and self._methods is not None:
            self._methods[1](state)
            self._began = state
            self._first = self._peek()

    def position(self) -> Any:
        return self._position

    def how_resumed(self) -> str:
        way = "its own state" if self._methods is not None else "replay from its start"
        return f"{way} ({self._cost})"

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def _batches(self, skip: int, *, again: bool) -> Iterator[Any]:
        for batch, position in self._first[skip:]:
            if not again:
                self._position = position
            yield as_tensors(batch, self.spec)
        if self._ahead is None:
            self._ahead = _ReadAhead(self._read, self._size)
        for batch, position in self._ahead:
            self._position = position
            yield as_tensors(batch, self.spec)

    def _peek(self) -> list[tuple[Any, Any]]:
        items = (self._read() for _ in range(BATCHES_FOR_SPEC))
        return [item for item in items if item is not None]

    def _read(self) -> tuple[Any, Any] | None:
        try:
            batch = next(self._stream)
        except StopIteration:
            return None
        return to_tuple(batch), self._methods[0]() if self._methods is not None else None


class _ReadAhead:
    """A bounded queue that a thread fills. An error in `read` is raised from the iterator."""

    def __init__(self, read: Any, size: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(max(1, size))
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(read,), name="outlast-read-ahead", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            item = self._queue.get()
            if item is _END:
                self._queue.put(_END)
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()

    def _fill(self, read: Any) -> None:
        try:
            while not self._stopped.is_set():
                item = read()
                if not self._offer(_END if item is None else item) or item is None:
                    return
        except BaseException as error:  # noqa: BLE001 - `__iter__` raises it
            self._offer(error)

    def _offer(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _state_methods(stream: Any) -> tuple[Any, Any] | None:
    for get, put in (("state_dict", "load_state_dict"), ("get_state", "set_state")):
        if callable(getattr(stream, get, None)) and callable(getattr(stream, put, None)):
            return getattr(stream, get), getattr(stream, put)
    return None
