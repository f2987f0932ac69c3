"""Signal handlers of a training. They set a flag, which the loop reads between two steps.

If the script or a library has installed a handler before, ours calls it after setting the flag. If
Python code sets one while a loop runs, ours stays in place and calls it from then on. If one gets
past `signal.signal`, the loop installs ours again at the next border between two steps.
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

LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SAVE = (signal.SIGUSR2,)

_Handler = Callable[[int, FrameType | None], Any] | int | None


class StopFlag:
    """What the loop reads between two compiled calls.

    Attributes:
        reason: Why to save and leave, from the first request; None to continue.
        requested_at: Time of the first request, in monotonic seconds.
        leave_by: Time at which the machine is taken, in monotonic seconds; None if unknown.
        save_and_continue: Whether to save now and continue; the loop resets it.
        count: Number of requests.
        in_loop: Whether a loop is running, which will save and leave on a request.
        handler_error: Error that a handler of the script raised while a loop was running.
        watched: Whether anything reads the flag. If not (in a bare script outside its phases), a
            signal ends the script immediately, as without Outlast.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.requested_at: float | None = None
        self.leave_by: float | None = None
        self.save_and_continue = False
        self.watched = True
        self.count = 0
        self.in_loop = False
        self.handler_error: str | None = None
        self._handlers: Handlers | None = None
        self._requested = threading.Event()

    def request(self, reason: str) -> None:
        """Ask the loop to save after the current step and leave. Later requests only count."""
        self.count += 1
        if self.reason is None:
            self.reason, self.requested_at = reason, time.monotonic()
        self._requested.set()

    @contextlib.contextmanager
    def read_by_loop(self) -> Iterator[None]:
        """Mark that a loop reads the flag while this context is open."""
        before = self.watched, self.in_loop
        self.watched = self.in_loop = True
        keeping = contextlib.nullcontext() if self._handlers is None else self._handlers.keeping()
        try:
            with keeping:
                yield
        finally:
            self.watched, self.in_loop = before

    def reinstall_handlers(self) -> list[str]:
        """Install our handlers again where the script or a library has replaced them.

        Returns:
            Names of the signals whose handlers were replaced, each only the first time.
        """
        return [] if self._handlers is None else self._handlers.reinstall()

    @property
    def requested(self) -> bool:
        """Whether the loop was asked to leave."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for a request; return whether there is one."""
        return self._requested.wait(timeout)


class Handlers:
    """The signal handlers that set one flag.

    In a fork of the process, such as a data worker, the previous handlers are restored.

    Args:
        flag: The flag to set.
        max_interrupts: Number of SIGINTs that set the flag; the next one raises
            `KeyboardInterrupt` immediately. None for no limit.
    """

    def __init__(self, flag: StopFlag, *, max_interrupts: int | None = None) -> None:
        self._flag = flag
        self._max_interrupts = max_interrupts
        self._interrupts = 0
        self._before: dict[int, _Handler] = {}
        self._running: set[int] = set()
        self._first: dict[int, _Handler] = {}
        self._replaced: list[int] = []
        self._reported: set[int] = set()
        flag._handlers = self
        _all.add(self)

    def install(self, leave: Iterable[int] = LEAVE, save: Iterable[int] = SAVE) -> None:
        """Install the handlers.

        SIGHUP stays ignored under nohup.
        """
        for signum in leave:
            if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
                continue
            self._before[signum] = signal.signal(signum, self._on_leave)
        for signum in save:
            self._before[signum] = signal.signal(signum, self._on_save)
        self._first = dict(self._before)

    def restore(self, *, ignore: bool = False) -> None:
        """Restore the previous handlers. ignore: ignore the signals that ask to leave instead."""
        while self._before:
            signum, before = self._before.popitem()
            if ignore and signum in LEAVE:
                signal.signal(signum, signal.SIG_IGN)
                continue
            # None: a handler set outside Python, which Python cannot restore
            with contextlib.suppress(ValueError):
                signal.signal(signum, signal.SIG_DFL if before is None else before)

    def reinstall(self) -> list[str]:
        """Install the handlers again where the script or a library has replaced them.

        Returns:
            Names of the signals whose handlers were replaced, each only the first time.
        """
        if threading.current_thread() is not threading.main_thread():
            return []
        for signum in list(self._before):
            ours = self._ours(signum)
            present = signal.getsignal(signum)
            if present == ours:
                continue
            signal.signal(signum, ours)
            if isinstance(getattr(present, "__self__", None), Handlers):
                continue  # the handler of another job in this process
            self._before[signum] = present
            self._replaced.append(signum)
        new = [n for n in dict.fromkeys(self._replaced) if n not in self._reported]
        self._replaced.clear()
        self._reported.update(new)
        return [signal.Signals(signum).name for signum in new]

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Within the block, `signal.signal` sets the handler that ours call, and ours stay."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._replaced += [getattr(signal, name) for name in self.reinstall()]
        self._reported.difference_update(self._replaced)
        set_handler = signal.signal

        def set_behind_ours(signum: int, handler: Any) -> Any:
            is_ours = signum in self._before and signal.getsignal(signum) == self._ours(signum)
            usual = (signal.SIG_IGN, signal.SIG_DFL, self._ours(signum))
            here = threading.current_thread() is threading.main_thread()
            if not (is_ours and here and (callable(handler) or handler in usual)):
                return set_handler(signum, handler)
            before = self._before[signum]
            if handler == self._ours(signum):  # put back by somebody who had asked for it
                self._before[signum] = self._first[signum]
            else:
                self._before[signum] = handler
                self._replaced.append(signum)
            return before

        signal.signal = set_behind_ours  # type: ignore[assignment]
        try:
            yield
        finally:
            if signal.signal is set_behind_ours:
                signal.signal = set_handler

    def _ours(self, signum: int) -> Callable[[int, FrameType | None], None]:
        return self._on_save if signum in SAVE else self._on_leave

    def signals(self) -> list[int]:
        """Return the signals that these handlers handle now."""
        return list(self._before)

    def forget(self) -> None:
        """In a fork: restore the previous handlers, and ignore the signals that request a save."""
        saving = {signum: self._before.pop(signum) for signum in SAVE if signum in self._before}
        self.restore()
        for signum in saving:
            signal.signal(signum, signal.SIG_IGN)

    def _on_leave(self, signum: int, frame: FrameType | None) -> None:
        if signum in self._running:
            return  # the script's handler called the previous handler, which is ours
        if signum == signal.SIGINT:
            self._interrupts += 1
            if self._max_interrupts is not None and self._interrupts > self._max_interrupts:
                raise KeyboardInterrupt
        self._flag.request(signal.Signals(signum).name)
        if self._call_script_handler(signum, frame) or self._flag.watched:
            return
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(RESUMABLE)

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        if signum not in self._running:
            self._flag.save_and_continue = True
            self._call_script_handler(signum, frame)

    def _call_script_handler(self, signum: int, frame: FrameType | None) -> bool:
        """Call the script's handler for this signal; return whether there is one.

        While a loop is running, its exception is only recorded. Otherwise an exception such as
        SystemExit would end the training before it has saved.
        """
        handler = self._script_handler(signum)
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

    def _script_handler(self, signum: int) -> Callable[[int, FrameType | None], Any] | None:
        """Return the handler that ours replaced, skipping handlers of other jobs."""
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


# A data worker may receive a signal before it has executed any Python code, for example if its pool
# is closed at once. Python would lose that signal, and the pool would wait for the worker forever.
# So the signals stay blocked in the fork until our handlers are removed there.
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def install(
    flag: StopFlag, *, max_interrupts: int | None = None, leave: Iterable[int] = LEAVE
) -> Handlers | None:
    """Install handlers that set `flag`. Return None outside the main thread, which cannot.

    Args:
        flag: The flag to set.
        max_interrupts: As for `Handlers`.
        leave: Signals that ask the loop to leave.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    handlers = Handlers(flag, max_interrupts=max_interrupts)
    handlers.install(leave=leave)
    return handlers
