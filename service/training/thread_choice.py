"""Whether the ops of a training take one thread each or all: whichever is faster.

It is found out in the midst of training, for short steps only, and no result depends on it: some
steps are trained both ways from the same state, and unless weights, optimizer and logs are equal to
the last bit the ops keep all threads. How an op splits its work depends on the shapes, so the proof
holds for the steps to come, too. After it the steps that are timed are the training's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import tensorflow as tf
from keras import tree

from service.training.one_thread import OneThreadAnOp, repeatable, threads_an_op
from service.training.program import Program
from service.training.state import LiveState

WARM_S = 0.1  # of steps are trained before anything is tried
PROOF_STEPS = 8  # at most: a stop request waits for both ways
STEP_S = 0.005  # in longer ones, waking threads is not what takes the time
TIMED_S, TIMED_CALLS = 0.1, 3  # each way, at least
WORTH = 0.95  # of the time a step that one thread an op has to come down to
STATE_BYTES = 1 << 26  # at most, for it is copied three times

Results = tuple[list[Any], Any]


class ThreadChoice:
    """Trains calls of K steps like the function that it is given, and finds the faster way.

    call: a `tf.function`, see `OneThreadAnOp`. live: all that its steps change. log: gets one row,
    "threads_chosen", when the choice is made.
    """

    def __init__(self, call: Callable[[Any, Any], Results], live: LiveState, log: Any) -> None:
        self._wide = call
        self._live = live
        self._log = log
        self._narrow: OneThreadAnOp | None = None
        self._shapes: list[Any] = []
        self._calls = self._steps = 0
        self._seconds = 0.0
        self._times: dict[str, list[tuple[float, int]]] = {"wide": [], "narrow": []}
        self._turn: Callable[[Any, int], Results] | None = self._warm

    def most(self, most: int) -> int:
        """Return how many steps the next call may take, of so many that it might."""
        return min(most, PROOF_STEPS) if self._turn == self._prove else most

    def __call__(self, lots: Any, count: int) -> Results:
        """Train `count` of the `lots`; return logs and own losses."""
        if self._turn is not None:
            return self._turn(lots, count)
        if self._narrow is not None and _shapes(lots) == self._shapes:
            return self._narrow(lots, count)
        return self._wide(lots, tf.constant(count))

    def _warm(self, lots: Any, count: int) -> Results:
        """Train as ever; the first call compiles and tells nothing."""
        results, seconds = _timed(self._wide, lots, count)
        self._calls += 1
        if self._calls > 1:
            self._seconds += seconds
            self._steps += count
        if self._steps and self._seconds >= WARM_S:
            short = self._seconds / self._steps <= STEP_S
            self._turn = self._prove if short else None
        return results

    def _prove(self, lots: Any, count: int) -> Results:
        """Train the same steps both ways, and compare every bit."""
        before = self._live.values()
        wide = self._wide(lots, tf.constant(count))
        after = self._live.values()
        _put(before)
        try:
            narrow = OneThreadAnOp(self._wide, lots)
            results = narrow(lots, count)
            equal = _bits(results) == _bits(wide) and _same(self._live.values(), after)
            failed = None
        except Exception as error:  # noqa: BLE001 - whatever it is, the way that works is known
            equal, failed = False, str(error).splitlines()[0]
        if equal:
            self._narrow, self._shapes = narrow, _shapes(lots)
            self._turn = self._compare
            return results
        _put(after)
        self._turn = None
        self._log.info("threads_chosen", threads_an_op=threads_an_op(), equal=False, error=failed)
        return wide

    def _compare(self, lots: Any, count: int) -> Results:
        """Train this way and that in turn, until there is enough to choose by."""
        if self._narrow is None or _shapes(lots) != self._shapes:
            return self._wide(lots, tf.constant(count))
        wide, narrow = self._times["wide"], self._times["narrow"]
        turn, call = (wide, self._wide) if len(wide) <= len(narrow) else (narrow, self._narrow)
        results, seconds = _timed(call, lots, count)
        turn.append((seconds, count))
        if enough(wide) and enough(narrow):
            self._choose(a_step(wide), a_step(narrow))
        return results

    def _choose(self, wide: float, narrow: float) -> None:
        self._turn = None
        if narrow > WORTH * wide:
            self._narrow = None
        threads = threads_an_op() if self._narrow is None else 1
        milliseconds = {"all_ms": round(wide * 1e3, 3), "one_ms": round(narrow * 1e3, 3)}
        self._log.info("threads_chosen", threads_an_op=threads, equal=True, **milliseconds)


def may_choose(steps: Any, live: LiveState) -> bool:
    """Whether anything can be tried with these `CompiledSteps`; after their program is chosen."""
    return (
        steps.program == Program.GRAPH
        and steps.many
        and threads_an_op() > 1
        and not tf.config.list_physical_devices("GPU")
        and live.bytes() <= STATE_BYTES
        and repeatable(steps.definition())
    )


def enough(times: list[tuple[float, int]]) -> bool:
    """Whether a way was timed for long enough."""
    return len(times) >= TIMED_CALLS and sum(seconds for seconds, _ in times) >= TIMED_S


def a_step(times: list[tuple[float, int]]) -> float:
    """Return the seconds of a step, by the median of the calls."""
    return median(seconds / steps for seconds, steps in times)


def _timed(call: Callable[[Any, Any], Results], lots: Any, count: int) -> tuple[Results, float]:
    told = tf.constant(count)
    started = time.perf_counter()
    results = call(lots, told)
    return results, time.perf_counter() - started


def _shapes(lots: Any) -> list[Any]:
    return [part.shape[1:] for part in tree.flatten(lots)]


def _bits(results: Results) -> list[bytes]:
    values, own = results
    return [value.numpy().tobytes() for value in (*values, *([] if own is None else [own]))]


def _put(values: list[tuple[Any, Any]]) -> None:
    for variable, value in values:
        variable.assign(value)


def _same(some: list[tuple[Any, Any]], others: list[tuple[Any, Any]]) -> bool:
    return all(
        one.tobytes() == other.tobytes() for (_, one), (_, other) in zip(some, others, strict=True)
    )
