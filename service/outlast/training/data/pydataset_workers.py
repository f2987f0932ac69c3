"""The workers of a PyDataset: Keras' enqueuer over a process pool that detects dead workers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

from outlast.attempt import loader_workers
from outlast.training.errors import DataWorkerDied
from outlast.training.keras_internals.data_adapters import (
    OrderedEnqueuer,
    PoolEnqueuer,
    init_pool_generator,
)

ENDING_S = 5.0  # longest wait for the exit codes of killed processes


def enqueue(batches: Any, options: Any) -> OrderedEnqueuer:
    """Return an enqueuer for the batches of the PyDataset `batches`.

    `options` is the PyDataset whose `workers`, `use_multiprocessing` and `max_queue_size` apply.
    """
    settings = {
        "workers": options.workers,
        "use_multiprocessing": options.use_multiprocessing,
        "max_queue_size": options.max_queue_size,
    }
    if not options.use_multiprocessing:
        return OrderedEnqueuer(batches, **settings)
    return PoolEnqueuer(batches, pool=_Pool, starting=loader_workers.block_signals, **settings)


class _Pool:
    """The part of `multiprocessing.Pool` that Keras' enqueuer uses. It fails if a worker dies.

    Keras' own pool replaces a dead process, and then waits forever for the lost batch.
    """

    def __init__(self, count: int, datasets: Any) -> None:
        self._executor = ProcessPoolExecutor(count, initializer=_begin, initargs=(datasets,))
        self._workers = loader_workers.WorkerProcesses()

    def apply_async(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Result:
        try:
            future = self._executor.submit(function, *arguments)
        except BrokenProcessPool as error:
            raise _died(self._workers) from error
        # The executor starts its processes at the first `submit`.
        self._workers.add(list((self._executor._processes or {}).values()))
        return _Result(future, self._workers)

    def close(self) -> None:
        self._executor.shutdown(wait=False)


class _Result:
    """A batch that a worker is fetching."""

    def __init__(self, future: Future[Any], workers: loader_workers.WorkerProcesses) -> None:
        self._future = future
        self._workers = workers

    def get(self) -> Any:
        """Wait for the batch. Raises the worker's error, or `DataWorkerDied` if a worker died."""
        try:
            return self._future.result()
        except BrokenProcessPool as error:
            raise _died(self._workers) from error


def _begin(datasets: Any) -> None:
    loader_workers.ignore_signals()
    loader_workers.end_with_training()
    init_pool_generator(datasets)


def _died(workers: loader_workers.WorkerProcesses) -> DataWorkerDied:
    dead = workers.ended_unasked(ENDING_S)
    return DataWorkerDied(
        kind="PyDataset",
        who=" and ".join(f"process {process.pid}" for process in dead) or "one of several",
        ended=" and ".join(_ending(process) for process in dead) or "ended",
    )


def _ending(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
