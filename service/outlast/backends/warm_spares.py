"""The supervisor's side of warm spares. `outlast.attempt.warm_spare` is the other side.

A spare becomes an attempt, and forks the next spare before that. The fork has imported the same
modules, waits at the same pipe, and is adopted by the supervisor.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import msgspec

from outlast.job.preload import Order, Preload

_PID_WITHIN: Final = 1.0  # seconds in which a fork has certainly written its pid


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


class Reports:
    """What our own children report through a pipe: their imports, and the pid of the next spare."""

    def __init__(self) -> None:
        self.preload: Preload | None = None
        """What the attempt has imported, once it trains."""
        self.spare: int | None = None
        """Pid of the next spare; 0 if it could not be made."""
        self.ended = False
        """Whether no process is left that could report."""
        self._pipe, self._sender = os.pipe()
        os.set_blocking(self._pipe, False)
        self._received = b""

    @contextmanager
    def sender(self) -> Iterator[int]:
        """Lend the end of the pipe that a child inherits. Afterwards only the child has it."""
        try:
            yield self._sender
        finally:
            os.close(self._sender)

    def read(self) -> None:
        """Take in what has been reported since."""
        with suppress(BlockingIOError):
            while found := os.read(self._pipe, 1 << 16):
                self._received += found
            self.ended = True
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                self.preload = msgspec.json.decode(line, type=Preload)
            else:
                self.spare = int(line)

    def wait(self, seconds: float) -> None:
        """Wait until something is reported, at most so long."""
        select.select([self._pipe], [], [], seconds)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._pipe)


class Spare:
    """The current spare: a process, or the fork that the last attempt is about to make.

    Args:
        start: Starts the process. It gets the file descriptors of its stdin, and of the pipe for
            its reports.
        preload: Modules that the spare imports, and the environment that it imports them in.
    """

    def __init__(
        self, start: Callable[[int, int], subprocess.Popen[bytes]], preload: Preload
    ) -> None:
        self.preload = preload
        self.reports = Reports()
        self._child: Child | None = None
        self._gone = False  # there is no process and will be none
        child_stdin, self._orders = os.pipe()
        try:
            with self.reports.sender() as pipe:
                self._child = start(child_stdin, pipe)
        except OSError:
            self._close_pipes()
            raise
        finally:
            os.close(child_stdin)
        self._send(preload)

    def child(self) -> Child | None:
        """Return the process while it lives; None also while that is unknown."""
        if self._child is None and not self._gone:
            self._read_pid()
        if self._child is not None and self._child.poll() is not None:
            self._child, self._gone = None, True
        return self._child

    def exists(self) -> bool:
        """Return whether the spare lives, or may still appear."""
        return self.child() is not None or not self._gone

    def become(self, order: Order) -> Child | None:
        """Turn the spare into an attempt and return its process; None when there is none.

        From now on, the fork of that process is the spare.
        """
        child = self.child()
        if child is None or not self._send(order):
            return None
        self._child, self.reports.spare, self.reports.preload = None, None, None
        return child

    def end(self) -> None:
        """Kill the spare and close its pipes."""
        if not self.exists():
            return self._close_pipes()
        if self._child is None:
            self.reports.wait(_PID_WITHIN)
        if (child := self.child()) is not None:
            kill_group(child.pid)  # it may be importing, which takes seconds
            child.wait()
        return self._close_pipes()  # a process that remains ends with them

    def _read_pid(self) -> None:
        """Read the pid of the fork."""
        self.reports.read()
        pid = self.reports.spare
        self._gone = self.reports.ended or (pid is not None and not _is_child(pid))
        if pid is not None and not self._gone:
            self._child = Forked(pid)

    def _send(self, what: Preload | Order) -> bool:
        try:
            os.write(self._orders, msgspec.json.encode(what) + b"\n")
        except OSError:  # the process has just died
            return False
        return True

    def _close_pipes(self) -> None:
        os.close(self._orders)
        self.reports.close()


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
