"""The choice of a program, a resume that keeps it, and stacked streamed batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast.training.step import compiled_steps as step
from outlast.training.step.program import Program
from outlast.training.step.program_choice import ProgramChoice
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    steps_per_call,
    train,
)
from tests.support.training_zoo import ARRAYS, IMAGES, MLP, X, Y, dense, model_of

STEPS = {"x": np.concatenate([X] * 5), "y": np.concatenate([Y] * 5), "batch_size": 8}
SCRIPT = Script(model_of(*MLP), {**ARRAYS, **STEPS, "shuffle": True, "save_every": 5})


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    logs = sorted(folder.glob("attempts/*/log.jsonl"))
    rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def recurrent() -> Any:
    return keras.Sequential([layers.Reshape((3, 2)), layers.LSTM(4)])


@pytest.mark.parametrize("parts", [MLP, (recurrent, dense(3))], ids=["mlp", "lstm"])
def test_xla_over_a_whole_call_is_equal_for_every_number_of_steps(
    tmp_path: Path, parts: tuple[Any, ...]
) -> None:
    script = SCRIPT.with_build(model_of(*parts)).but(jit_compile=True)
    with steps_per_call(lambda step: 1):
        one = train(script, tmp_path / "one")
    with steps_per_call(lambda step: 1 + step % 5) as taken, dying_at(7), pytest.raises(Death):
        train(script, tmp_path / "mixed")
    with steps_per_call(lambda step: 4):
        assert_same_end(one, train(script, tmp_path / "mixed"))
    assert max(taken) > 1


def test_a_model_compiled_for_xla_gets_it_though_determinism_is_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Proceeding with `jit_compile=False`"):
        compiled = train(SCRIPT.with_build(model_of(*MLP, jit_compile=True)), tmp_path / "compiled")
    assert_same_end(compiled, train(SCRIPT.but(jit_compile=True), tmp_path / "asked"))


def test_tensorflow_runs_the_loop_where_xla_is_slow(tmp_path: Path) -> None:
    """With a convolution, each step is one XLA program, as in Keras' fit, with equal results."""
    cnn = (lambda: layers.Conv2D(3, 3), layers.Flatten, dense(3))
    arguments = {**ARRAYS, "x": IMAGES}
    ours = train(
        Script(model_of(*cnn, shape=(8, 8, 1)), {**arguments, "jit_compile": True}), tmp_path
    )
    theirs = keras_fit(Script(model_of(*cnn, shape=(8, 8, 1), jit=True), arguments))
    assert theirs.state == ours.state


def test_the_measured_choice_is_kept_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement changes no state, and a resume keeps the program even if it is slower now."""
    script = SCRIPT.but(jit_compile="auto")
    seconds = {Program.GRAPH: 2.0, Program.XLA_CALL: 1.0}

    def measured(self: ProgramChoice) -> float:
        self._train(3)
        return seconds[self._steps.program]

    monkeypatch.setattr(ProgramChoice, "_seconds_per_step", measured)
    with dying_at(7), pytest.raises(Death):
        train(script, tmp_path / "job")
    seconds[Program.XLA_CALL] = 3.0
    assert_same_end(
        train(SCRIPT.but(jit_compile=True), tmp_path / "xla"), train(script, tmp_path / "job")
    )
    assert [row["program"] for row in events(tmp_path / "job", "program_chosen")] == ["xla-call"]
    assert_same_end(train(SCRIPT, tmp_path / "graph"), train(script, tmp_path / "slow"))
    assert [row["program"] for row in events(tmp_path / "slow", "program_chosen")] == ["graph"]


def test_steps_per_execution_may_exceed_the_steps_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user chooses steps_per_execution; with batch hooks it is the number of steps per call."""
    monkeypatch.setattr(step, "XLA_STEPS", 4)
    script = SCRIPT.with_build(model_of(*MLP, steps_per_execution=6)).but(jit_compile=True)
    hooked = script.with_callbacks(
        lambda: [keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)]
    )
    end, wanted = train(hooked, tmp_path / "hooked"), train(script, tmp_path / "free")
    assert end.state == wanted.state


def test_a_step_that_xla_cannot_compile_trains_without_it(tmp_path: Path) -> None:
    def printing() -> Any:
        return layers.Lambda(
            lambda x: tf.ensure_shape(tf.py_function(lambda v: v, [x], x.dtype), (None, 6)), (6,)
        )

    def build() -> Any:
        model = keras.Sequential([layers.Input((6,)), printing(), layers.Dense(3)])
        model.compile("sgd", "mse")
        return model

    script = Script(build, {**ARRAYS, "y": np.zeros((len(X), 3), "float32")})
    assert_same_end(
        train(script, tmp_path / "plain"), train(script.but(jit_compile="auto"), tmp_path / "auto")
    )
    (chosen,) = events(tmp_path / "auto", "program_chosen")
    assert chosen["program"] == "graph"
    assert "EagerPyFunc" in chosen["xla_error"]


def test_a_program_other_than_that_of_the_checkpoint_is_reported(tmp_path: Path) -> None:
    with dying_at(7), pytest.raises(Death):
        train(SCRIPT, tmp_path)
    train(SCRIPT.but(jit_compile=True), tmp_path)
    (told,) = events(tmp_path, "program_changed")
    assert "xla-call" in told["why"]


def uneven() -> Iterator[Any]:
    for size in (8, 8, 5, 8, 8, 8, 3, 8):
        yield X[:size], Y[:size]


@pytest.mark.parametrize("jit", [None, True, "auto"])
def test_stacked_batches_train_like_single_ones(
    tmp_path: Path, jit: bool | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgramChoice, "_seconds_per_step", lambda self: self._train(2))
    data = {"y": None, "batch_size": None, "epochs": 2, "steps_per_epoch": 4, "jit_compile": jit}
    end = None
    for size in (1, 3):
        script = SCRIPT.but(**data, x=uneven())
        with steps_per_call(lambda step, size=size: size) as taken:
            ended = train(script, tmp_path / f"{size}")
        end = end or ended
        if jit != "auto":  # of which the measuring takes two, and two programs may be chosen
            assert max(taken) == size
            assert_same_end(ended, end)
