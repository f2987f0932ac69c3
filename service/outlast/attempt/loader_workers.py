"""Keeps worker processes of the training data alive when a signal asks the training to leave.

Slurm's scancel, a stopping container and Ctrl-C signal every process of a training. The training
saves and then ends its workers itself. A worker that ended on the signal would break the training
before it has saved.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from outlast.attempt.signals import LEAVE, SAVE

SIGNALS = (*LEAVE, *SAVE)


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Block the signals in this thread, and in the processes that start in this context.

    No signal is lost: this process handles it afterwards, or in another thread. New processes
    inherit the block over fork and exec, until they call `ignore_signals`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """In a worker: unblock the signals and handle them by doing nothing.

    If they stayed blocked or ignored, programs that the worker runs would inherit that, and the
    worker could not end them.
    """
    for signum in SIGNALS:
        signal.signal(signum, _do_nothing)
        signal.siginterrupt(signum, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignoring_signals(function: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return a function for workers that calls `ignore_signals`, then `function`."""
    return functools.partial(_ignore_and_call, function)


def end_with_training() -> None:
    """In a worker: end when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


class WorkerProcesses:
    """The worker processes of a training."""

    def __init__(self) -> None:
        self._processes: dict[int, BaseProcess] = {}
        self._terminated: set[int] = set()

    def add(self, processes: Iterable[BaseProcess]) -> None:
        """Make `terminate` kill these processes, because they do nothing on SIGTERM."""
        for process in processes:
            assert process.pid is not None
            if process.pid not in self._processes:
                self._processes[process.pid] = process
                # `terminate`, and multiprocessing at exit, both call this.
                popen: Any = process._popen  # type: ignore[attr-defined]
                popen.terminate = functools.partial(self._end, process)

    def ended_unasked(self, timeout: float) -> list[BaseProcess]:
        """Wait for all workers; return those that ended without `terminate`.

        Args:
            timeout: Seconds to wait for each worker.
        """
        found = []
        for pid, process in list(self._processes.items()):
            process.join(timeout)
            if pid not in self._terminated and process.exitcode is not None:
                found.append(process)
        return found

    def _end(self, process: BaseProcess) -> None:
        assert process.pid is not None
        if not connection.wait([process.sentinel], 0):  # otherwise it has already ended
            self._terminated.add(process.pid)
            process.kill()


def _ignore_and_call(function: Callable[..., Any] | None, *arguments: Any) -> None:
    ignore_signals()
    if function is not None:
        function(*arguments)


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass
