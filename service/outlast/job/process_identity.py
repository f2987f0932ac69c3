"""The identity of a process, which no other process can be mistaken for."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Final

import msgspec

SUPERVISOR_PID: Final = "OUTLAST_SUPERVISOR_PID"  # set in the environment of an attempt


class Identity(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One process of one boot of one machine.

    The host's name is for people: it may change while the process runs, and two machines may have
    the same. It only counts where the boot is unknown.
    """

    host: str
    """Host name of the machine when this was written."""
    pid: int
    """Process id."""
    boot_id: str
    """Boot of the machine and pid namespace; containers of one machine differ in the latter."""
    start: int | None = None
    """Start of the process in clock ticks since boot, as pids are reused; None if unknown."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def local(self) -> bool:
        """Whether this process can see that one."""
        return self.boot_id == _boot_id() != ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._key() == other._key()

    def __ne__(self, other: object) -> bool:
        return not self == other  # msgspec's own compares all fields

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, int, int | None]:
        return self.boot_id or f"on {self.host}", self.pid, self.start

    def gone(self) -> bool:
        """Return True if the process has certainly ended; False if it may be alive."""
        if not self.local:
            return False
        found = _stat(self.pid)
        if found is None:
            return not _exists(self.pid)
        state, start = found
        return state in "ZX" or (self.start is not None and start != self.start)

    def is_running(self) -> bool:
        """Return True if the process is certainly alive and not stopped (as by SIGSTOP)."""
        if not self.local or self.gone():
            return False
        found = _stat(self.pid)
        return found is not None and found[0] not in "Tt"


def of_process(pid: int) -> Identity:
    """Return the identity of the process `pid` of this machine."""
    found = _stat(pid)
    return Identity(
        host=socket.gethostname(),
        pid=pid,
        boot_id=_boot_id(),
        start=None if found is None else found[1],
    )


def here() -> Identity:
    """Return the identity of this process."""
    return of_process(os.getpid())


@functools.cache
def _boot_id() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, int] | None:
    """Return state letter and start time of a process; None if it or /proc does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may contain blanks and brackets
    return fields[0], int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
