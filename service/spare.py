"""A process that has imported TensorFlow already and waits to become the next attempt.

Importing takes most of a restart's time. A spare does it while the present attempt trains; when
that dies, the spare runs the script in its place, in the time that the script itself needs.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from contextlib import suppress

import msgspec

from service import attempt, warmth
from service.warmth import Order, Preload, Warmth


def main() -> int:
    """Read what to prepare and, when it is time, what to become: a line each on stdin.

    Without a second line, when the supervisor is gone or has no more use for it, it just ends.
    """
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
    ready = time.monotonic()
    held = warmth.memory()
    line = sys.stdin.readline()
    if not line:
        return 0
    order = msgspec.json.decode(line, type=Order)
    warmth.set_warmth(Warmth(warmth.start, time.monotonic() - ready, held))
    _put_back(preload)
    _connect(order.output)
    return attempt.main([order.url, str(order.attempt)])


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
    sys.exit(main())
