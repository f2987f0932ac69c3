"""A million changed array files: `python -m tests.testbeds.array_fuzz --cases 1000000`.

The cases are those of `tests.support.array_mutations`, read in processes of limited memory. No case
may end a process, take 5 s or more, or raise anything but a `FormatError`. With --hdf5 N, N changed
files without a table are then read through the limited child as well; there HDF5 may die.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import array_mutations as mutations

_BLOCK = 20_000  # cases of a process
_MEMORY = 1 << 30  # bytes more than it begins with


class Failed(Exception):
    """A case ended otherwise than it may."""


def blocks(
    first: int, cases: int, read: Callable[[int], str], size: int = _BLOCK
) -> Iterator[tuple[int, Counter[str]]]:
    """Read the cases in processes of `size` each; yield how many are done, and what was found."""
    end = first + cases
    for start in range(first, end, size):
        last = min(end, start + size)
        yield last - first, block(start, last, read)


def block(first: int, end: int, read: Callable[[int], str]) -> Counter[str]:
    """Read the cases in a new process. Raises `Failed`, which names the case."""
    at = mmap.mmap(-1, 8)
    answer, given = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY, taken + _MEMORY))
            told: Counter[str] = Counter()
            for case in range(first, end):
                at[:] = case.to_bytes(8, "little")
                signal.alarm(int(4 * mutations.SLOW))  # a hang ends by SIGALRM
                told[read(case)] += 1
            os.write(given, json.dumps(told).encode())
            code = 0
        except BaseException:  # noqa: BLE001  (of a child that must not go on)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(given)
    with open(answer, "rb") as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise Failed(f"case {int.from_bytes(at[:8], 'little')} ended with {code}")
    return Counter(json.loads(said))


def read(case: int) -> str:
    return mutations.read(case, mutations.no_foreign)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--hdf5", type=int, default=0)
    given = parser.parse_args()
    mutations.seeds()
    began, told = time.monotonic(), Counter[str]()
    for done, found in blocks(given.first, given.cases, read):
        told += found
        print(f"{done:,} of {given.cases:,} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"no signal and no hang in {given.cases:,} cases: {dict(told)}", flush=True)
    if given.hdf5:
        through = Counter(map(mutations.read_without_table, range(given.hdf5)))
        print(f"{given.hdf5:,} files through the limited child: {dict(through)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
