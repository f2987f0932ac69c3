"""The command line that the benchmarks share: options, the worker mode, the printed table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tests.benchmarks.figure import PAIRS, Figure, show
from tests.benchmarks.worker import serve

FULL: Mapping[str, Any] = {"action": "store_true"}
HOW_MANY_PAIRS: Mapping[str, Any] = {"type": int, "default": PAIRS}


def main(
    description: str | None,
    run: Callable[..., list[Figure]],
    options: Mapping[str, Mapping[str, Any]],
    *,
    worker: Callable[..., Callable[[], Any]] | None = None,
) -> None:
    """Read the command line, measure, and print the figures.

    Args:
        description: Shown by `--help`.
        run: Measures. It gets the value of each option as a keyword argument.
        options: The options by flag, with the keyword arguments of `add_argument`. `--json` is
            added to them.
        worker: Given the arguments after `--worker`, returns what a worker process measures.
    """
    if worker is not None and sys.argv[1:2] == ["--worker"]:
        serve(worker(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=description)
    for flag, settings in options.items():
        parser.add_argument(flag, **settings)
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    show(run(**given), as_json=as_json)
