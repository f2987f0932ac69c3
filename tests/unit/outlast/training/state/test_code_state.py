"""What code holds goes on after a death: methods, partials, classes, modules, tf.functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast.training.state import script_code
from tests.support import phase_scripts as other_module
from tests.support.training_harness import Death, Script, assert_same_end, dying_at, train
from tests.support.training_zoo import ARRAYS, MLP, tiny

Seen = Callable[[], Any]
Made = tuple[list[Any], Seen]


def each_batch(hook: Callable[..., Any]) -> Any:
    return keras.callbacks.LambdaCallback(on_train_batch_end=hook)


def partials() -> Made:
    counts, keyword = {"n": 0}, {"n": 0}

    def count(counts: Any, batch: int, logs: Any, more: Any) -> None:
        counts["n"] += 1
        more["n"] += 2

    return [each_batch(functools.partial(count, counts, more=keyword))], lambda: [counts, keyword]


class Tracker:
    def __init__(self) -> None:
        self.n = 0

    def count(self, batch: int, logs: Any = None) -> None:
        self.n += 1

    def get_state(self) -> Any:
        return {"n": self.n}

    def set_state(self, state: Any) -> None:
        self.n = state["n"]


class Plain(Tracker):
    get_state = set_state = None  # type: ignore[assignment]


def methods() -> Made:
    tracker, plain, batches = Tracker(), Plain(), list[int]()
    called = keras.callbacks.Callback()
    called.sink = batches.append

    def by_global(batch: int, logs: Any) -> None:
        tracker.count(batch)
        called.sink(batch)

    return [each_batch(plain.count), each_batch(by_global)], lambda: [tracker.n, plain.n, batches]


class State:
    n = 0
    batches: list[int] = []  # noqa: RUF012 - as a new user would write it
    one: State | None = None

    @classmethod
    def count(cls) -> None:
        cls.n += 1


def classes() -> Made:
    State.n, State.batches = 0, []
    State.one = State()
    State.one.n = 5

    def hook(batch: int, logs: Any) -> None:
        State.count()
        State.batches.append(batch)
        State.one.n += 1  # type: ignore[union-attr]

    return [each_batch(hook)], lambda: [State.n, State.batches, State.one.n]  # type: ignore[union-attr]


def modules() -> Made:
    other_module.ASKED.clear()
    other_module.best = 0  # type: ignore[attr-defined]

    def hook(batch: int, logs: Any) -> None:
        other_module.ASKED.append(batch)
        other_module.best += 1  # type: ignore[attr-defined]

    return [each_batch(hook)], lambda: [list(other_module.ASKED), other_module.best]  # type: ignore[attr-defined]


def tf_functions() -> Made:
    average = tf.Variable(0.0)

    @tf.function  # type: ignore[untyped-decorator]
    def update(value: Any) -> None:
        average.assign(0.9 * average + 0.1 * value)

    class Averages(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self, update: Any) -> None:
            super().__init__()
            self.update = update

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.update(tf.constant(1.0))

    return [Averages(update)], lambda: float(average)


def counted(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        wrapper.calls += 1  # type: ignore[attr-defined]
        return function(*args, **keywords)

    wrapper.calls = 0  # type: ignore[attr-defined]
    return wrapper


def functions() -> Made:
    @counted
    def hook(batch: int, logs: Any, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(batch)

    inner = hook.__wrapped__
    return [each_batch(hook)], lambda: [hook.calls, inner.__defaults__]


class Average(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.value, self.n = tf.Variable(0.0), 0


class Calls(keras.metrics.Metric):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.total, self.calls = self.add_weight(name="total", initializer="zeros"), []

    def update_state(self, value: Any) -> None:
        self.calls.append(1)
        self.total.assign_add(value)


class Owners(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.average, self.metric = Average(), Calls()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.average.value.assign_add(1.0)
        self.average.n += 1
        self.metric.update_state(2.0)


def owners() -> Made:
    mine = Owners()
    metric, average = mine.metric, mine.average
    return [mine], lambda: [average.n, float(average.value), len(metric.calls), float(metric.total)]


HOOKS = [partials, methods, classes, modules, tf_functions, functions, owners]


def test_what_hooks_hold_goes_on(tmp_path: Path) -> None:
    seen: list[Seen] = []

    def made() -> list[Any]:
        pairs = [make() for make in HOOKS]
        seen.append(lambda: {make.__name__: see() for make, (_, see) in zip(HOOKS, pairs)})  # noqa: B905
        return [callback for callbacks, _ in pairs for callback in callbacks]

    training = Script(tiny(), {**ARRAYS, "save_every": 2}, made)
    train(training, tmp_path / "whole")
    expected = seen[-1]()
    assert expected["partials"] == [{"n": 6}, {"n": 12}]
    for step in (1, 3, 6):
        with pytest.raises(Death), dying_at(step):
            train(training, tmp_path / "killed")
    train(training, tmp_path / "killed")
    assert seen[-1]() == expected
    assert "state_not_saved" not in log_of(tmp_path / "killed")


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.rglob("log.jsonl")))


# -- the code of a model -------------------------------------------------------------------


class Scale(layers.Layer):  # type: ignore[misc]
    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.count = lambda: calls.append(1)
        self.calls = functools.partial(len, calls)

    def call(self, x: Any) -> Any:
        self.count()
        return x * (1 + 0.01 * self.calls())


class Growing(keras.regularizers.Regularizer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.n = 0

    def __call__(self, weights: Any) -> Any:
        self.n += 1
        return 0.001 * self.n * tf.reduce_sum(weights**2)


class Slowing(keras.optimizers.SGD):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(0.1)
        self.updates = 0

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.updates += 1
        super().update_step(gradient * (1 - 0.01 * self.updates), variable, learning_rate)


def in_eager_steps() -> Any:
    """A model whose loss, metric, layers, regularizer and optimizer all count in Python."""
    counts, weight, seen = {"n": 0}, tf.Variable(1.0, trainable=False), list[int]()

    def loss(counts: Any, true: Any, found: Any) -> Any:
        counts["n"] += 1
        weight.assign_add(0.1)
        squares = (tf.cast(true, tf.float32) - found[:, 0]) ** 2
        return tf.reduce_mean(squares) * weight * (1 + 0.1 * counts["n"])

    def metric(true: Any, found: Any) -> Any:
        seen.append(1)
        return tf.reduce_mean(found) + len(seen)

    given = functools.partial(loss, counts)
    given.__name__ = "loss"  # type: ignore[attr-defined]
    boxes = {"n": 0}

    def boxed(x: Any) -> Any:
        boxes["n"] += 1
        return x * (1 + 0.01 * boxes["n"])

    parts = [Scale([]), layers.Lambda(boxed), layers.Dense(3, kernel_regularizer=Growing())]
    model = keras.Sequential([layers.Input((6,)), *parts])
    model.compile(Slowing(), given, metrics=[metric], run_eagerly=True)
    return model


def in_traced_steps() -> Any:
    """A compiled model whose loss calls Python."""
    counts = {"n": 0}

    def scale() -> Any:
        counts["n"] += 1
        return np.float32(1 + 0.1 * counts["n"])

    def loss(true: Any, found: Any) -> Any:
        scaled = tf.ensure_shape(tf.numpy_function(scale, [], tf.float32), [])
        return tf.reduce_mean((tf.cast(true, tf.float32) - found[:, 0]) ** 2) * scaled

    model = keras.Sequential([layers.Input((6,)), *(part() for part in MLP)])
    model.compile("sgd", loss, jit_compile=False)
    return model


@pytest.mark.parametrize("build", [in_eager_steps, in_traced_steps])
def test_what_the_code_of_a_model_holds_goes_on(build: Callable[[], Any], tmp_path: Path) -> None:
    training = Script(build, {**ARRAYS, "save_every": 2})
    whole = train(training, tmp_path / "whole")
    for step in (1, 3, 6):
        with pytest.raises(Death), dying_at(step):
            train(training, tmp_path / "killed")
    assert_same_end(train(training, tmp_path / "killed"), whole)
    assert "state_not_saved" not in log_of(tmp_path / "killed")


def test_our_own_code_is_not_the_scripts_wherever_it_is_installed() -> None:
    own = ModuleType("outlast.somewhere")
    own.__file__ = "/somewhere/else.py"
    script_code._is_of_script.cache_clear()
    with mock.patch.dict("sys.modules", {"outlast.somewhere": own, "somewhere": own}):
        assert not script_code.is_module_of_script(own)
        own.__name__ = "somewhere"
        assert script_code.is_module_of_script(own)
    script_code._is_of_script.cache_clear()
