"""Worker processes that measure on request, so that two of them can take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Worker:
    """A file of this folder run as a process, `FILE --worker ARGUMENTS`; see `serve`."""

    def __init__(self, file: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, file, "--worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def ask(self) -> Any:
        """Return the result of one more measurement. Raises `RuntimeError` if the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def once(file: str, name: str) -> Any:
    """Return the result of one measurement in a new process."""
    worker = Worker(file, name)
    try:
        return worker.ask()
    finally:
        worker.close()


def several(file: str, names: list[str], count: int, *before: str) -> dict[str, list[Any]]:
    """Return the results of `count` measurements of each, taken alternately, one process each.

    before: arguments that stand before the name.
    """
    workers = {name: Worker(file, *before, name) for name in names}
    found: dict[str, list[Any]] = {name: [] for name in names}
    try:
        for turn in range(count):
            for name in names if turn % 2 == 0 else reversed(names):
                found[name].append(workers[name].ask())
    finally:
        for worker in workers.values():
            worker.close()
    return found


def serve(measure: Callable[[], Any]) -> None:
    """Measure for each line on stdin, and answer with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else that is printed may be taken for an answer
    for _ in sys.stdin:
        answers.write(f"{json.dumps(measure())}\n")
        answers.flush()
