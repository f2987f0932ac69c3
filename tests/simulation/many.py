"""Run many seeds: `python -m tests.simulation --seeds 100000 [--from 0]`."""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.oracle import Violation
from tests.simulation.world import simulate


def trial(seed: int) -> tuple[int, str | None, int]:
    """Return the seed, what went wrong, and how many commits there were."""
    try:
        return seed, None, simulate(seed).oracle.commits
    except Violation as error:
        return seed, str(error), 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    began, failed, commits = time.monotonic(), 0, 0
    seeds = range(given.first, given.first + given.seeds)
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        for seed, story, count in pool.map(trial, seeds, chunksize=20):
            commits += count
            if story is not None:
                failed += 1
                print(f"--- seed {seed}\n{story if failed <= 3 else story.splitlines()[0]}")
    seconds = time.monotonic() - began
    print(f"{given.seeds} seeds, {commits} commits, {failed} failed, {seconds:.0f} s")
    return 1 if failed else 0
