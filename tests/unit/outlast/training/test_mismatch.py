"""A script that differs from its checkpoint fails with the first difference; nothing changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from outlast import fit
from outlast.training.errors import StateMismatch
from tests.support.training_harness import (
    Death,
    Script,
    all_state,
    assert_same_end,
    begin_process,
    dying_at,
    process,
    train,
)

RNG = np.random.default_rng(5)
X = RNG.normal(size=(20, 4)).astype("float32")
Y = RNG.integers(0, 2, 20)
DATA = {"x": X, "y": Y, "batch_size": 8, "epochs": 2, "save_every": 2}


def net(
    *hidden: Any,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.Adam(0.01),
    loss: Any = "mse",
    metrics: tuple[Any, ...] = ("mae",),
) -> Callable[[], Any]:
    def build() -> Any:
        made = [make() for make in (hidden or (dense(3),))]
        model = keras.Sequential([layers.Input((4,)), *made, layers.Dense(1)])
        model.compile(optimizer(), loss, metrics=list(metrics), run_eagerly=True)
        return model

    return build


def dense(units: int, **options: Any) -> Callable[[], Any]:
    return lambda: layers.Dense(units, **options)


ADAM = keras.optimizers.Adam


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Any]], Path]:
    """Return a function that returns the folder of a job that crashed after a save at step 2."""
    jobs: dict[Callable[[], Any], Path] = {}

    def job_of(build: Callable[[], Any]) -> Path:
        if build not in jobs:
            jobs[build] = tmp_path_factory.mktemp("job")
            with pytest.raises(Death), dying_at(3):
                train(Script(build, DATA), jobs[build])
        return jobs[build]

    return job_of


PLAIN = net()
DROPOUT = net(dense(3), lambda: layers.Dropout(0.1))
NORMALIZED = net(dense(3), lambda: layers.BatchNormalization())
SGD = net(optimizer=lambda: keras.optimizers.SGD(0.01, momentum=0.9))
HALF = net(dense(3, dtype="float16"))
COMPLETE = net(metrics=("mae", "mse"))


@pytest.mark.parametrize(
    ("stored", "script", "what", "problem"),
    [
        (PLAIN, net(dense(5)), r"layers/dense/vars/0 .*kernel", r"\(4, 3\).*\(4, 5\)"),
        (PLAIN, net(dense(3), dense(3)), r"layers/dense_1/vars/0", r"\(3, 1\).*\(3, 3\)"),
        (net(dense(3), dense(3)), PLAIN, r"layers/dense_1/vars/0", r"\(3, 3\).*\(3, 1\)"),
        (
            PLAIN,
            net(dense(3), lambda: layers.LayerNormalization()),
            r"layers/layer_normalization/vars/0",
            "the script has it, the checkpoint does not",
        ),
        (NORMALIZED, PLAIN, r"layers/batch_normalization/vars/0", "the checkpoint has it"),
        (PLAIN, net(dense(3, use_bias=False)), r"layers/dense/vars/1", "the checkpoint has it"),
        (PLAIN, net(dense(3, dtype="float64")), r"layers/dense/vars/0", "float32.*float64"),
        (HALF, PLAIN, r"layers/dense/vars/0", "float16.*float32"),
        (PLAIN, SGD, "optimizer", "'adam'.*'(sgd|SGD)'"),
        (
            net(optimizer=lambda: keras.optimizers.AdamW(0.01)),
            PLAIN,
            "optimizer",
            "'adam_?w'.*'adam'",
        ),
        (
            PLAIN,
            net(optimizer=lambda: keras.optimizers.Adamax(0.01)),
            "optimizer",
            "'adam'.*'adamax'",
        ),
        (PLAIN, net(optimizer=lambda: ADAM(0.01, amsgrad=True)), "optimizer/vars/", "the script"),
        (net(optimizer=lambda: ADAM(0.01, use_ema=True)), PLAIN, "optimizer/vars/", "checkpoint"),
        (
            PLAIN,
            net(optimizer=lambda: keras.optimizers.LossScaleOptimizer(ADAM(0.01))),
            "optimizer",
            "",
        ),
        (
            SGD,
            net(optimizer=lambda: keras.optimizers.SGD(0.01)),
            "optimizer/vars/2",
            "the checkpoint has it",
        ),
        (PLAIN, DROPOUT, "seed_generator", "the script has it"),
        (DROPOUT, PLAIN, "seed_generator", "the checkpoint has it"),
        (PLAIN, COMPLETE, "mean_squared_error", "the script has it"),
        (COMPLETE, PLAIN, "mean_squared_error", "the checkpoint has it"),
        (PLAIN, net(metrics=("mse",)), "mean_squared_error", "the script has it"),
        (COMPLETE, net(metrics=("mse", "mae")), "mean_squared_error", "has mean_absolute_error"),
        (PLAIN, net(loss="mae"), "loss", "mean_squared_error, the script has mean_absolute_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_difference_is_named_and_nothing_changes(
    died: Callable[[Callable[[], Any]], Path],
    stored: Callable[[], Any],
    script: Callable[[], Any],
    what: str,
    problem: str,
) -> None:
    folder = died(stored)
    begin_process()
    model = script()
    before: list[dict[str, bytes]] = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            before.append(all_state(self.model))

    with process(folder), pytest.raises(StateMismatch, match=f"(?s){what}.*{problem}") as error:
        fit(model, job_dir=folder, callbacks=[Watch()], verbose=0, **DATA)
    # An eager model may have more variables now, which its first step would have made.
    now = by_path(all_state(model))
    assert {name: now.get(name) for name in by_path(before[0])} == by_path(before[0])
    assert "Nothing was changed" in str(error.value)


def by_path(state: dict[str, bytes]) -> dict[str, bytes]:
    """Return the variables by group and path, without their numbers."""
    return {re.sub(r"/\d+/", "/", name, count=1): value for name, value in state.items()}


def test_after_a_mismatch_the_right_script_resumes(tmp_path: Path) -> None:
    script = Script(PLAIN, DATA)
    untouched = train(script, tmp_path / "untouched")
    with pytest.raises(Death), dying_at(3):
        train(script, tmp_path / "resumed")
    with pytest.raises(StateMismatch):
        train(Script(net(dense(5)), DATA), tmp_path / "resumed")
    assert_same_end(untouched, train(script, tmp_path / "resumed"))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("batch_size", {"batch_size": 4}),
        ("samples", {"x": X[:16], "y": Y[:16]}),
        ("shuffle", {"shuffle": False}),
        ("seed", {"seed": 5}),
    ],
)
def test_other_data_in_the_middle_of_an_epoch_is_refused(
    died: Callable[[Callable[[], Any]], Path], field: str, changes: dict[str, Any]
) -> None:
    folder = died(PLAIN)
    with pytest.raises(StateMismatch, match=field):
        train(Script(PLAIN, DATA).but(**changes), folder)


def test_other_data_at_an_epochs_border_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(Death), dying_at(4):
        train(Script(PLAIN, DATA).but(save_every="epoch"), tmp_path)
    more = {"x": np.concatenate([X, X]), "y": np.concatenate([Y, Y]), "batch_size": 4}
    end = train(Script(PLAIN, DATA).but(save_every="epoch", **more), tmp_path)
    steps = [row for row in end.rows if row["kind"] == "step"]
    assert [row["batch"] for row in steps] == [0, 1, 2, *range(10)]


def test_names_and_equivalent_arguments_are_no_difference(tmp_path: Path) -> None:
    one = net(dense(3), lambda: layers.Dropout(0.1), lambda: layers.BatchNormalization())
    untouched = train(Script(one, DATA), tmp_path / "untouched")
    with pytest.raises(Death), dying_at(3):
        train(Script(one, DATA), tmp_path / "resumed")
    other = net(
        dense(3, name="mine"),
        lambda: layers.Dropout(0.1, name="drop_7"),
        lambda: layers.BatchNormalization(name="n"),
        loss=keras.losses.MeanSquaredError(),
    )
    resumed = train(Script(other, DATA), tmp_path / "resumed")
    assert list(resumed.state.values()) == list(untouched.state.values())
