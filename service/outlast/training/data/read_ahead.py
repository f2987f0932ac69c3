"""`ReadAhead`: the items of a stream, read by a thread within a budget."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from outlast.training.keras_internals import generators

_END = object()
ENDING_S = 10.0  # longest wait for a read that is under way when the reader is stopped


class ReadAhead:
    """A bounded queue that a thread fills. An error in `read` is raised from the iterator.

    `read` returns None at the end. The thread reads no more items than `allow` permits, so that it
    draws no random numbers that the script draws first, for example in a callback at an epoch's
    end. An item that is asked for is read in any case.
    """

    def __init__(self, read: Callable[[], Any], size: int) -> None:
        self._read = read
        self._keras_global = generators.keras_global()
        self._queue: queue.Queue[Any] = queue.Queue(max(1, size))
        self._stopped = False
        self._budget: int | None = 0  # None: no limit
        self._turn = threading.Condition()
        self._reading = False
        self._hand: Any = None  # an item that waits for its place in the queue
        self._thread = threading.Thread(target=self._fill, name="outlast-read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            if self._queue.empty():
                self._demand()
            item = self._queue.get()
            if item is _END:
                self._queue.put(_END)
                return
            if _is_error(item):
                raise item
            yield item

    def allow(self, count: int | None) -> None:
        """Permit to read `count` further items; with None, all that there are."""
        with self._turn:
            self._budget = count
            self._turn.notify()

    def unread(self) -> list[Any]:
        """Return the items that were read and not handed out yet."""
        with self._queue.mutex:
            items = [*self._queue.queue, self._hand]
        return [
            item for item in items if item is not None and item is not _END and not _is_error(item)
        ]

    def stop(self) -> None:
        """Stop the thread, after the read that is under way."""
        with self._turn:
            self._stopped = True
            self._turn.notify()
        self._thread.join(ENDING_S)

    def _demand(self) -> None:
        with self._turn:
            if self._budget == 0 and self._queue.empty() and not self._reading:
                self._budget = 1
                self._turn.notify()

    def _fill(self) -> None:
        generators.share_keras_global(self._keras_global)
        try:
            while self._may_read():
                item = self._read()
                self._hand = item
                offered = self._offer(_END if item is None else item)
                self._reading, self._hand = False, None
                if not offered or item is None:
                    return
        except BaseException as error:  # noqa: BLE001 - `__iter__` raises it
            self._offer(error)

    def _may_read(self) -> bool:
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._budget != 0)
            if self._stopped:
                return False
            if self._budget is not None:
                self._budget -= 1
            self._reading = True
            return True

    def _offer(self, item: Any) -> bool:
        while not self._stopped:
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _is_error(item: Any) -> bool:
    return isinstance(item, BaseException)
