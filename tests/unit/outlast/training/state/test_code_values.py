"""Values that functions keep in variables around them go on, or are named once they change."""

from __future__ import annotations

import array
import collections
import datetime
import enum
import io
import queue
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from sklearn.preprocessing import StandardScaler

from outlast.training.state.object_graph import ObjectGraph
from tests.support.training_harness import Death, Script, dying_at, train
from tests.support.training_zoo import ARRAYS, tiny


class Stage(enum.Enum):
    WARM = 1
    MAIN = 2


class Best(NamedTuple):
    step: int
    loss: float


def script(kept: list[Callable[[], Any]]) -> list[Any]:
    stage, spent, clock, path = Stage.WARM, Decimal(0), datetime.datetime(2020, 1, 1), Path("a")
    best, pair, seen, turn, part = Best(0, 1e9), (0, "a"), frozenset[int](), 1j, Fraction(1, 3)
    tensor, number = tf.constant(0.0), np.float32(0)
    frame, other = (pandas.DataFrame({"loss": [0.5]}) for _ in range(2))

    def hook(batch: int, logs: Any) -> None:
        nonlocal stage, spent, clock, path, best, pair, seen, turn, part, tensor, number, other
        stage = Stage.MAIN if spent > 2 else Stage.WARM
        spent, clock, path = spent + 1, clock + datetime.timedelta(hours=1), path / "b"
        best = Best(int(spent), best.loss / 2)
        pair, seen, turn = (pair[0] + 1, pair[1] + "b"), seen | {int(spent)}, turn * 1j
        tensor, number, part = tensor + 1.0, number + np.float32(1), part + Fraction(1, 7)
        frame.loc[len(frame)] = [float(spent)]
        other = pandas.concat([other, frame.tail(1)], ignore_index=True)

    def all_kept() -> list[Any]:
        tables = [frame["loss"].tolist(), other["loss"].tolist()]
        values = [stage, spent, clock, path, best, pair, seen, turn, part]
        return [*values, float(tensor), float(number), *tables]

    kept.append(all_kept)
    return [keras.callbacks.LambdaCallback(on_train_batch_end=hook)]


def test_values_of_every_kind_go_on(tmp_path: Path) -> None:
    kept: list[Callable[[], Any]] = []
    training = Script(tiny(), {**ARRAYS, "save_every": 2}, lambda: script(kept))
    train(training, tmp_path / "whole")
    expected = kept[-1]()
    assert expected[:2] == [Stage.MAIN, Decimal(6)]
    assert expected[4] == Best(6, 1e9 / 64)
    for step in (1, 2, 6):
        with pytest.raises(Death), dying_at(step):
            train(training, tmp_path / "killed")
    train(training, tmp_path / "killed")
    assert kept[-1]() == expected
    log = (tmp_path / "whole" / "attempts" / "0001" / "log.jsonl").read_text()
    assert "state_not_saved" not in log


def chained() -> Any:
    return collections.ChainMap({}, {"n": 1})


def drawn() -> Any:
    return collections.UserDict(generator=np.random.default_rng(1))


CHANGES: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (StandardScaler, lambda scaler: scaler.partial_fit(np.ones((3, 2)))),
    (queue.Queue, lambda waiting: waiting.put(1)),
    (chained, lambda chain: chain.update(n=2)),
    (drawn, lambda own: own["generator"].normal()),
    (collections.UserList, lambda values: values.append(1)),
    (io.StringIO, lambda file: file.write("a")),
    (lambda: bytearray(3), lambda values: values.append(1)),
    (lambda: array.array("d"), lambda values: values.append(1.0)),
]


@pytest.mark.parametrize(("make", "change"), CHANGES)
def test_an_object_of_a_library_is_named_once_it_has_changed(
    make: Callable[[], Any], change: Callable[[Any], Any]
) -> None:
    thing, both = make(), (make(), 1)

    def hook() -> None:
        change(thing)

    def second() -> Any:
        return both

    graph = ObjectGraph({"hook": hook, "second": second})
    graph.capture({})
    assert graph.unsaved == []
    hook()
    assert graph.capture({}) == {"known": {}, "new": []}
    assert [(u.path, u.kind) for u in graph.unsaved] == [("hook.thing", type(thing).__name__)]


def test_another_object_of_a_library_is_named() -> None:
    thing: Any = None

    def hook() -> None:
        nonlocal thing
        thing = StandardScaler()

    graph = ObjectGraph({"hook": hook})
    hook()
    graph.capture({})
    assert [(u.path, u.kind) for u in graph.unsaved] == [("hook.thing", "StandardScaler")]


def test_what_is_open_for_a_while_is_not_named(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:

        def hook() -> None:
            file.write("a")

        graph = ObjectGraph({"hook": hook})
        hook()
        graph.capture({})
        assert graph.unsaved == []


def test_a_handle_of_tensorflow_is_left_alone() -> None:
    handle = tf.Variable(1.0).handle

    def hook() -> Any:
        return handle

    graph = ObjectGraph({"hook": hook})
    assert graph.capture({}) == {"known": {}, "new": []}
    assert graph.unsaved == []
