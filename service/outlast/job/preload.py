"""What a process imports before its script runs, and whether the script can live with it.

What TensorFlow and Keras read from the environment, they read when they are imported. So a
spare sets what the script has set by its first phase (as the attempt before it told), and when
the script turns out to set something else, the process starts itself again without a spare: an
attempt must not depend on how it was started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

# What the libraries below read when they are imported or first used.
_PREFIXES: Final = (
    "CUDA_", "CUDNN_", "GOMP_", "KERAS_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "TF_", "TPU_", "XLA_",
)  # fmt: skip
# Importing these has no effect but time; a script's own modules are left to the script.
_WORTHWHILE: Final[tuple[str, ...]] = (
    "numpy",
    "h5py",
    "pandas",
    "tensorflow",
    "keras",
    "outlast.training.trainer",
)


class Preload(msgspec.Struct, frozen=True, kw_only=True):
    """What a spare does in advance. modules: to import, in order. environment: to set before."""

    modules: list[str] = []
    environment: dict[str, str | None] = {}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the spare is told when it is to become an attempt. output: its output.log. heir: fork
    the next spare before, whom the supervisor adopts."""

    url: str
    attempt: int
    output: str
    heir: bool = False


@dataclass(frozen=True)
class Warmth:
    """How this process was warmed. environ: as it was at the process' start. seconds: how long it
    waited. memory: bytes resident, and of those bytes of its own, when it began to. forks: how
    many there were between the process that has imported and this one."""

    environ: Mapping[str, str]
    seconds: float
    memory: tuple[int, int]
    forks: int


start: Final = dict(os.environ)
_before: dict[str, str] | None = None  # the concerned variables when the first import began
_after: dict[str, str] = {}  # and with what the imports themselves have set
_late = False  # something else has set more of them between two of the imports
_depth = 0
_warmth: Warmth | None = None


def warmth() -> Warmth | None:
    """Return how this process was warmed; None when it started cold."""
    return _warmth


def set_warmth(warmth: Warmth) -> None:
    """Make `warmth` what this process goes by."""
    global _warmth
    _warmth = warmth


@contextmanager
def importing() -> Iterator[None]:
    """Note which variables the import of TensorFlow or Keras in this block sees, and which it sets.

    Keras imports TensorFlow, and more that sets variables: blocks within a block are part of it.
    """
    global _before, _after, _late, _depth
    found = concerned(os.environ)
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
            _after = concerned(os.environ)


def concerned(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may change what an import of the numeric libraries does."""
    return {name: value for name, value in environ.items() if name.startswith(_PREFIXES)}


def preload_of(loaded: Iterable[str]) -> Preload | None:
    """Return what a spare for a process like this one has to do.

    loaded: names of all modules of this process, whose script is about to train. None when the
    script sets variables later than it imports: a spare could not tell what it imports under.
    """
    if _before is None or _late or _after != concerned(os.environ):
        return None
    known = set(loaded)
    changed = different(concerned(start), _before)
    modules = [name for name in _WORTHWHILE if name in known]
    return Preload(modules=modules, environment={name: _before.get(name) for name in changed})


def unfit() -> list[str]:
    """Return the variables in which a warmed process differs from what its script has set."""
    return [] if _warmth is None else different(_after, concerned(os.environ))


def different(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names of variables that are not the same in both."""
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


def start_cold(url: str, attempt: int) -> None:
    """Put a cold attempt in this process' place: same pid, same output. Does not return."""
    assert _warmth is not None
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    command = [sys.executable, "-P", "-m", "outlast.attempt.main", url, str(attempt)]
    os.execve(sys.executable, command, dict(_warmth.environ))


def memory() -> tuple[int, int]:
    """Return this process' resident bytes, and how many of them it shares with nobody."""
    found = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    with suppress(OSError):
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return found["Rss"], found["Private_Clean"] + found["Private_Dirty"]
