"""Attributes that hooks set before the first step count as in Keras, also after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers, optimizers

from outlast.training.errors import NotSupported, StateMismatch
from outlast.training.fit_state import describe_model
from outlast.training.state.fingerprint import of_training
from outlast_checkpoints.format.layout import MODEL_FILE
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    train,
)
from tests.support.training_zoo import ARRAYS, cross_entropy, tiny

Effect = Callable[[Any], None]


class Scaled(layers.Layer):  # type: ignore[misc]
    """A layer with attributes that its call reads."""

    def __init__(self) -> None:
        super().__init__()
        self._by = 1.0
        self.shifts = [0.0]

    def call(self, x: Any) -> Any:
        return self._by * x + sum(self.shifts)


def model(**options: Any) -> Any:
    parts = (layers.Dense(4, "relu"), layers.Dropout(0.5), Scaled(), layers.Dense(3))
    made = keras.Sequential([layers.Input((6,)), *parts])
    made.compile(optimizers.SGD(0.1, momentum=0.9), cross_entropy(), **options)
    return made


def eager() -> Any:
    return model(run_eagerly=True)


class At(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls `effect` with the model in the hook of that name, at its first call in a training."""

    def __init__(self, hook: str, effect: Effect) -> None:
        super().__init__()
        self._effect, self._hook = effect, hook
        self.done = False

    def on_train_begin(self, logs: Any = None) -> None:
        if self._hook == "on_train_begin":
            self._effect(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._hook == "on_epoch_begin" and not self.done:
            self._effect(self.model)
        self.done = True


def freeze(model: Any) -> None:
    model.layers[0].trainable = False
    model.layers[1].rate = 0.0


def freeze_a_variable(model: Any) -> None:
    model.layers[0].bias.trainable = False


def set_own_attributes(model: Any) -> None:
    model.layers[2]._by = 0.5
    model.layers[2].shifts = [0.1, 0.2]


def clip(model: Any) -> None:
    model.optimizer.clipnorm = 0.01
    model.optimizer.nesterov = True


def swap_optimizer(model: Any) -> None:
    model.optimizer = optimizers.RMSprop(0.02)


EFFECTS: dict[str, tuple[str, Effect]] = {
    "frozen in on_train_begin": ("on_train_begin", freeze),
    "frozen in on_epoch_begin": ("on_epoch_begin", freeze),
    "one variable": ("on_epoch_begin", freeze_a_variable),
    "attributes of an own layer": ("on_epoch_begin", set_own_attributes),
    "attributes of the optimizer": ("on_epoch_begin", clip),
    "another optimizer": ("on_train_begin", swap_optimizer),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_attributes_set_by_a_hook_before_the_first_step_count(tmp_path: Path, name: str) -> None:
    """Deaths before the first step was saved, in the first epoch and in the second one."""
    hook, effect = EFFECTS[name]
    script = Script(model, ARRAYS, lambda: [At(hook, effect)]).but(save_every=2)
    theirs = keras_fit(script)
    assert theirs.history != keras_fit(script.with_callbacks(list)).history
    for step in (1, 3, 5):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path)
    assert_same_end(theirs, train(script, tmp_path), rows=False)
    # A finished training gives back the same result.
    again = train(script, tmp_path)
    assert first_of(again.state) == first_of(theirs.state)
    assert again.history == theirs.history


def first_of(state: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value for name, value in state.items() if name.startswith(("model", "optimizer"))}


def test_an_eager_model_reads_its_attributes_at_every_step(tmp_path: Path) -> None:
    class Anneal(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.layers[1].rate = 0.5 / (epoch + 1)

    script = Script(eager, {**ARRAYS, "epochs": 3}, lambda: [Anneal()]).but(save_every=1)
    theirs = keras_fit(script)
    for step in (2, 5, 8):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path)
    assert_same_end(theirs, train(script, tmp_path), rows=False)


def test_changes_that_a_resume_cannot_repeat_are_named_at_the_start(tmp_path: Path) -> None:
    def replace(model: Any) -> None:
        model.layers[0].activation = keras.activations.tanh

    script = Script(model, ARRAYS, lambda: [At("on_epoch_begin", replace)])
    theirs = keras_fit(script)
    assert_same_end(theirs, train(script, tmp_path), rows=False)
    log = (tmp_path / "attempts" / "0001" / "log.jsonl").read_text()
    assert "inexact_hook_found" in log
    assert '"dense.activation"' in log


@pytest.mark.parametrize("hook", ["on_train_begin", "on_train_batch_begin"])
def test_what_the_hook_of_the_first_batch_sets_is_named(tmp_path: Path, hook: str) -> None:
    """Keras traces the step only after it."""

    class AtBatch(At):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if hook == "on_train_batch_begin":
                self._effect(self.model)

    def soften(model: Any) -> None:
        model.layers[1].rate = 0.1

    train(Script(model, ARRAYS, lambda: [AtBatch(hook, soften)]), tmp_path)
    log = (tmp_path / "attempts" / "0001" / "log.jsonl").read_text()
    assert ("Dropout.rate" in log) == (hook == "on_train_batch_begin")
    assert log.count("inexact_hook_found") == (hook == "on_train_batch_begin")


def compile_anew(model: Any) -> None:
    model.compile("sgd", cross_entropy())


def make_anew(model: Any) -> None:
    model.make_train_function(force=True)


class In(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls `effect` in the hook of that name, whenever it is called."""

    def __init__(self, hook: str, effect: Effect) -> None:
        super().__init__()
        setattr(self, hook, lambda *args, **more: effect(self.model))


HOOKS = ["on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end",
         "on_epoch_end"]  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_compiling_within_fit_is_refused_by_name(tmp_path: Path, hook: str) -> None:
    script = Script(tiny(), ARRAYS, lambda: [In(hook, compile_anew)])
    with pytest.raises((TypeError, ValueError)):
        keras_fit(script)
    with pytest.raises(NotSupported, match=r"compile\(\)"):
        train(script, tmp_path)


def test_compiling_after_the_last_epoch_is_allowed(tmp_path: Path) -> None:
    script = Script(tiny(), ARRAYS, lambda: [In("on_train_end", compile_anew)])
    assert train(script, tmp_path).history == keras_fit(script).history


def test_forcing_a_new_trace_is_refused_by_name(tmp_path: Path) -> None:
    script = Script(tiny(), ARRAYS, lambda: [In("on_epoch_end", make_anew)])
    with pytest.raises(NotSupported, match="make_train_function"):
        train(script, tmp_path)


class Halving(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps variables that the first step creates, and changes one through its own reference."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.sums: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.kept:
            self.kept = [self.model.layers[0].kernel, self.model.optimizer.variables[2]]
        self.sums.append(sum(float(keras.ops.sum(one)) for one in self.kept))
        self.kept[0].assign(self.kept[0] * 0.5)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_callback_keeps_the_variables_of_the_first_step(
    tmp_path: Path, *, run_eagerly: bool
) -> None:
    def unbuilt() -> Any:
        made = keras.Sequential([layers.Dense(4, "relu"), layers.Dropout(0.5), layers.Dense(3)])
        made.compile(optimizers.SGD(0.1, momentum=0.9), cross_entropy(), run_eagerly=run_eagerly)
        return made

    made: list[Halving] = []

    def callbacks() -> list[Any]:
        made.append(Halving())
        return made[-1:]

    script = Script(unbuilt, {**ARRAYS, "epochs": 3}, callbacks).but(save_every=1)
    theirs = keras_fit(script)
    for step in (1, 4, 7):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path)
    assert_same_end(theirs, train(script, tmp_path), rows=False)
    assert made[-1].sums == made[0].sums
    assert train(script, tmp_path).history == theirs.history
    assert made[-1].sums == made[0].sums
    assert made[-1].kept[0] is made[-1].model.layers[0].kernel


def test_a_mismatch_leaves_no_attribute_of_the_checkpoint(tmp_path: Path) -> None:
    def set_and_freeze(model: Any) -> None:
        set_own_attributes(model)
        freeze(model)

    script = Script(eager, ARRAYS, lambda: [At("on_epoch_begin", set_and_freeze)]).but(save_every=1)
    with pytest.raises(Death), dying_at(2):
        train(script, tmp_path)
    made: list[Any] = []

    def other() -> Any:
        made.append(eager())
        made[-1].optimizer = optimizers.SGD(0.1)
        return made[-1]

    with pytest.raises(StateMismatch):
        train(script.with_build(other), tmp_path)
    dense, dropout, scaled, _ = made[0].layers
    assert (dense.trainable, dense.kernel.trainable, dropout.rate) == (True, True, 0.5)
    assert (scaled._by, list(scaled.shifts)) == (1.0, [0.0])


def test_a_model_that_its_first_call_builds_is_the_same_model_afterwards() -> None:
    unbuilt = keras.Sequential([layers.Dense(4), layers.Dense(3)])
    unbuilt.compile("sgd", cross_entropy())
    before = of_training(unbuilt, describe_model(unbuilt).get(MODEL_FILE))
    unbuilt(ARRAYS["x"][:2])
    assert of_training(unbuilt, describe_model(unbuilt).get(MODEL_FILE)) == before
