"""Every kind of part in a loop's state is restored in place, or refused by name."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast import Loop
from outlast.training.errors import NotSupported, StateMismatch
from outlast_checkpoints.errors import InvalidName, UsageError
from tests.support.loop_harness import MakeLoop, assert_as_plain, assert_same_loop, run, run_plain
from tests.support.training_harness import Death, dying_at, process, stopping_at


@dataclass
class Counts:
    steps: int = 0
    seen: list[int] = field(default_factory=list)


class Speaking:
    """A custom object with get_state and set_state."""

    def __init__(self) -> None:
        self.inner = {"at": 0, "draws": np.random.RandomState(4)}

    def get_state(self) -> Any:
        return self.inner

    def set_state(self, state: Any) -> None:
        self.inner = state


class Own:
    """An object of the user's own that says nothing."""

    def __init__(self) -> None:
        self.average = tf.Variable([1.0, 2.0])
        self.mean = keras.metrics.Mean()
        self.counts = Counts()
        self.best: Any = None


def parts() -> dict[str, Any]:
    """Return one part of every kind, newly made as in a script."""
    dense = layers.Dense(2)
    dense.build((None, 3))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(dense.trainable_variables)
    return {
        "layer": dense,
        "optimizer": optimizer,
        "metric": keras.metrics.Mean(),
        "keras variable": keras.Variable(0.0),
        "variable": tf.Variable([0, 0]),
        "half": keras.Variable(np.zeros(3), dtype="bfloat16"),
        "seed": keras.random.SeedGenerator(3),
        "generator": tf.random.Generator.from_seed(3),
        "python": random.Random(3),
        "numpy": np.random.default_rng(3),
        "old numpy": np.random.RandomState(3),
        "array": np.zeros(3),
        "list": [],
        "dict": {"inner": {"epsilon": 1.0}, 3: (1, 2)},
        "deque": deque(maxlen=3),
        "set": set(),
        "counter": Counter(),
        "ordered": OrderedDict(),
        "default": defaultdict(list),
        "namespace": SimpleNamespace(temperature=1.0),
        "counts": Counts(),
        "speaking": Speaking(),
        "own": Own(),
        "words": np.array(["a", "b"]),
        "nested": [keras.metrics.Sum(), {"deep": (np.zeros(2), tf.Variable(1.0))}, [0]],
    }


def change_everything(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
    """Change every part in place, depending on its current value."""
    state = {name.replace(" ", "_"): part for name, part in parts().items()}
    s = SimpleNamespace(**state)
    loop = make(state, steps_per_epoch=3, epochs=2)
    for step in loop:
        gradients = [v + step for v in s.layer.trainable_variables]
        s.optimizer.apply(gradients, s.layer.trainable_variables)
        s.metric.update_state(step)
        s.keras_variable.assign_add(1.0)
        s.variable.assign_add([step, 1])
        s.half.assign(s.half + 0.5)
        drawn = float(keras.random.normal((), seed=s.seed)) + float(s.generator.normal(()))
        drawn += s.python.random() + s.numpy.random() + s.old_numpy.rand()
        s.array[step % 3] += drawn
        s.list.append(drawn)
        s.dict["inner"]["epsilon"] *= 0.9
        s.dict["last"] = (step, "text", None, True)
        s.deque.append(step)
        s.set.add(step)
        s.counter[str(step % 2)] += 1
        s.ordered[step] = drawn
        s.default[step % 2].append(step)
        s.namespace.temperature *= 0.5
        s.counts.steps += 1
        s.counts.seen.append(step)
        s.own.average.assign(s.own.average * 0.5 + step)
        s.own.mean.update_state(step)
        s.own.counts.seen.append(step)
        s.own.best = {"step": step, "counts": s.own.counts}
        s.words[step % 2] = str(step)
        s.speaking.inner["at"] += s.speaking.inner["draws"].rand()
        s.nested[0].update_state(drawn)
        s.nested[1]["deep"][0][0] += drawn
        s.nested[1]["deep"][1].assign_add(drawn)
        s.nested[2][0] += 1
        loop.log(drawn=drawn)
    del state["speaking"], state["half"], state["own"]
    state["words"] = s.words.tolist()
    own = s.own
    assert own.best is None or own.best["counts"] is own.counts
    state["of own"] = [own.average.numpy(), own.mean.result().numpy(), own.counts.seen, own.best]
    state["half"] = np.asarray(s.half).view(np.uint16)
    state["spoken"] = s.speaking.inner
    return loop, state


def test_every_kind_of_part_is_restored(tmp_path: Path) -> None:
    whole = run(change_everything, tmp_path / "whole")
    assert_as_plain(whole, run_plain(change_everything))
    folder = tmp_path / "parts"
    for how, step in ((stopping_at, 1), (dying_at, 3), (dying_at, 4), (stopping_at, 5)):
        with pytest.raises((Death, SystemExit)), how(step):
            run(change_everything, folder, save_every="2")
    assert_same_loop(whole, run(change_everything, folder, save_every="2"))


# --- what is refused, before anything is saved ---------------------------------------------------


class Unstorable(Speaking):
    def get_state(self) -> Any:
        return {"hook": print}


def unbuilt() -> Any:
    return keras.Sequential([layers.Dense(1)])


def frozen() -> Any:
    model = keras.Sequential([layers.Input((2,)), layers.Dense(1)])
    model.compile("adam", "mse")
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda: {"net": unbuilt()}, "'net' is not built"),
        (lambda: {"nets": [frozen()]}, "'nets.0.optimizer' is not built"),
        (lambda: {"rule": keras.optimizers.Adam()}, "'rule' is not built"),
        (lambda: {"top": layers.Dense(1)}, "'top' is not built"),
        (lambda: {"epsilon": 0.5}, "'epsilon' is the float 0.5, which never changes"),
        (lambda: {"pair": (1, [2])}, "'pair.0' is the int 1"),
        (lambda: {"env": object()}, "'env' is of type object, which has no known state"),
        (lambda: {"envs": [np.zeros(2), object()]}, "'envs.1' is of type object"),
        (lambda: {"things": np.array([print])}, "state of 'things' cannot be stored"),
        (lambda: {"env": Unstorable()}, "state of 'env' cannot be stored"),
        (lambda: {"a": [np.zeros(1), print], "a.0": []}, "'a.1' is of type builtin"),
        (lambda: {"a": (np.zeros(1),), "a.0": []}, "'a.0' names two parts"),
        (lambda: 5, "'model' is the int 5"),
    ],
)
def test_an_invalid_state_is_named(state: Callable[[], Any], words: str, tmp_path: Path) -> None:
    with process(tmp_path), pytest.raises(UsageError, match=words):
        next(iter(Loop(state(), steps_per_epoch=1, job_dir=tmp_path)))


@pytest.mark.parametrize("state", [{"a/b": []}, {"nets": {"a b": np.zeros(1), "c": print}}])
def test_a_name_that_cannot_be_a_file_name_is_refused(state: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidName, match="state is"):
        Loop(state, steps_per_epoch=1, job_dir=tmp_path)


def test_a_value_that_becomes_unstorable_is_reported_at_the_next_save(tmp_path: Path) -> None:
    notes: list[Any] = []

    def train() -> None:
        for _ in Loop({"notes": notes}, steps_per_epoch=4, job_dir=tmp_path, save_every=1):
            notes.append(print if len(notes) == 2 else 1)

    with process(tmp_path), pytest.raises(NotSupported, match=r"builtin.* at notes\[2\]"):
        train()


# --- another state than the checkpoint's ---------------------------------------------------------


def net(units: int = 2, optimizer: Any = "sgd", loss: str = "mse") -> Any:
    model = keras.Sequential([layers.Input((3,)), layers.Dense(units)])
    model.compile(optimizer, loss)
    return model


def rule(kind: Any = keras.optimizers.Adam, **options: Any) -> Any:
    made = kind(0.1, **options)
    made.build([keras.Variable(np.zeros(3))])
    return made


MADE: dict[str, Callable[[], Any]] = {
    "net": net,
    "rule": rule,
    "averaged": lambda: rule(use_ema=True),
    "array": lambda: np.zeros(3),
    "list": lambda: [1.0],
    "mean": keras.metrics.Mean,
    "rng": lambda: np.random.default_rng(1),
}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"more": list}, "more: the script's state has it, the checkpoint does not"),
        ({"list": None}, "list: the checkpoint has it, the script's state does not"),
        ({"list": dict}, "list: it is list in the checkpoint, dict in the script"),
        ({"net": lambda: net(3)}, r"layers/dense/vars/0 .*shape \(3, 2\), the script has \(3, 3\)"),
        ({"net": lambda: net(optimizer="adam")}, "optimizer"),
        ({"net": lambda: net(loss="mae")}, "loss"),
        (
            {"rule": lambda: rule(keras.optimizers.SGD)},
            "rule: it is Adam in the checkpoint, SGD in",
        ),
        ({"rule": lambda: rule(amsgrad=True)}, "rule/4: the script has it"),
        ({"averaged": rule}, "averaged/4: the checkpoint has it, the script does not"),
        ({"array": lambda: np.zeros(4)}, r"array: the checkpoint has shape \(3,\) of float64"),
        ({"array": lambda: np.zeros(3, "int32")}, "array: .*the script .* of int32"),
        ({"mean": keras.metrics.MeanSquaredError}, "mean: it is Mean in the checkpoint"),
        ({"rng": lambda: np.random.Generator(np.random.MT19937(1))}, "rng: .*PCG64.*MT19937"),
    ],
)
def test_a_changed_state_is_named_and_nothing_is_changed(
    changes: dict[str, Any], what: str, tmp_path: Path, saved: Path
) -> None:
    made = {name: make for name, make in {**MADE, **changes}.items() if make is not None}
    state = {name: make() for name, make in made.items()}
    variables = [v for part in state.values() for v in getattr(part, "variables", [])]
    before = [v.numpy() for v in variables]
    with process(saved), pytest.raises(StateMismatch, match=what):
        next(iter(Loop(state, steps_per_epoch=4, job_dir=saved)))
    assert all((v.numpy() == b).all() for v, b in zip(variables, before, strict=True))
    if "list" in state and isinstance(state["list"], list):
        assert state["list"] == [1.0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that stopped in the middle of its epoch, with every part changed."""
    folder = tmp_path_factory.mktemp("saved")
    state = {name: make() for name, make in MADE.items()}

    def train() -> None:
        for _ in Loop(state, steps_per_epoch=4, job_dir=folder):
            for variable in (*state["net"].variables, *state["rule"].variables):
                variable.assign_add(keras.ops.ones_like(variable))
            state["list"].append(2.0)

    with stopping_at(2), process(folder), pytest.raises(SystemExit):
        train()
    return folder
