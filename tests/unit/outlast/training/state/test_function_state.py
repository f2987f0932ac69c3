"""The variables around the functions of callbacks are restored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from outlast.training.state.function_state import is_data
from outlast.training.state.object_graph import ObjectGraph
from tests.support.training_harness import Death, Script, dying_at, train
from tests.support.training_zoo import ARRAYS, tiny

losses: list[float] = []
best = 9.0
counts: Counter[str] = Counter()
texts = ["a"] * 20_000
images = np.zeros(200_000)


def count(name: str) -> None:
    counts[name] += 1
    images[0] += 1
    texts[0] += "a"


def script(kept: list[Callable[[], Any]]) -> list[Any]:
    """Everyday callbacks with state in every place around a function."""
    losses.clear()
    counts.clear()
    globals()["best"] = 9.0
    seen: dict[str, Any] = {"steps": []}
    steps, weights, random = 0, np.zeros(2), np.random.default_rng(1)

    def on_batch(batch: int, logs: Any) -> None:
        nonlocal steps
        steps += 1
        seen["steps"].append(steps)
        weights[0] += logs["loss"] * random.random()
        losses.append(logs["loss"])
        count("steps")

    class Best(keras.callbacks.Callback):
        falls: list[float] = []  # noqa: RUF012 - as a new user would write it
        calls = 0

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.kept = [*getattr(self.model, "kept", []), weights.copy()]
            self.falls.append(logs["loss"])
            type(self).calls += 1

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            global best
            best = min(best, logs["loss"])

    mine = Best()

    def all_kept() -> list[Any]:
        around = [steps, seen, weights.tolist(), [*losses], best, dict(counts)]
        return [*around, Best.falls, Best.calls, [list(w) for w in mine.model.kept]]

    kept.append(all_kept)
    epochs = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.update(epoch=e))
    return [keras.callbacks.LambdaCallback(on_train_batch_end=on_batch), epochs, mine]


def test_variables_around_functions_go_on(tmp_path: Path) -> None:
    kept: list[Callable[[], Any]] = []
    training = Script(tiny(), {**ARRAYS, "save_every": 2}, lambda: script(kept))
    train(training, tmp_path / "whole")
    expected = kept[-1]()
    assert expected[0] == len(expected[3]) == expected[5]["steps"] == 6
    for step in (1, 2, 6):
        with pytest.raises(Death), dying_at(step):
            train(training, tmp_path / "killed")
    train(training, tmp_path / "killed")
    assert kept[-1]() == expected
    log = (tmp_path / "whole" / "attempts" / "0001" / "log.jsonl").read_text()
    assert "state_not_saved" not in log


def test_data_is_left_alone_and_an_iterator_is_named() -> None:
    steps = iter(range(9))

    def hook() -> None:
        images[0] += next(steps)
        texts.append("b")

    graph = ObjectGraph({"hook": hook})
    hook()
    assert graph.capture({}) == {"known": {}, "new": []}
    assert [(u.path, u.kind) for u in graph.unsaved] == [("hook.steps", "range_iterator")]


def test_a_module_is_not_looked_through() -> None:
    """TensorFlow alone has thousands of objects: a look at each, in every save, takes long."""
    module = ModuleType("of_the_user")
    module.__dict__["images"] = images
    assert is_data(SimpleNamespace(images=images))
    assert not is_data(module)
    assert not is_data(SimpleNamespace(module=module, images=images[:9]))
