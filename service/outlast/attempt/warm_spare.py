"""A process that has imported TensorFlow already and waits to become the next attempt.

Importing takes most of a restart's time. A spare does it while the present attempt trains; when
that dies, the spare runs the script in its place, in the time that the script itself needs. Before,
it forks the next spare, which need not import anything.
"""

from __future__ import annotations

import gc
import importlib
import os
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from outlast.attempt import main as attempt
from outlast.job import preload as warmth
from outlast.job.preload import Order, Preload, Warmth
from outlast.job.process_identity import SUPERVISOR_PID

# A process that has an accelerator's library loaded may not be able to fork.
ACCELERATORS: Final = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg", "accel*", "vfio/[0-9]*")


def main(argv: list[str]) -> int:
    """Read what to prepare and, when it is time, what to become: a line each on stdin.

    ARGV[0] is the pipe that takes the pid of the next spare. Without a further line, when
    the supervisor is gone or has no more use for it, it just ends.
    """
    news = _pipe(int(argv[0]))
    preload = msgspec.json.decode(sys.stdin.readline(), type=Preload)
    for name, value in preload.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    gc.disable()  # importing makes no garbage, and a million objects that would be looked at
    with warmth.importing():
        for name in preload.modules:
            with suppress(ImportError):  # the script finds out, and says so in its own words
                importlib.import_module(name)
    gc.freeze()  # they stay; nobody need look at them again
    gc.enable()
    forks = 0
    while True:
        ready, held = time.monotonic(), warmth.memory()
        line = sys.stdin.readline()
        if not line:
            return 0
        order = msgspec.json.decode(line, type=Order)
        if not (order.heir and _is_heir(news)):
            break
        forks += 1
    os.close(news)
    warmth.set_warmth(Warmth(warmth.start, time.monotonic() - ready, held, forks))
    _put_back(preload)
    _connect(order.output)
    return attempt.main([order.url, str(order.attempt)])


def _is_heir(news: int) -> bool:
    """Fork the next spare; return whether this process is that one.

    It is the child of a child that ends at once, so the supervisor adopts it, and the attempt never
    has a child that it knows nothing of. Random generators need no care: an attempt seeds them all.
    """
    between = -1
    # A wrapper may be in between, a container's: the next spare would be outside of that.
    child = str(os.getppid()) == warmth.start.get(SUPERVISOR_PID)
    if child and threading.active_count() == 1 and not has_accelerator():
        with suppress(OSError):  # no memory, too many processes: the next spare is a new one
            between = os.fork()
    if between == 0:
        _leave_heir(news, int(warmth.start[SUPERVISOR_PID]))
        return True
    with suppress(OSError):
        if between > 0:
            os.waitpid(between, 0)
        else:
            os.write(news, b"0\n")
    return False


def has_accelerator() -> bool:
    """Return whether this machine has one."""
    return any(any(Path("/dev").glob(pattern)) for pattern in ACCELERATORS)


def _leave_heir(news: int, supervisor: int) -> None:
    """Fork and end; return in the child, when the supervisor has adopted it and knows its pid."""
    try:
        between = os.getpid()
        if os.fork():
            os._exit(0)
        os.setsid()  # what ends the attempt, and all that it started, does not end this one
        while os.getppid() == between:
            time.sleep(0.001)
        if os.getppid() != supervisor:
            os._exit(0)
        os.write(news, b"%d\n" % os.getpid())
    except BaseException:  # noqa: BLE001  (never go on as a second attempt)
        os._exit(1)


def _pipe(number: int) -> int:
    """Return the pipe, or nothing in its place where a wrapper has not passed it on."""
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            os.set_inheritable(number, False)
            return number
    except OSError:
        pass
    return os.open(os.devnull, os.O_WRONLY)


def _put_back(preload: Preload) -> None:
    """Leave the script the environment that it finds in a process that starts cold."""
    for name in preload.environment:
        if name in warmth.start:
            os.environ[name] = warmth.start[name]
        else:
            os.environ.pop(name, None)


def _connect(output: str) -> None:
    """Write to the attempt's output.log from now on, and read nothing."""
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
