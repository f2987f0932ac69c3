"""What a warm spare imports before its script runs, and whether that fits the script.

TensorFlow and Keras read environment variables at their import. So a spare first sets the variables
that the previous attempt's script had set by its first phase. If the script sets other values this
time, the process restarts itself cold, because an attempt must not depend on how it was started.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

# Prefixes of variables that the libraries below read at their import or first use.
_PREFIXES: Final = (
    "CUDA_", "CUDNN_", "GOMP_", "KERAS_", "KMP_", "MKL_", "NCCL_", "NPY_", "NVIDIA_", "OMP_",
    "ONEDNN_", "OPENBLAS_", "TF_", "TPU_", "XLA_",
)  # fmt: skip
# Importing these only costs time; modules of the script are imported by the script.
_SLOW_TO_IMPORT: Final[tuple[str, ...]] = (
    "numpy",
    "h5py",
    "pandas",
    "tensorflow",
    "keras",
    "outlast.training.fit_call",
)


class Preload(msgspec.Struct, frozen=True, kw_only=True):
    """What a spare does in advance."""

    modules: list[str] = []
    """Modules to import, in this order."""
    environment: dict[str, str | None] = {}
    """Variables to set before the imports; None removes one."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Tells a spare to become an attempt."""

    url: str
    """URL of the job."""
    attempt: int
    """Number of the attempt."""
    output: str
    """Path of its output.log."""
    fork_next: bool = False
    """Whether to fork the next spare first; the supervisor adopts it."""


@dataclass(frozen=True)
class WarmStart:
    """How this process was warmed up."""

    environ: Mapping[str, str]
    """Environment at the start of the process."""
    seconds: float
    """How long it waited."""
    memory: tuple[int, int]
    """Resident bytes, and resident bytes that it shares with nobody, when it began to wait."""
    forks: int
    """Number of forks between the process that imported and this one."""

    def log_fields(self) -> dict[str, float]:
        """Return what the log of the attempt says of it."""
        resident, own = (round(size / 2**20) for size in self.memory)
        waited = round(self.seconds, 1)
        fields = {"spare_waited_s": waited, "spare_mib": resident, "spare_own_mib": own}
        return {**fields, "spare_forks": self.forks}


PIPE: Final = "OUTLAST_PRELOAD_PIPE"  # number of the pipe to the supervisor
start: Final = dict(os.environ)
_before: dict[str, str] | None = None  # the relevant variables when the first import began
_after: dict[str, str] = {}  # and after the imports, which set some themselves
_late = False  # whether they were changed between two imports
_depth = 0
_warm_start: WarmStart | None = None
_pipe: int | None = None


def warm_start() -> WarmStart | None:
    """Return how this process was warmed up; None if it started cold."""
    return _warm_start


def set_warm_start(warm_start: WarmStart) -> None:
    """Record how this process was warmed up."""
    global _warm_start
    _warm_start = warm_start


@contextmanager
def importing() -> Iterator[None]:
    """Record which variables an import of TensorFlow or Keras in this block sees and sets.

    Keras imports TensorFlow, so blocks can be nested; only the outermost one counts.
    """
    global _before, _after, _late, _depth
    found = import_variables(os.environ)
    if _before is None:
        _before = found
    elif _depth == 0 and found != _after:
        _late = True
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _after = import_variables(os.environ)


def add_variables(values: Mapping[str, str]) -> None:
    """Count variables that a library reads only at its first use as set before its import."""
    global _before
    if _before is not None:
        _before = {**_before, **values}
        _after.update(values)


def import_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may affect the import of the numeric libraries."""
    return {name: value for name, value in environ.items() if name.startswith(_PREFIXES)}


def preload_of(loaded: Iterable[str]) -> Preload | None:
    """Return what a spare for a process like this one should do.

    Returns None when the script changes variables after the imports, because a spare could not
    reproduce that.

    Args:
        loaded: Names of all modules of this process, whose script is about to train.
    """
    if _before is None or _late or _after != import_variables(os.environ):
        return None
    known = set(loaded)
    changed = different(import_variables(start), _before)
    modules = [name for name in _SLOW_TO_IMPORT if name in known]
    return Preload(modules=modules, environment={name: _before.get(name) for name in changed})


def inherited_pipe(number: int) -> int | None:
    """Return a pipe that the parent has passed on; None if a wrapper between has closed it."""
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            os.set_inheritable(number, False)
            return number
    except OSError:
        pass
    return None


def use_pipe(pipe: int | None) -> None:
    """Report through this pipe from now on."""
    global _pipe
    _pipe = pipe


def report(preload: Preload | None) -> None:
    """Tell the supervisor what the next spare should do.

    It travels through a pipe to the parent, because nothing is imported that a file names.
    """
    if _pipe is not None and preload is not None:
        with suppress(OSError):  # the supervisor is gone
            os.write(_pipe, msgspec.json.encode(preload) + b"\n")


def differing_variables() -> list[str]:
    """Return the variables that the script has set otherwise than this warm process assumed."""
    return [] if _warm_start is None else different(_after, import_variables(os.environ))


def different(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that differ, sorted."""
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


def start_cold(url: str, attempt: int) -> None:
    """Replace this process by a cold attempt with the same pid and output; never return."""
    assert _warm_start is not None
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    command = [sys.executable, "-P", "-m", "outlast.attempt.main", url, str(attempt)]
    environ = dict(_warm_start.environ)
    if _pipe is not None:
        os.set_inheritable(_pipe, True)
        environ[PIPE] = str(_pipe)
    os.execve(sys.executable, command, environ)  # nosec B606  # this interpreter


def memory() -> tuple[int, int]:
    """Return the resident bytes of this process, and those that it shares with nobody."""
    found = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    with suppress(OSError):
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return found["Rss"], found["Private_Clean"] + found["Private_Dirty"]
