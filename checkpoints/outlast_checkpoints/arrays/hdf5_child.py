"""The limited child: a process that parses one HDF5 file with HDF5's library, and little else.

`python -m outlast_checkpoints.arrays.hdf5_child` reads the file at its standard input and writes
the file's array table to its standard output. It opens nothing, changes no file, and starts and
signals no process; memory and time are limited. If it dies, the file counts as damaged.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from outlast_checkpoints.arrays import array_table, seccomp
from outlast_checkpoints.arrays.array_table import ArrayTable
from outlast_checkpoints.arrays.hashing import open_regular
from outlast_checkpoints.errors import FormatError, StorageError
from outlast_checkpoints.storage.base import storage_error

SECONDS: Final = 120  # of the clock
_CPU_SECONDS: Final = 60
_MEMORY: Final = 1 << 30  # bytes beyond what the imports have taken
_REFUSED: Final = 65  # exit code: standard output says why
_REASON: Final = 1000  # characters
# Of the environment: what Python and its libraries need to be found, and no secret.
_INHERITED: Final = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
_SETTINGS: Final = {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}  # "::": no plugins
# Signals that others send: they say nothing about the file.
_FROM_OTHERS: Final = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT}
)


def table_of(local: Path, size: int, path: str) -> ArrayTable:
    """Return the checked array table of an HDF5 file that has none.

    size: the file's size. path: its name, for errors.

    Raises:
        FormatError: HDF5 or we refuse the file, or the child died of it or did not end.
        StorageError: The child could not be started, or somebody else ended it.
    """
    try:
        file = open(local, "rb", buffering=0, opener=open_regular)  # noqa: SIM115  (closed below)
    except OSError as error:
        raise storage_error(error, "read", path, str(local.parent)) from error
    with file:
        try:
            told, code = _asked(file)
        except OSError as error:
            reason = f"no process could be started to read it: {error.strerror or error}"
            raise StorageError(action="read", path=path, reason=reason) from error
    if code == _REFUSED:
        raise FormatError(path=path, reason=told[:_REASON].decode(errors="replace"))
    if code > 0 or -code in _FROM_OTHERS:
        reason = f"the process that reads it {_end(code)}"
        raise StorageError(action="read", path=path, reason=reason)
    if code or len(told) > array_table.LARGEST:
        raise FormatError(path=path, reason=f"HDF5's library {_end(code)} while it read it")
    table = array_table.decode(told, size, path)
    if table is None:
        raise FormatError(path=path, reason="its reader is of another version")
    return table


def _asked(file: BinaryIO) -> tuple[bytes, int]:
    """Return what a child says about an open file, and its exit code or minus its signal."""
    environ = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    ended = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "outlast_checkpoints.arrays.hdf5_child"],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**environ, **_SETTINGS},
        start_new_session=True,  # what a terminal sends is not for it
    ) as child:
        assert child.stdout is not None

        def end() -> None:
            ended.set()
            child.kill()

        clock = threading.Timer(SECONDS, end)
        clock.daemon = True
        clock.start()
        try:
            told = child.stdout.read(array_table.LARGEST + 1)
            if len(told) > array_table.LARGEST:
                end()
            code = child.wait()
        finally:
            clock.cancel()
            child.kill()
    return told, -signal.SIGALRM if ended.is_set() else code


def _end(code: int) -> str:
    if -code in (signal.SIGALRM, signal.SIGXCPU):
        return "did not come to an end"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def main() -> int:
    """Read standard input, write the table or the reason for none; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from outlast_checkpoints.arrays.hdf5_layout import layout_of

    content = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  (it is not ours to close)
    _limit()
    try:
        answer, code = msgspec.json.encode(layout_of(content, "")), 0
    except FormatError as error:
        answer, code = error.fields["reason"].encode(errors="replace"), _REFUSED
    except Exception as error:  # noqa: BLE001  (of a library that reads what it does not expect)
        answer, code = f"reading it ends in a {type(error).__name__}".encode(), _REFUSED
    view = memoryview(answer)
    while view:
        view = view[os.write(1, view) :]
    return code


def _limit() -> None:
    """From here on: no new descriptor, no other file or process, and bounded memory and time."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(SECONDS)
    for what, most in (
        (resource.RLIMIT_AS, taken + _MEMORY),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        hardest = resource.getrlimit(what)[1]
        limit = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
        resource.setrlimit(what, (limit, limit))
    seccomp.confine()


if __name__ == "__main__":
    sys.exit(main())
