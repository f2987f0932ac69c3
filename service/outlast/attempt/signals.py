"""Being told to leave: a signal only sets a flag, the loop reads it between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

from outlast.exit_codes import RESUMABLE

LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAVE = (signal.SIGUSR2,)

_Handler = Callable[[int, FrameType | None], Any] | int | None


class StopFlag:
    """What the loop looks at between two compiled calls.

    reason: why to save and leave (the first request's), None to go on. requested_at: when that
    was, monotonic seconds. leave_by: by when the machine is taken, monotonic seconds, None: nobody
    said so. save_and_go_on: a save is wanted now; the loop puts it back to False. count: requests
    so far. watched: whether anybody looks at the flag now; when nobody does (a bare script before,
    between and after its phases) a signal ends the script at once, as it would without Outlast.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.requested_at: float | None = None
        self.leave_by: float | None = None
        self.save_and_go_on = False
        self.watched = True
        self.count = 0
        self._requested = threading.Event()

    def request(self, reason: str) -> None:
        """Ask to save at the next step border and leave; later requests change nothing."""
        self.count += 1
        if self.reason is None:
            self.reason, self.requested_at = reason, time.monotonic()
        self._requested.set()

    @property
    def requested(self) -> bool:
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for a request; return whether there is one."""
        return self._requested.wait(timeout)


class Handlers:
    """The signal handlers of one flag; `restore` puts back those that were there before.

    patience: how many SIGINT set the flag before one interrupts at once; None for no end. A fork of
    the process (a data worker) has nothing to save: it gets the handlers that were there before.
    """

    def __init__(self, flag: StopFlag, *, patience: int | None = None) -> None:
        self._flag = flag
        self._patience = patience
        self._interrupts = 0
        self._before: dict[int, _Handler] = {}
        _all.add(self)

    def install(self, leave: Iterable[int] = LEAVE, save: Iterable[int] = SAVE) -> None:
        for signum in leave:
            self._before[signum] = signal.signal(signum, self._on_leave)
        for signum in save:
            self._before[signum] = signal.signal(signum, self._on_save)

    def restore(self) -> None:
        while self._before:
            signum, before = self._before.popitem()
            # None is a handler that was not set from Python and cannot be put back from it
            with contextlib.suppress(ValueError):
                signal.signal(signum, signal.SIG_DFL if before is None else before)

    def signals(self) -> list[int]:
        """Return the signals that have a handler of ours now."""
        return list(self._before)

    def forget(self) -> None:
        """In a fork: be ended by what ends others, and go on where the attempt saves."""
        saving = {signum: self._before.pop(signum) for signum in SAVE if signum in self._before}
        self.restore()
        for signum in saving:
            signal.signal(signum, signal.SIG_IGN)

    def _on_leave(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            self._interrupts += 1
            if self._patience is not None and self._interrupts > self._patience:
                raise KeyboardInterrupt
        self._flag.request(signal.Signals(signum).name)
        if not self._flag.watched:
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(RESUMABLE)

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        self._flag.save_and_go_on = True


_all: Final[weakref.WeakSet[Handlers]] = weakref.WeakSet()
_masks = threading.local()


def _before_fork() -> None:
    ours = {signum for handlers in list(_all) for signum in handlers.signals()}
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child() -> None:
    for handlers in list(_all):
        handlers.forget()
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


# A data worker may be asked to end before its first instruction has run (a pool that is done soon,
# on a busy machine). Python forgets signals that reached its handlers that early, and whoever waits
# for the worker's end would wait for ever. So they are held back until there is no handler of ours.
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def install(
    flag: StopFlag, *, patience: int | None = None, leave: Iterable[int] = LEAVE
) -> Handlers | None:
    """Let signals set `flag`; None when this is not the main thread, where no handler can be set.

    patience: see `Handlers`.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    handlers = Handlers(flag, patience=patience)
    handlers.install(leave=leave)
    return handlers
