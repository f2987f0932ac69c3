"""The warm spare: a process that has imported TensorFlow and waits to become the next attempt.

Importing takes most of a restart's time. The spare imports while the current attempt trains. When
that attempt dies, the spare forks the next spare, which need not import anything, and then runs
the script.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from outlast.attempt import main as attempt
from outlast.job import preload as preloading
from outlast.job.preload import Order, Preload, WarmStart
from outlast.job.process_identity import SUPERVISOR_PID

# A process that has loaded the library of an accelerator may be unable to fork.
ACCELERATORS: Final = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg", "accel*", "vfio/[0-9]*")


def main(argv: list[str]) -> int:
    """Read from stdin a line with what to import, then a line with the attempt to become.

    Without the second line, because the supervisor is gone or needs no spare, the process ends.

    Args:
        argv: Number of the file descriptor that takes the pid of the next spare.
    """
    pipe = preloading.inherited_pipe(int(argv[0]))
    preload = msgspec.json.decode(sys.stdin.readline(), type=Preload)
    for name, value in preload.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    gc.disable()  # imports make no garbage, but many objects to scan
    with preloading.importing():
        for name in preload.modules:
            with suppress(ImportError):  # the script will report it
                importlib.import_module(name)
    gc.freeze()  # the objects stay, so never scan them
    gc.enable()
    forks = 0
    while True:
        ready, held = time.monotonic(), preloading.memory()
        line = sys.stdin.readline()
        if not line:
            return 0
        order = msgspec.json.decode(line, type=Order)
        if not _fork_next_spare(pipe, wanted=order.fork_next):
            break
        forks += 1
    preloading.use_pipe(pipe)
    preloading.set_warm_start(WarmStart(preloading.start, time.monotonic() - ready, held, forks))
    _restore_environment(preload)
    _redirect_output(order.output)
    return attempt.main([order.url, str(order.attempt)])


def _fork_next_spare(pipe: int | None, *, wanted: bool) -> bool:
    """Fork the next spare; return whether this process is the fork.

    The fork is a grandchild whose parent ends immediately, so that the supervisor adopts it and
    the attempt has no unexpected child. Random generators are safe, because an attempt seeds them.
    """
    between = -1
    # If a wrapper (a container's) is the parent, the next spare would be outside of it.
    child = str(os.getppid()) == preloading.start.get(SUPERVISOR_PID)
    if wanted and child and threading.active_count() == 1 and not has_accelerator():
        with suppress(OSError):  # no memory, or too many processes: the next spare starts cold
            between = os.fork()
    if between == 0:
        _become_next_spare(pipe, int(preloading.start[SUPERVISOR_PID]))
        return True
    if between > 0:
        with suppress(OSError):
            os.waitpid(between, 0)
    else:
        _write_pid(pipe, 0)
    return False


def has_accelerator() -> bool:
    """Return whether this machine has an accelerator."""
    return any(any(Path("/dev").glob(pattern)) for pattern in ACCELERATORS)


def _write_pid(pipe: int | None, pid: int) -> None:
    """Tell the supervisor the pid of the next spare; 0 if there is none."""
    if pipe is not None:
        with suppress(OSError):  # the supervisor is gone
            os.write(pipe, b"%d\n" % pid)


def _become_next_spare(pipe: int | None, supervisor: int) -> None:
    """Fork and exit; return in the child once the supervisor has adopted it and has its pid."""
    try:
        between = os.getpid()
        if os.fork():
            os._exit(0)
        os.setsid()  # killing the attempt's process group spares this process
        while os.getppid() == between:
            time.sleep(0.001)
        if os.getppid() != supervisor:
            raise ProcessLookupError  # the supervisor is gone
        _write_pid(pipe, os.getpid())
    except BaseException:  # noqa: BLE001  (never continue as a second attempt)
        _write_pid(pipe, 0)
        os._exit(1)


def _restore_environment(preload: Preload) -> None:
    """Restore the environment of a cold process."""
    for name in preload.environment:
        if name in preloading.start:
            os.environ[name] = preloading.start[name]
        else:
            os.environ.pop(name, None)


def _redirect_output(output: str) -> None:
    """Redirect stdout and stderr to the attempt's output.log, and stdin to /dev/null."""
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
