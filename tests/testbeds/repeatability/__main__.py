"""`make repeatability`: is an untouched training the same to the byte each time?

Trains each architecture again and again, in new processes and under conditions that must not count:
pinned to one CPU, with other inter-op threads, beside busy loops. Prints a table with the number of
distinct results, and exits with 1 if an architecture has more than one.

    python -m tests.testbeds.repeatability --runs 10 --only lstm --only "own step"
    python -m tests.testbeds.repeatability --runs 50 --log runs.jsonl     (goes on where it was)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.testbeds.repeatability import processes

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault(processes.INTRA_OP, str(processes.INTRA_OP_THREADS))


def main() -> int:
    parser = argparse.ArgumentParser(prog="repeatability", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="runs of each architecture")
    parser.add_argument("--only", action="append", help="architectures whose names contain this")
    parser.add_argument("--log", type=Path, help="keep the results here, and go on with them")
    parser.add_argument("--beside", type=int, default=2, help="runs at once, each other's load")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--table", action="store_true", help="only print the table of --log")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a new interpreter
    given = parser.parse_args()
    from tests.testbeds.repeatability import catalogue, one_run

    if given.one:
        print(json.dumps(one_run.train(given.one)))
        return 0
    assert threading.active_count() == 1
    log = given.log or Path(tempfile.mkstemp(prefix="repeatability-", suffix=".jsonl")[1])
    only = given.only or [""]
    names = [name for name in catalogue.NAMES if any(part in name for part in only)]
    results = _read(log)
    end = time.monotonic() + 60 * (given.minutes or 1e9)
    output = log.with_suffix(".output")

    def due() -> Iterator[Callable[[], processes.Run]]:
        for number in range(0 if given.table else given.runs):
            for name in names:
                if len(results[name]) <= number and time.monotonic() < end:
                    variation = processes.variation_of(number)
                    yield partial(processes.Run, name, variation, one_run.train, output)

    for line in processes.run_all(due(), given.beside):
        with log.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        results[line["name"]].append(line)
    return _report({name: results[name] for name in names})


def _read(log: Path) -> dict[str, list[dict[str, Any]]]:
    results = defaultdict(list)
    if log.exists():
        for line in map(json.loads, log.read_text().splitlines()):
            results[line["name"]].append(line)
    return results


def _report(results: dict[str, list[dict[str, Any]]]) -> int:
    """Print the table; return the exit code."""
    print(f"{'architecture':45} {'runs':>4} {'results':>7}  differing")
    wrong = 0
    for name, lines in results.items():
        kinds = {json.dumps(line["digests"], sort_keys=True) for line in lines}
        errors = [line["digests"]["error"] for line in lines if "error" in line["digests"]]
        differing = ", ".join(errors[:1]) if errors else _differing(lines)
        wrong += len(kinds) > 1 or bool(errors)
        print(f"{name:45} {len(lines):4} {len(kinds):7}  {differing}")
    runs = sum(map(len, results.values()))
    print(f"{len(results)} architectures, {runs} runs, {wrong} with more than one result")
    return int(wrong > 0)


def _differing(lines: list[dict[str, Any]]) -> str:
    """Name the parts of the result that differ, and under which conditions they are rare."""
    parts = [
        part
        for part in (lines[0]["digests"] if lines else ())
        if len({line["digests"][part] for line in lines}) > 1
    ]
    if not parts:
        return ""
    groups = defaultdict(list)
    for line in lines:
        groups[json.dumps(line["digests"], sort_keys=True)].append(line["variation"])
    rare = sorted(groups.values(), key=len)[:-1]
    return f"{', '.join(parts)}: {'; '.join(', '.join(group) for group in rare)}"


if __name__ == "__main__":
    sys.exit(main())
