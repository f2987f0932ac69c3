"""Signal handlers of a training: they set a flag, which the loop reads between steps.

A script and its libraries may have handlers of their own. These are called after the flag is set. A
handler that takes the place of ours is found at the next step border, and is called from then on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final

from outlast.exit_codes import RESUMABLE

LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAVE = (signal.SIGUSR2,)

_Handler = Callable[[int, FrameType | None], Any] | int | None


class StopFlag:
    """What the loop reads between two compiled calls.

    Attributes:
        reason: Why to save and leave, from the first request; None to continue.
        requested_at: When that was requested, in monotonic seconds.
        leave_by: When the machine is taken, in monotonic seconds; None if unknown.
        save_and_go_on: Whether to save now and continue; the loop resets it.
        count: Number of requests.
        in_loop: Whether a loop runs, which saves and leaves when it was requested to.
        handler_error: What a handler of the script raised in a loop.
        watched: Whether a loop reads the flag. If none does (in a bare script outside its phases),
            a signal ends the script immediately, as without Outlast.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.requested_at: float | None = None
        self.leave_by: float | None = None
        self.save_and_go_on = False
        self.watched = True
        self.count = 0
        self.in_loop = False
        self.handler_error: str | None = None
        self._handlers: Handlers | None = None
        self._requested = threading.Event()

    def request(self, reason: str) -> None:
        """Ask to save at the next step border and leave. Later requests change nothing."""
        self.count += 1
        if self.reason is None:
            self.reason, self.requested_at = reason, time.monotonic()
        self._requested.set()

    @contextlib.contextmanager
    def read_by_loop(self) -> Iterator[None]:
        """Mark that a loop reads the flag, until the end of this context."""
        before = self.watched, self.in_loop
        self.watched = self.in_loop = True
        try:
            yield
        finally:
            self.watched, self.in_loop = before

    def put_handlers_back(self) -> list[str]:
        """Install our handlers again where they were replaced.

        Returns:
            The names of the signals, each only the first time.
        """
        return [] if self._handlers is None else self._handlers.put_back()

    @property
    def requested(self) -> bool:
        """Whether anybody asked to leave."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for a request; return whether there is one."""
        return self._requested.wait(timeout)


class Handlers:
    """The signal handlers of one flag.

    A fork of the process, such as a data worker, gets back the previous handlers.

    Args:
        flag: The flag to set.
        patience: Number of SIGINT that set the flag before one interrupts immediately; None for
            no limit.
    """

    def __init__(self, flag: StopFlag, *, patience: int | None = None) -> None:
        self._flag = flag
        self._patience = patience
        self._interrupts = 0
        self._before: dict[int, _Handler] = {}
        self._running: set[int] = set()
        self._reported: set[int] = set()
        flag._handlers = self
        _all.add(self)

    def install(self, leave: Iterable[int] = LEAVE, save: Iterable[int] = SAVE) -> None:
        """Install the handlers."""
        for signum in leave:
            self._before[signum] = signal.signal(signum, self._on_leave)
        for signum in save:
            self._before[signum] = signal.signal(signum, self._on_save)

    def restore(self) -> None:
        """Restore the previous handlers."""
        while self._before:
            signum, before = self._before.popitem()
            # None: a handler set outside Python, which Python cannot restore
            with contextlib.suppress(ValueError):
                signal.signal(signum, signal.SIG_DFL if before is None else before)

    def put_back(self) -> list[str]:
        """Install the handlers again where the script, or a library, has replaced them.

        Returns:
            The names of the signals that were not returned before.
        """
        if threading.current_thread() is not threading.main_thread():
            return []
        taken = []
        for signum in list(self._before):
            ours = self._on_save if signum in SAVE else self._on_leave
            present = signal.getsignal(signum)
            if present == ours:
                continue
            signal.signal(signum, ours)
            if isinstance(getattr(present, "__self__", None), Handlers):
                continue  # of another job in this process
            self._before[signum] = present
            if signum not in self._reported:
                self._reported.add(signum)
                taken.append(signal.Signals(signum).name)
        return taken

    def signals(self) -> list[int]:
        """Return the signals that these handlers handle now."""
        return list(self._before)

    def forget(self) -> None:
        """In a fork: restore the previous handlers, and ignore the signals that mean a save."""
        saving = {signum: self._before.pop(signum) for signum in SAVE if signum in self._before}
        self.restore()
        for signum in saving:
            signal.signal(signum, signal.SIG_IGN)

    def _on_leave(self, signum: int, frame: FrameType | None) -> None:
        if signum in self._running:
            return  # the script's handler calls the one before it, which is ours
        if signum == signal.SIGINT:
            self._interrupts += 1
            if self._patience is not None and self._interrupts > self._patience:
                raise KeyboardInterrupt
        self._flag.request(signal.Signals(signum).name)
        if self._call_the_scripts(signum, frame) or self._flag.watched:
            return
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(RESUMABLE)

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        if signum not in self._running:
            self._flag.save_and_go_on = True
            self._call_the_scripts(signum, frame)

    def _call_the_scripts(self, signum: int, frame: FrameType | None) -> bool:
        """Call the handler that ours replaced; return whether there is one.

        What it raises in a loop, such as SystemExit, would end the training before it has saved.
        """
        handler = self._scripts_handler(signum)
        if handler is None:
            return False
        self._running.add(signum)
        try:
            handler(signum, frame)
        except BaseException as error:
            if not self._flag.in_loop:
                raise
            self._flag.handler_error = f"{type(error).__name__}: {error}"
        finally:
            self._running.discard(signum)
        return True

    def _scripts_handler(self, signum: int) -> Callable[[int, FrameType | None], Any] | None:
        """Return the handler below ours, and below those of other jobs in this process."""
        owner: Any = self
        seen = []
        handler: Any = None
        while isinstance(owner, Handlers) and owner not in seen:
            seen.append(owner)
            handler = owner._before.get(signum)
            owner = getattr(handler, "__self__", None)
        if isinstance(owner, Handlers) or handler is signal.default_int_handler:
            return None
        return handler if callable(handler) else None


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


# A data worker may get a signal before its first instruction (a short pool on a busy machine).
# Python forgets signals that its handlers get that early, and the pool would wait for the worker
# forever. So signals are blocked until our handlers are removed in the fork.
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def install(
    flag: StopFlag, *, patience: int | None = None, leave: Iterable[int] = LEAVE
) -> Handlers | None:
    """Let signals set `flag`; return None outside the main thread, where that is impossible.

    Args:
        flag: The flag to set.
        patience: As for `Handlers`.
        leave: Signals that ask to leave.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    handlers = Handlers(flag, patience=patience)
    handlers.install(leave=leave)
    return handlers
