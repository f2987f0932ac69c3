"""What the body of a loop carries from turn to turn, and what of it no checkpoint contains."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from outlast.training.state.body_names import carried
from outlast.training.state.body_state import BodyState
from tests.support.phase_scripts import run

HEAD = "best = count = total = 0\nlosses, seen, rest = [], {}, [1]\n"
BODIES: dict[str, tuple[str, set[str]]] = {
    "numbers and lists": ("best = min(best, x); losses.append(x)", {"best", "min", "losses"}),
    "set before it is read": ("part = [x]; part.append(x); rest = part", set()),
    "augmented": ("count += 1", {"count"}),
    "set in a branch only": ("if x > 1: best = x\ntotal = best", {"best"}),
    "set in both branches of a try": (
        "try: best = x\nexcept OSError: best = 0\ntotal = best",
        {"best", "OSError"},
    ),
    "set by a with": ("with open(x) as file: best = file\ntotal = best", {"open"}),
    "an inner loop": ("for i in rest: total = total + i", {"rest", "total"}),
    "a comprehension": ("best = [i + count for i in rest]", {"count", "rest"}),
    "a function": ("def f(a, b=1): return a + b + count\nbest = f(x)", {"count"}),
    "a lambda": ("f = lambda a: a + count", {"count"}),
    "a subscript": ("seen[x] = 1", {"seen"}),
    "an annotation": ("part: int = count", {"count"}),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_names_that_a_body_carries(name: str, tmp_path: Any) -> None:
    body, expected = BODIES[name]
    found: list[list[str]] = []

    def batches() -> Iterator[int]:
        frame: FrameType = sys._getframe(1)
        found.append(carried(frame))
        yield from ()

    lines = "".join(f"\n    {line}" for line in body.split("\n"))
    run(f"{HEAD}for x in batches():{lines}\nother = 1\n", tmp_path, batches=batches)
    assert set(found[0]) - {"int"} == expected


SCRIPT = """
import queue
import random
class Env:
    def __init__(self): self.t = 0
def helper():
    counter["n"] += 1
def main(saved, frozen):
    best, steps, losses, parts, last = 9.0, 0, [], [1], None
    env, rng, average = Env(), random.Random(3), tf.Variable(0.0)
    metric = keras.metrics.Mean(name="metric")
    rates, waiting, idle = iter(range(99)), queue.Queue(), queue.Queue()
    for i, x in enumerate(loop()):
        steps += 1
        parts = [x]
        parts.append(i)
        best = min(best, x + frozen["x"])
        losses.append(x)
        saved["n"] += 1
        env.t += 1
        rng.random()
        average.assign(x)
        metric.update_state(x)
        helper()
        waiting.put(next(rates) + idle.qsize())
        last = x
counter = {"n": 0}
main(saved, {"x": 1.0})
"""
LOST = {"steps", "losses", "best", "env.t", "rng", "average", "metric.variables", "helper.counter",
        "rates", "waiting"}  # fmt: skip


def test_what_a_body_changes_and_the_state_lacks_is_named(tmp_path: Any) -> None:
    lines: list[dict[str, Any]] = []
    saved = {"n": 0}

    class Log:
        def warning(self, event: str, **fields: Any) -> None:
            lines.append({"event": event, **fields})

    def loop() -> Iterator[float]:
        watch = BodyState(sys._getframe(1), {"saved": saved})
        for step in range(9):
            yield float(np.float32(step))
            watch.look(step // 4, Log())

    run(SCRIPT, tmp_path, loop=loop, saved=saved, tf=tf, keras=keras)
    assert {line["what"].partition("[")[0] for line in lines} == LOST
    assert {line["event"] for line in lines} == {"state_not_saved"}
    assert len(lines) == len(LOST)  # each once
    assert saved["n"] == 9


def test_without_source_nothing_is_named() -> None:
    found: list[list[str]] = []

    def batches() -> Iterator[int]:
        found.append(carried(sys._getframe(1)))
        yield 1

    exec("for x in batches(): n = n + x", {"batches": batches, "n": 0})
    assert found == [[]]
