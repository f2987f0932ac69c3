"""Processes that make training data ready: a signal is the training's affair, not theirs.

What ends a training politely often goes to every process of it: Slurm's scancel, a container that
stops, Ctrl-C on a terminal. The training then saves and leaves, and ends its workers itself; those
that ended of the signal would break it before it has saved.
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
def hold_back() -> Iterator[None]:
    """Hold the signals back in this thread, and for good in the processes that are started here.

    None is lost: what comes to this process meanwhile is dealt with afterwards, or by another
    thread at once. Processes inherit it over fork and exec, so that they are deaf from their first
    instruction on; see `go_on`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def go_on() -> None:
    """In a worker: let the signals come, and do nothing about them.

    Were they held back or ignored further, whatever program a worker runs would inherit that, and
    could not be ended by a worker that asks it to.
    """
    for signum in SIGNALS:
        signal.signal(signum, _nothing)
        signal.siginterrupt(signum, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def going_on(function: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return what a worker calls first: `go_on`, then `function` with whatever it is given."""
    return functools.partial(_go_on_and_call, function)


def end_with_training() -> None:
    """In a worker: end when the process that has started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


class Crew:
    """Worker processes that run: those whom `terminate` has to end, and those who ended by
    themselves.
    """

    def __init__(self) -> None:
        self._processes: dict[int, BaseProcess] = {}
        self._told: set[int] = set()

    def add(self, processes: Iterable[BaseProcess]) -> None:
        """Let their `terminate` end them although they do nothing about SIGTERM."""
        for process in processes:
            assert process.pid is not None
            if process.pid not in self._processes:
                self._processes[process.pid] = process
                # `terminate` and multiprocessing's own end of daemons at exit both go here.
                popen: Any = process._popen  # type: ignore[attr-defined]
                popen.terminate = functools.partial(self._end, process)

    def ended_by_themselves(self, timeout: float) -> list[BaseProcess]:
        """Return those that nobody has told to end, once all have ended.

        timeout: seconds to wait for each of them.
        """
        found = []
        for pid, process in list(self._processes.items()):
            process.join(timeout)
            if pid not in self._told and process.exitcode is not None:
                found.append(process)
        return found

    def _end(self, process: BaseProcess) -> None:
        assert process.pid is not None
        if not connection.wait([process.sentinel], 0):  # else it is ending already
            self._told.add(process.pid)
            process.kill()


def _go_on_and_call(function: Callable[..., Any] | None, *arguments: Any) -> None:
    go_on()
    if function is not None:
        function(*arguments)


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _nothing(signum: int, frame: FrameType | None) -> None:
    pass
