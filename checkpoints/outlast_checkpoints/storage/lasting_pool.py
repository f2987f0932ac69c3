"""A thread pool that works to the very end of its process."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class LastingThreadPool(ThreadPoolExecutor):
    """A thread pool that runs work itself once Python shuts down and its threads refuse it.

    Python closes thread pools before it calls the atexit handlers. Host names are resolved in such
    a pool, so without this an attempt could not report how it ended.
    """

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            done: Future[Any] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001  (the future raises it)
                done.set_exception(error)
            return done
