"""Kills attempts from within, so that a test knows where.

KILLED_AFTER="7,20+0.05" kills the first attempt with SIGKILL after its process has trained 7 steps,
and the second one 0.05 seconds after the 20th, wherever that is: in a callback, a save, a
validation, or the script. The later ones live.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

VARIABLE = "KILLED_AFTER"


def install() -> None:
    """Prepare the kill of this process, if the variable says so."""
    if os.environ.get(VARIABLE):
        from outlast.attempt.seeding import after_import

        after_import({"outlast.training.phase": _prepare})


def _prepare(module: Any) -> None:
    from outlast.attempt import context

    record = module.Phase.record_steps
    steps = 0

    def record_and_die(self: Any, epoch: int, batch: int, rows: Any, *others: Any) -> None:
        nonlocal steps
        record(self, epoch, batch, rows, *others)
        before, steps = steps, steps + len(rows)
        ctx = context.current()
        moments = os.environ[VARIABLE].split(",")
        if ctx is None or ctx.attempt > len(moments):
            return
        after, _, delay = moments[ctx.attempt - 1].partition("+")
        if not before < int(after) <= steps:
            return
        if not delay:
            _die()
        timer = threading.Timer(float(delay), _die)
        timer.daemon = True
        timer.start()

    module.Phase.record_steps = record_and_die


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
