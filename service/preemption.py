"""Being told to leave: a signal only sets a flag, the loop reads it between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from service.exit_codes import RESUMABLE

LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAVE = (signal.SIGUSR2,)

_Handler = Callable[[int, FrameType | None], Any] | int | None


class StopFlag:
    """What the loop looks at between two compiled calls.

    reason: why to save and leave (the first request's), None to go on. save_and_go_on: a save is
    wanted now; the loop puts it back to False. count: requests so far. watched: whether anybody
    looks at the flag now; when nobody does (a bare script before, between and after its phases) a
    signal ends the script at once, as it would without Holdfast.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.save_and_go_on = False
        self.watched = True
        self.count = 0
        self._requested = threading.Event()

    def request(self, reason: str) -> None:
        """Ask to save at the next step border and leave; later requests change nothing."""
        self.count += 1
        if self.reason is None:
            self.reason = reason
        self._requested.set()

    @property
    def requested(self) -> bool:
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for a request; return whether there is one."""
        return self._requested.wait(timeout)


class Handlers:
    """The signal handlers of one flag; `restore` puts back those that were there before.

    patience: how many SIGINT set the flag before one interrupts at once; None for no end.
    """

    def __init__(self, flag: StopFlag, *, patience: int | None = None) -> None:
        self._flag = flag
        self._patience = patience
        self._interrupts = 0
        self._before: dict[int, _Handler] = {}
        self._pid = os.getpid()

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

    def _on_leave(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a fork of the attempt (a data worker) has nothing to save
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if signum == signal.SIGINT:
            self._interrupts += 1
            if self._patience is not None and self._interrupts > self._patience:
                raise KeyboardInterrupt
        self._flag.request(signal.Signals(signum).name)
        if not self._flag.watched:
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(RESUMABLE)

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._flag.save_and_go_on = True


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
