"""A finished phase is returned only to the `fit` that trained it, whatever the script skips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from outlast import Loop
from outlast.training.errors import PhaseMismatch, PhaseUnfinished, StateMismatch
from tests.support.phase_scripts import X, Y, finished, net, trained
from tests.support.training_harness import (
    Death,
    all_state,
    begin_process,
    dying_at,
    process,
    rows,
)

# --- handed back only to the fit that it is ------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"model": lambda: net(0.01)}, "learning_rate"),
        ({"model": lambda: net(momentum=0.5)}, "optimizer"),
        ({"model": lambda: net(activation="tanh")}, "layer"),
        ({"model": lambda: net(dropout=0.3)}, "layer"),
        ({"model": lambda: net(units=4)}, "layer 0"),
        ({"model": lambda: net(loss=keras.losses.Huber(2.0))}, "loss"),
        ({"x": X + 1}, "content"),
        ({"x": X[:16], "y": Y[:16]}, "arguments, x"),
        ({"sample_weight": np.ones(32)}, "sample_weight"),
        ({"class_weight": {0: 2.0, 1: 1.0}, "y": (Y > 0).astype(int)}, "arguments, y"),
        ({"batch_size": 8}, "batch_size"),
        ({"shuffle": False}, "shuffle"),
        ({"validation_split": 0.5}, "validation_split"),
        ({"epochs": 1}, "epochs"),
    ],
    ids=[
        *("learning rate", "momentum", "activation", "dropout", "units", "loss", "other samples"),
        *("fewer samples", "sample_weight", "class_weight", "batch_size", "shuffle"),
        *("validation_split", "epochs"),
    ],
)
def test_a_finished_phase_is_not_returned_to_a_different_fit(
    tmp_path: Path, other: dict[str, Any], what: str
) -> None:
    begin_process()
    with process(tmp_path):
        trained(tmp_path)
    begin_process()
    model = other.get("model", net)()
    before = all_state(model)
    arguments = {key: value for key, value in other.items() if key != "model"}
    with process(tmp_path), pytest.raises(StateMismatch, match=what) as error:
        trained(tmp_path, model, **arguments)
    assert "Nothing was changed" in str(error.value) or "nothing was changed" in str(error.value)
    kept = {name: value for name, value in all_state(model).items() if name in before}
    assert kept == before


def test_a_finished_phase_is_not_returned_for_a_pipeline_of_other_data(tmp_path: Path) -> None:
    """Its elements have the same shapes."""

    def pipeline(more: float) -> Any:
        return tf.data.Dataset.from_tensor_slices((X + more, Y)).batch(16)

    def attempt(more: float, held_out: float = 0.0) -> dict[str, list[float]]:
        begin_process()
        with process(tmp_path):
            data = {"x": pipeline(more), "validation_data": pipeline(held_out)}
            found: dict[str, list[float]] = trained(
                tmp_path, y=None, batch_size=None, **data
            ).history
            return found

    first = attempt(0.0)
    assert attempt(0.0) == first
    with pytest.raises(PhaseMismatch, match="contents, x"):
        attempt(1.0)
    with pytest.raises(PhaseMismatch, match="contents, validation_data"):
        attempt(0.0, 1.0)


def test_a_script_that_skips_unnamed_finished_phases_is_refused(tmp_path: Path) -> None:
    """A search with a book of its own: after a death the first fit is another trial's."""
    book: dict[str, float] = {}

    def search(die: bool) -> None:
        begin_process()
        with process(tmp_path):
            for rate in (0.1, 0.01):
                if str(rate) not in book:
                    book[str(rate)] = trained(tmp_path, net(rate)).history["loss"][-1]
                    if die:
                        raise Death

    with pytest.raises(Death):
        search(die=True)
    with pytest.raises(PhaseMismatch, match=r"learning_rate.*0\.1.*0\.01.*name=") as error:
        search(die=False)
    assert list(book) == ["0.1"]
    assert error.value.exit_code == 3


def test_a_script_that_skips_named_phases_with_seeds_ends_as_untouched(tmp_path: Path) -> None:
    def search(folder: Path, book: dict[str, list[float]], die: bool = False) -> None:
        begin_process()
        with process(folder):
            for number, rate in enumerate((0.1, 0.01, 0.001)):
                if str(rate) in book:
                    continue
                keras.utils.set_random_seed(number)
                done = trained(folder, net(rate), name=f"rate {rate}")
                book[str(rate)] = done.history["loss"]
                if die:
                    raise Death

    whole: dict[str, list[float]] = {}
    search(tmp_path / "whole", whole)
    parts: dict[str, list[float]] = {}
    for _ in range(2):
        with pytest.raises(Death):
            search(tmp_path / "parts", parts, die=True)
    with pytest.raises(Death), dying_at(3):
        search(tmp_path / "parts", parts)
    search(tmp_path / "parts", parts)
    assert parts == whole
    assert len({losses[-1] for losses in parts.values()}) == 3


def test_a_finished_loop_is_returned_only_to_the_same_loop(tmp_path: Path) -> None:
    def looped(**changes: Any) -> list[float]:
        begin_process()
        model = changes.pop("model", net)()
        given = {"data": (X, Y), "batch_size": 16, "epochs": 1, "verbose": 0, **changes}
        with process(tmp_path):
            loop = Loop({"model": model}, job_dir=tmp_path, **given)
            for x, y in loop:
                loop.log(loss=model.train_on_batch(x, y))
        return loop.history.history["loss"]

    first = looped()
    assert looped() == first
    for changes, what in (
        ({"data": (X + 1, Y)}, "content"),
        ({"batch_size": 8}, "batch_size"),
        ({"model": lambda: net(0.01)}, "learning_rate"),
        ({"model": lambda: net(activation="tanh")}, "layer"),
    ):
        with pytest.raises(PhaseMismatch, match=what):
            looped(**changes)


def test_changes_that_a_resume_allows_and_refuses(tmp_path: Path) -> None:
    def resumed(model: Any = None, **arguments: Any) -> None:
        begin_process()
        with process(tmp_path), dying_at(4), pytest.raises(Death):
            trained(tmp_path, model or net(), epochs=9, **arguments)

    begin_process()
    with process(tmp_path), dying_at(4), pytest.raises(Death):
        trained(tmp_path, epochs=9)
    for other in ({"activation": "tanh"}, {"dropout": 0.3}, {"momentum": 0.5}):
        begin_process()
        with process(tmp_path), pytest.raises(StateMismatch):
            trained(tmp_path, net(**other), epochs=9)
    with pytest.raises(StateMismatch, match="content"), process(tmp_path):
        trained(tmp_path, x=X + 1, epochs=9)
    resumed(net(0.01))  # kept, with a warning


# --- by name, whatever the order -----------------------------------------------------------------


def test_an_unknown_name_begins_a_new_phase(tmp_path: Path) -> None:
    def one(name: str | None) -> Any:
        return trained(tmp_path, name=name).history

    begin_process()
    with process(tmp_path):
        first = one("a"), one(None)
    begin_process()
    with process(tmp_path):
        second = one("b")
    begin_process()
    with process(tmp_path):  # in another order, each its own
        assert one("b") == second
        assert one(None) == first[1]
        assert one("a") == first[0]
        one("c")
    assert finished(tmp_path) == [(0, "a"), (1, None), (2, "b"), (3, "c")]
    steps = [row["phase"] for row in rows(tmp_path) if row["kind"] == "step"]
    assert steps == sorted(steps)
    assert len(steps) == 16


def test_a_new_phase_waits_for_the_unfinished_one(tmp_path: Path) -> None:
    begin_process()
    with process(tmp_path), dying_at(2), pytest.raises(Death):
        trained(tmp_path, name="a")
    begin_process()
    with process(tmp_path), pytest.raises(PhaseUnfinished, match=r"named 'b'.*phase 0 \('a'\)"):
        trained(tmp_path, name="b")
    begin_process()
    with process(tmp_path):
        trained(tmp_path, name="a")
        trained(tmp_path, name="b")
    assert finished(tmp_path) == [(0, "a"), (1, "b")]
