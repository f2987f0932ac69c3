"""Callbacks over a crash: their state, their order, their random draws and their lists."""

from __future__ import annotations

import collections
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast import fit
from outlast.attempt import context
from outlast.training.errors import NotSupported
from tests.support.training_harness import (
    Death,
    End,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    keras_fit,
    process,
    stopping_at,
    train,
)

# Keras' own: its schedules read a variable in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RNG = np.random.default_rng(3)
X = RNG.normal(size=(22, 4)).astype("float32")
Y = np.sign(X[:, :2].sum(1))
BATCHES = 3  # an epoch: two of 8 and one of 6


class Line(keras.Model):
    """The smallest model with an optimizer, a seed generator and metrics.

    It runs eagerly, because its steps take a fraction of the time of a trace.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slope = self.add_weight(shape=(4,), name="slope", initializer="ones")
        self.seeds = keras.random.SeedGenerator(1)
        self.means = [keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="accuracy")]
        self.built = True

    @property
    def metrics(self) -> list[Any]:
        return self.means

    def call(self, x: Any) -> Any:
        return tf.linalg.matvec(x, self.slope)

    def note(self, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
        answer = self(x)
        self.means[0].update_state((answer - y) ** 2)
        self.means[1].update_state(tf.sign(answer) == y)
        return answer - y, {mean.name: mean.result() for mean in self.means}

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        x += 0.1 * keras.random.normal(tf.shape(x), seed=self.seeds)
        error, logs = self.note(x, y)
        self.optimizer.apply([tf.reduce_mean(x * error[:, None], 0)], [self.slope])
        return logs

    def test_step(self, data: Any) -> dict[str, Any]:
        return self.note(*data)[1]


def build(**options: Any) -> Any:
    model = Line()
    optimizer = options.pop("optimizer", None) or keras.optimizers.SGD(0.3, momentum=0.9)
    model.compile(optimizer, **{"run_eagerly": True, **options})
    return model


PLAIN = Script(build, {"x": X, "y": Y, "batch_size": 8, "epochs": 3, "save_every": 2})
VALIDATED = PLAIN.but(validation_data=(X[:10], Y[:10]))


def die_and_resume(script: Script, folder: Path, *deaths: int) -> Any:
    """Train with a crash at each of the given steps of the phase, and return the end."""
    for step in deaths:
        with pytest.raises(Death), dying_at(step):
            train(script, folder)
    return train(script, folder)


def assert_survives(script: Script, tmp_path: Path, *deaths: int) -> tuple[Any, Any]:
    """Assert that crashes change nothing. Return the uninterrupted end and the resumed one."""
    untouched = train(script, tmp_path / "untouched")
    resumed = die_and_resume(script, tmp_path / "resumed", *deaths)
    assert_same_end(untouched, resumed)
    return untouched, resumed


class Calls(keras.callbacks.Callback):
    """Records every hook call with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []


def _recording(hook: str) -> Callable[..., None]:
    def record(self: Calls, *args: Any, **kwargs: Any) -> None:
        logs = kwargs.pop("logs", None) if "logs" in kwargs else args[-1] if args else None
        index = args[0] if args and isinstance(args[0], int) else None
        self.calls.append((hook, index, dict(logs or {}) if isinstance(logs, dict) else None))

    return record


for _hook in [
    "on_epoch_begin",
    "on_epoch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_end",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_predict_begin",
    "on_predict_end",
    "on_predict_batch_begin",
    "on_predict_batch_end",
    "on_train_begin",
    "on_train_end",
]:
    setattr(Calls, _hook, _recording(_hook))


def test_hooks_are_called_as_keras_calls_them_with_the_same_arguments(tmp_path: Path) -> None:
    script = VALIDATED.but(shuffle=False, validation_freq=2).with_callbacks(lambda: [Calls()])
    ours, theirs = train(script, tmp_path), keras_fit(script)
    assert repr(ours.callbacks[0].calls) == repr(theirs.callbacks[0].calls)


@pytest.mark.parametrize("steps_per_execution", [2, 4])
def test_hooks_of_grouped_steps_are_called_as_keras_does(
    tmp_path: Path, steps_per_execution: int
) -> None:
    def grouped() -> Any:
        return build(run_eagerly=False, steps_per_execution=steps_per_execution)

    script = Script(grouped, VALIDATED.but(shuffle=False).arguments, lambda: [Calls()])
    ours, theirs = train(script, tmp_path), keras_fit(script)
    assert repr(ours.callbacks[0].calls) == repr(theirs.callbacks[0].calls)


@pytest.mark.parametrize("how", [dying_at, stopping_at])
def test_a_resume_calls_each_hook_as_often_as_an_untouched_training(
    tmp_path: Path, how: Callable[[int], Any]
) -> None:
    script = VALIDATED.with_callbacks(lambda: [Calls()])
    untouched = train(script, tmp_path / "untouched").callbacks[0].calls
    for step in (2, 3, 6, 9):
        with pytest.raises((Death, SystemExit)), how(step):
            train(script, tmp_path / "resumed")
    resumed = train(script, tmp_path / "resumed").callbacks[0].calls
    begins = [call for call in resumed if call[0] == "on_train_begin"]
    assert repr([c for c in resumed if c not in begins]) == repr(untouched[1:])


class Asking(Calls):
    """Calls evaluate and predict itself, which calls its hooks."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        options = {"batch_size": 4, "verbose": 0, "callbacks": [self]}
        self.model.evaluate(X[:10], Y[:10], **options)
        self.model.predict(X[:10], **options)


def test_hooks_of_evaluate_and_predict_in_a_callback_are_called_as_in_keras(tmp_path: Path) -> None:
    script = VALIDATED.but(shuffle=False).with_callbacks(lambda: [Asking()])
    theirs = keras_fit(script)
    _, resumed = assert_survives(script, tmp_path, 4, 7)
    calls = [
        [c for c in end.callbacks[0].calls if c[0] != "on_train_begin"] for end in (theirs, resumed)
    ]
    assert repr(calls[0]) == repr(calls[1])
    assert sum(call[0] == "on_predict_batch_end" for call in calls[0]) == 3 * 3
    assert_same_end(theirs, resumed, rows=False)


EXTERNAL: list[Any] = []


class External(Calls):
    """Records its calls outside of any checkpoint, as the outside world would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Outside()  # type: ignore[assignment]


class Outside:
    def append(self, call: Any) -> None:
        EXTERNAL.append(call)


@pytest.mark.parametrize("save_every", ["3", "epoch", "never"])
def test_a_stop_repeats_no_hook(tmp_path: Path, save_every: str) -> None:
    script = VALIDATED.but(save_every=save_every).with_callbacks(lambda: [External()])
    EXTERNAL.clear()
    train(script, tmp_path / "untouched")
    untouched = [call for call in EXTERNAL if call[0] != "on_train_begin"]
    EXTERNAL.clear()
    for step in (1, 3, 5, 6):
        with pytest.raises(SystemExit), stopping_at(step):
            train(script, tmp_path / "resumed")
    train(script, tmp_path / "resumed")
    stopped = [call for call in EXTERNAL if call[0] != "on_train_begin"]
    assert repr(stopped) == repr(untouched)


class Stopping(keras.callbacks.Callback):
    """Requests a stop of the job in one of its hooks."""

    def __init__(self, hook: str, at: int) -> None:
        super().__init__()
        self._at = at
        setattr(self, hook, self._ask)

    def _ask(self, index: Any = None, logs: Any = None) -> None:
        current = context.current()
        assert current is not None
        if index == self._at or not isinstance(index, int):
            current.stop.request("SIGTERM")


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> End:
    """The end of an uninterrupted VALIDATED with a recording callback."""
    script = VALIDATED.with_callbacks(lambda: [Quiet(), Calls()])
    return train(script, tmp_path_factory.mktemp("untouched"))


@pytest.mark.parametrize(
    ("hook", "at", "save_every"),
    [
        ("on_train_begin", 0, "2"),
        ("on_epoch_begin", 0, "2"),
        ("on_epoch_begin", 1, "3"),
        ("on_epoch_begin", 1, "epoch"),
        ("on_train_batch_begin", 1, "2"),
        ("on_test_begin", 0, "3"),
        ("on_test_batch_begin", 0, "epoch"),
        ("on_test_batch_end", 0, "2"),
        ("on_test_end", 0, "epoch"),
        ("on_epoch_end", 0, "3"),
        ("on_epoch_end", 1, "epoch"),
        ("on_epoch_end", 1, "never"),
    ],
)
def test_a_stop_requested_in_any_hook_loses_nothing(
    tmp_path: Path, validated: End, hook: str, at: int, save_every: str
) -> None:
    script = VALIDATED.but(save_every=save_every)
    with pytest.raises(SystemExit) as left:
        train(script.with_callbacks(lambda: [Stopping(hook, at), Calls()]), tmp_path)
    assert left.value.code == 75
    resumed = train(script.with_callbacks(lambda: [Quiet(), Calls()]), tmp_path)
    assert_same_end(validated, resumed)
    calls = [
        [c for c in e.callbacks[1].calls if c[0] != "on_train_begin"] for e in (validated, resumed)
    ]
    assert repr(calls[0]) == repr(calls[1])


def test_a_stop_in_the_last_on_epoch_end_finishes_the_training(
    tmp_path: Path, validated: End
) -> None:
    script = VALIDATED.with_callbacks(lambda: [Stopping("on_epoch_end", 2), Calls()])
    assert_same_end(validated, train(script, tmp_path))


class Quiet(keras.callbacks.Callback):
    """Takes the place of Stopping and does nothing."""


def early(**options: Any) -> Callable[[], list[Any]]:
    return lambda: [keras.callbacks.EarlyStopping(**options)]


@pytest.mark.parametrize("restore", [False, True])
def test_early_stopping_stops_in_the_same_epoch(tmp_path: Path, restore: bool) -> None:
    script = VALIDATED.but(epochs=12).with_callbacks(
        early(patience=2, min_delta=0.05, restore_best_weights=restore)
    )
    untouched, resumed = assert_survives(script, tmp_path, 4, 7, 8)
    stopped = untouched.callbacks[0].stopped_epoch
    assert 0 < stopped < 11, "the callback must stop it for the test to mean anything"
    assert resumed.callbacks[0].stopped_epoch == stopped


def test_early_stopping_against_keras(tmp_path: Path) -> None:
    script = VALIDATED.but(epochs=12, shuffle=False).with_callbacks(
        early(patience=1, min_delta=0.05, restore_best_weights=True)
    )
    theirs = keras_fit(script)
    ours = die_and_resume(script, tmp_path, 2, 5)
    assert_same_end(theirs, ours, rows=False)


def test_lambda_callbacks_with_closures_run(tmp_path: Path) -> None:
    seen: list[Any] = []

    def callbacks() -> list[Any]:
        mine: list[Any] = []
        seen.append(mine)
        return [
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: mine.append((epoch, logs["loss"])),
                on_train_batch_end=lambda batch, logs: mine.append(batch),
            )
        ]

    script = PLAIN.with_callbacks(callbacks)
    assert_survives(script, tmp_path, 5)
    assert seen[2] == seen[0]


class Collector(keras.callbacks.Callback):
    """Has every kind of plain state."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor
        self.losses: list[float] = []
        self.by_epoch: dict[int, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.groups: dict[str, list[int]] = collections.defaultdict(list)
        self.ordered: dict[str, int] = collections.OrderedDict()
        self.recent: collections.deque[float] = collections.deque(maxlen=2)
        self.seen: set[int] = set()
        self.frozen: frozenset[int] = frozenset()
        self.mean = np.zeros(3)
        self.scalar = np.float32(0)
        self.pair: tuple[Any, ...] = ()
        self.nested: dict[str, Any] = {"a/b": [np.zeros(1)], "a": {"b": [1]}}
        self.raw = b""
        self.flag = False
        self.big = 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])
        self.counts["batches"] += 1
        self.counts[f"batch {batch}"] += 1
        self.groups[f"batch {batch}"].append(batch)
        self.recent.append(logs["loss"])
        self.seen.add(batch)
        self.frozen |= {batch}
        self.mean = self.mean * 0.9 + logs["loss"]
        self.scalar = np.float32(self.scalar + self.factor)
        self.pair = (batch, (logs["loss"], None, float("nan")))
        self.nested["a/b"].append(np.full(2, logs["loss"]))
        self.nested["a"] = {"b": np.arange(batch), "": np.ones(1), ".": np.ones(2)}
        self.raw += bytes([batch])
        self.flag = not self.flag
        self.big = (self.big * 7919) % 2**89

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.by_epoch[epoch] = logs["loss"]
        self.ordered[f"epoch {-epoch}"] = epoch


def test_the_state_of_a_custom_callback_is_restored(tmp_path: Path) -> None:
    script = PLAIN.with_callbacks(lambda: [Collector()])
    untouched, resumed = assert_survives(script, tmp_path, 1, 2, 4, 5, 9)
    ignored = {"_model", "model", "params", "_params"}
    one = {k: v for k, v in vars(untouched.callbacks[0]).items() if k not in ignored}
    two = {k: v for k, v in vars(resumed.callbacks[0]).items() if k not in ignored}
    assert repr(one) == repr(two)
    assert {k: type(v) for k, v in one.items()} == {k: type(v) for k, v in two.items()}


def test_a_list_that_the_script_also_holds_is_filled_in_place(tmp_path: Path) -> None:
    held: list[list[float]] = []

    def callbacks() -> list[Any]:
        callback = Collector()
        held.append(callback.losses)
        return [callback]

    assert_survives(PLAIN.with_callbacks(callbacks), tmp_path, 5)
    assert held[0] == held[2]
    assert len(held[0]) == 9


def test_configuration_comes_from_the_script_not_from_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Death), dying_at(5):
        train(PLAIN.with_callbacks(lambda: [Collector(factor=2.0)]), tmp_path)
    end = train(PLAIN.with_callbacks(lambda: [Collector(factor=3.0)]), tmp_path)
    assert end.callbacks[0].factor == 3.0
    assert end.callbacks[0].scalar == 4 * 2.0 + 5 * 3.0


class Speaking(keras.callbacks.Callback):
    """Has get_state and set_state, for state that is in no attribute."""

    def __init__(self) -> None:
        super().__init__()
        self._secret = SecretSum()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._secret.total += logs["loss"]

    def get_state(self) -> Any:
        return {"total": self._secret.total, "array": np.full(3, self._secret.total)}

    def set_state(self, state: Any) -> None:
        assert state["array"].shape == (3,)
        self._secret.total = state["total"]


class SecretSum:
    total = 0.0


def test_a_callback_with_get_state_and_set_state(tmp_path: Path) -> None:
    untouched, resumed = assert_survives(PLAIN.with_callbacks(lambda: [Speaking()]), tmp_path, 4, 8)
    assert untouched.callbacks[0]._secret.total == resumed.callbacks[0]._secret.total > 0


def test_a_state_that_cannot_be_stored_is_refused_by_name_at_the_start(tmp_path: Path) -> None:
    class Wrong(Speaking):
        def get_state(self) -> Any:
            return {"handle": object()}

    with pytest.raises(
        NotSupported, match=r"Wrong cannot be stored: object at get_state\(\)/handle"
    ):
        train(PLAIN.with_callbacks(lambda: [Wrong()]), tmp_path)


def test_another_callback_in_front_changes_no_state(tmp_path: Path) -> None:
    untouched = train(PLAIN.with_callbacks(lambda: [Collector()]), tmp_path / "untouched")
    with pytest.raises(Death), dying_at(5):
        train(PLAIN.with_callbacks(lambda: [Collector()]), tmp_path / "resumed")
    script = PLAIN.with_callbacks(lambda: [Quiet(), Collector()])
    resumed = train(script, tmp_path / "resumed")
    assert resumed.callbacks[1].losses == untouched.callbacks[0].losses
    assert_same_end(untouched, resumed)


@dataclass
class Tally:
    steps: int = 0


class Averaging(keras.callbacks.Callback):
    """Makes objects when the training begins, as callbacks of average weights do."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.ema = [tf.Variable(w) for w in self.model.get_weights()]
        self.mean = keras.metrics.Mean()
        self.tally = Tally()
        self.losses: list[Any] = []
        self.reader = iter([1])
        self.started = "once"

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for average, weight in zip(self.ema, self.model.get_weights(), strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        self.mean.update_state(logs["loss"])
        self.tally.steps += 1
        self.losses.append(tf.constant(logs["loss"]))

    def found(self) -> Any:
        ema = [np.asarray(v).tolist() for v in self.ema]
        return ema, float(self.mean.result()), self.tally.steps, [float(v) for v in self.losses]


def test_objects_made_by_a_callback_are_restored(tmp_path: Path) -> None:
    script = PLAIN.with_callbacks(lambda: [Averaging()])
    untouched, resumed = assert_survives(script, tmp_path, 4, 7)
    assert untouched.callbacks[0].found() == resumed.callbacks[0].found()
    lines = (tmp_path / "untouched/attempts/0001/log.jsonl").read_text().splitlines()
    named = [line for line in lines if "state_not_saved" in line]
    assert len(named) == 1
    assert "callbacks[0].reader" in named[0]


def test_objects_made_by_a_skipped_phase_are_restored(tmp_path: Path) -> None:
    script = PLAIN.with_callbacks(lambda: [Averaging()])
    untouched = train(script, tmp_path).callbacks[0]
    skipped = train(script, tmp_path).callbacks[0]
    for one, two in zip(untouched.ema, skipped.ema, strict=True):
        assert np.array_equal(one, two)
    assert [float(v) for v in untouched.losses] == [float(v) for v in skipped.losses]
    assert skipped.started == "once"
    # Of a class that no file may name: nobody can make these anew.
    text = (tmp_path / "attempts/0002/log.jsonl").read_text()
    assert "callback_state_ignored" in text


class Adapting(keras.callbacks.Callback):
    """A custom callback whose state has the name of a Keras configuration attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.min_delta = 1.0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.min_delta *= 0.5


def test_an_attribute_min_delta_of_a_custom_callback_is_state(tmp_path: Path) -> None:
    _, resumed = assert_survives(PLAIN.with_callbacks(lambda: [Adapting()]), tmp_path, 4, 7)
    assert resumed.callbacks[0].min_delta == 0.125


class Drawing(keras.callbacks.Callback):
    """Draws from every global generator, and changes the training with the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.drawn += [
            random.random(),
            np.random.random(),
            float(np.random.standard_normal()),
            random.gauss(0, 1),
            float(tf.random.uniform([])),
            float(keras.random.uniform([])),
            float(tf.random.get_global_generator().uniform([])),
        ]
        self.model.optimizer.learning_rate = 0.01 + 0.01 * float(np.mean(self.drawn[-7:]))


def test_generators_used_in_callbacks_are_restored(tmp_path: Path) -> None:
    def build_anew() -> Any:
        tf.random.set_global_generator(tf.random.Generator.from_seed(5))
        return build()

    script = Script(build_anew, PLAIN.arguments, lambda: [Drawing()])
    untouched, resumed = assert_survives(script, tmp_path, 1, 2, 5, 7)
    assert untouched.callbacks[0].drawn == resumed.callbacks[0].drawn
    assert len(set(untouched.callbacks[0].drawn)) == 9 * 7


class Own(keras.callbacks.Callback):
    """Has private random generators."""

    def __init__(self) -> None:
        super().__init__()
        self.numpy = np.random.default_rng(4)
        self.python = random.Random(4)
        self.drawn: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.drawn += [float(self.numpy.normal()), self.python.random()]


def test_generators_held_by_a_callback_are_restored(tmp_path: Path) -> None:
    untouched, resumed = assert_survives(PLAIN.with_callbacks(lambda: [Own()]), tmp_path, 4, 7)
    assert untouched.callbacks[0].drawn == resumed.callbacks[0].drawn


class Weighing(keras.callbacks.Callback):
    """Changes its own variable, which the training reads, as KL annealing does."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.weight.assign(self.weight * 0.5 + epoch)


def test_a_variable_shared_by_loss_and_callback(tmp_path: Path) -> None:
    made: list[Any] = []

    def weighted() -> Any:
        weight = keras.Variable(1.0, trainable=False)
        made.append(weight)
        model = keras.Sequential([layers.Input((4,)), layers.Dense(1)])
        model.compile("sgd", loss=lambda y, p: weight * keras.losses.mean_squared_error(y, p))
        return model

    script = Script(weighted, PLAIN.arguments, lambda: [Weighing(made[-1])])
    assert_survives(script, tmp_path, 4, 7)
    assert float(made[0]) == float(made[-1]) == 2.625


class Halting(keras.callbacks.Callback):
    def __init__(self, hook: str, at: int) -> None:
        super().__init__()
        self._at = at
        setattr(self, hook, self._halt)

    def _halt(self, index: Any = None, logs: Any = None) -> None:
        if index == self._at or not isinstance(index, int):
            self.model.stop_training = True


@pytest.mark.parametrize(
    ("hook", "at"),
    [
        ("on_train_begin", 0),
        ("on_epoch_begin", 0),
        ("on_epoch_begin", 1),
        ("on_train_batch_begin", 1),
        ("on_train_batch_end", 1),
        ("on_epoch_end", 1),
        ("on_test_end", 0),
    ],
)
def test_stop_training_ends_where_keras_ends(tmp_path: Path, hook: str, at: int) -> None:
    script = VALIDATED.but(shuffle=False, save_every=1).with_callbacks(lambda: [Halting(hook, at)])
    theirs = keras_fit(script)
    assert_same_end(theirs, train(script, tmp_path / "a"), rows=False)
    with pytest.raises(Death), dying_at(1):
        train(script, tmp_path / "b")
    assert_same_end(theirs, train(script, tmp_path / "b"), rows=False)


class Keeping(keras.callbacks.Callback):
    """Keeps tensors, variables and a seed generator in its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = tf.zeros(2)
        self.variable = keras.Variable(np.zeros(2))
        self.plain_variable = tf.Variable(1.0)
        self.seeds = keras.random.SeedGenerator(3)
        self.drawn: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.tensor = self.tensor * 2 + epoch
        self.variable.assign_add(self.tensor)
        self.plain_variable.assign(self.plain_variable * 3)
        self.drawn.append(float(keras.random.normal([], seed=self.seeds)))


def test_tensors_and_variables_held_by_a_callback_are_restored(tmp_path: Path) -> None:
    untouched, resumed = assert_survives(PLAIN.with_callbacks(lambda: [Keeping()]), tmp_path, 4, 7)
    one, two = untouched.callbacks[0], resumed.callbacks[0]
    for name in ("tensor", "variable", "plain_variable"):
        assert np.array_equal(np.array(getattr(one, name)), np.array(getattr(two, name)))
    assert one.drawn == two.drawn
    assert len(set(one.drawn)) == 3


def test_a_progress_bar_is_no_state(tmp_path: Path) -> None:
    with pytest.raises(Death), dying_at(5):
        train(PLAIN, tmp_path, verbose=2)
    train(PLAIN, tmp_path, verbose=0)
    assert "callback_state_ignored" not in (tmp_path / "attempts/0002/log.jsonl").read_text()


class Opening(keras.callbacks.Callback):
    """Makes what belongs to the process, and perhaps a metric, when the training begins."""

    def __init__(self, path: Path, measures: bool) -> None:
        super().__init__()
        self._path, self._measures = path, measures

    def on_train_begin(self, logs: Any = None) -> None:
        self.file = self._path.open("a")
        self.lock, self.times, self.log = threading.Lock(), iter(range(9)), logging.getLogger("x")
        self.shown = np.log
        if self._measures:
            self.measured = keras.metrics.Mean()

    def on_train_end(self, logs: Any = None) -> None:
        self.file.close()


@pytest.mark.parametrize("measures", [False, True])
def test_what_belongs_to_the_process_is_not_missed_in_a_finished_phase(
    tmp_path: Path, measures: bool
) -> None:
    script = PLAIN.with_callbacks(lambda: [Opening(tmp_path / "file", measures)])
    for _ in range(2):
        train(script, tmp_path / "job")
    log = (tmp_path / "job" / "attempts" / "0002" / "log.jsonl").read_text()
    assert ("callback_state_ignored" in log) == measures


def test_callbacks_in_every_form_that_keras_accepts(tmp_path: Path) -> None:
    begin_process()
    model = build()
    stop = keras.callbacks.EarlyStopping("loss")
    listed = keras.callbacks.CallbackList(
        [stop], add_history=True, model=model, epochs=1, steps=BATCHES, verbose=0
    )
    arguments = {**PLAIN.arguments, "epochs": 1, "verbose": 0, "job_dir": tmp_path}
    with process(tmp_path):
        for callbacks in (stop, [stop], (stop,), [[stop], [Quiet()]], [], None, listed):
            history = fit(model, callbacks=callbacks, **arguments)
            assert history.epoch == [0]
            assert list(history.history) == ["accuracy", "loss"]


def test_a_history_passed_by_the_user_is_filled(tmp_path: Path) -> None:
    script = PLAIN.with_callbacks(lambda: [keras.callbacks.History()])
    untouched, resumed = assert_survives(script, tmp_path, 5)
    assert resumed.callbacks[0].history == untouched.callbacks[0].history == untouched.history
