"""The supervisor's side of warm spares. `outlast.attempt.warm_spare` is the other side.

A spare becomes an attempt, and forks the next spare before that. The fork has imported the same
modules, waits at the same pipe, and is adopted by the supervisor.
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

_NEWS_WITHIN: Final = 1.0  # seconds in which a fork has certainly written its pid


class Child(Protocol):
    """The part of `subprocess.Popen` that the backend needs of an attempt's process."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class Forked:
    """A child process that was not started by `subprocess.Popen`."""

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
    """The current spare: a process, or the fork that the last attempt is about to make.

    Args:
        start: Starts the process. It gets the file descriptors of its stdin, and of the pipe to
            which a fork writes its pid.
        preload: Modules that the spare imports, and the environment that it imports them in.
    """

    def __init__(
        self, start: Callable[[int, int], subprocess.Popen[bytes]], preload: Preload
    ) -> None:
        self.preload = preload
        self._child: Child | None = None
        self._heard = b""
        self._barren = False  # there is no process and will be none
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
        """Return the process while it lives; None also while that is unknown."""
        if self._child is None and not self._barren:
            self._listen()
        if self._child is not None and self._child.poll() is not None:
            self._child, self._barren = None, True
        return self._child

    def there(self) -> bool:
        """Return whether the spare lives, or may still appear."""
        return self.child() is not None or not self._barren

    def become(self, order: Order) -> Child | None:
        """Turn the spare into an attempt and return its process; None when there is none.

        From now on, the fork of that process is the spare.
        """
        child = self.child()
        if child is None or not self._say(order):
            return None
        self._child, self._heard = None, b""
        return child

    def end(self) -> None:
        """Kill the spare and close its pipes."""
        if not self.there():
            return self._close_pipes()
        if self._child is None:
            select.select([self._news], [], [], _NEWS_WITHIN)
        if (child := self.child()) is not None:
            kill_group(child.pid)  # it may be importing, which takes seconds
            child.wait()
        return self._close_pipes()  # a process that remains ends with them

    def _listen(self) -> None:
        """Read the pid of the fork. The pipe ends when no process is left that could fork."""
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
        except OSError:  # the process has just died
            return False
        return True

    def _close_pipes(self) -> None:
        os.close(self._orders)
        os.close(self._news)


def kill_group(pid: int) -> None:
    """Kill all processes of a process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _is_child(pid: int) -> bool:
    """Return whether a process is our child, dead or alive; then its pid is not reused."""
    with suppress(ChildProcessError):
        if pid > 0:  # 0: the fork failed
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return True
    return False
