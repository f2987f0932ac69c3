"""The spare as its supervisor sees it: a process that becomes an attempt, and leaves an heir.

The heir, a fork, is the next spare: it has all that was imported, waits at the same pipe, and is a
child of the supervisor as its parent was. See `outlast.attempt.warm_spare` for its side.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import msgspec

from outlast.job.preload import Order, Preload

_NEWS_WITHIN: Final = 1.0  # seconds in which a fork certainly has told its pid


class Child(Protocol):
    """As much of a Popen as is needed of an attempt's process."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class Forked:
    """A child process that this one has not started by a Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        code = self._wait(0)
        assert code is not None
        return code

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, options)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class Spare:
    """The present spare: a process, or the one that the last attempt is about to leave.

    start: starts it, given its stdin and the file to which an heir writes its pid.
    """

    def __init__(
        self, start: Callable[[int, int], subprocess.Popen[bytes]], preload: Preload
    ) -> None:
        self.preload = preload
        self._child: Child | None = None
        self._heard = b""
        self._barren = False  # there is no process now, nor will there be
        hears, self._orders = os.pipe()
        self._news, tells = os.pipe()
        os.set_blocking(self._news, False)
        try:
            self._child = start(hears, tells)
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(hears)
            os.close(tells)
        self._say(preload)

    def child(self) -> Child | None:
        """Return its process while it lives; None as well when that is not known yet."""
        if self._child is None and not self._barren:
            self._listen()
        if self._child is not None and self._child.poll() is not None:
            self._child, self._barren = None, True
        return self._child

    def there(self) -> bool:
        """Return whether it lives, or may still tell that it does."""
        return self.child() is not None or not self._barren

    def become(self, order: Order) -> Child | None:
        """Return the process, told to be an attempt; None when there is none.

        Its heir is the spare from now on.
        """
        child = self.child()
        if child is None or not self._say(order):
            return None
        self._child, self._heard = None, b""
        return child

    def end(self) -> None:
        """Kill it, and leave nothing of it."""
        if not self.there():
            return self._close_pipes()
        if self._child is None:
            select.select([self._news], [], [], _NEWS_WITHIN)
        if (child := self.child()) is not None:
            kill_group(child.pid)  # it may be importing, which takes a while
            child.wait()
        return self._close_pipes()  # whoever is there yet ends with them

    def _listen(self) -> None:
        """Learn of the heir. The pipe ends when nobody is left who could tell of one."""
        with suppress(BlockingIOError):
            while found := os.read(self._news, 64):
                self._heard += found
            self._barren = True
        if self._heard.endswith(b"\n") and not self._barren:
            pid = int(self._heard)
            self._barren = not _is_child(pid)
            self._child = None if self._barren else Forked(pid)

    def _say(self, what: Preload | Order) -> bool:
        try:
            os.write(self._orders, msgspec.json.encode(what) + b"\n")
        except OSError:  # it has just died
            return False
        return True

    def _close_pipes(self) -> None:
        os.close(self._orders)
        os.close(self._news)


def kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _is_child(pid: int) -> bool:
    """Return whether a process is a child, dead or not: then the pid is certainly its own."""
    with suppress(ChildProcessError):
        if pid > 0:  # 0: it could not fork
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return True
    return False
