"""Invalid arguments and data are refused by name, before anything is trained or overwritten."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast import fit
from outlast.attempt import bare
from outlast.training.errors import Diverged, NotSupported
from outlast_checkpoints.errors import UsageError
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    keras_fit,
    process,
    rows,
    train,
)
from tests.support.training_zoo import ARRAYS, SAMPLES, X, Y, own, tiny

PLAIN = Script(tiny(), ARRAYS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", "3"),
        ("epochs", True),
        ("epochs", None),
        ("initial_epoch", -1),
        ("initial_epoch", "0"),
        ("batch_size", 0),
        ("batch_size", -8),
        ("batch_size", 1.5),
        ("batch_size", "8"),
        ("validation_split", 1),
        ("validation_split", -0.1),
        ("validation_split", float("nan")),
        ("validation_split", "0.1"),
        ("validation_freq", 0),
        ("validation_freq", "1"),
        ("validation_freq", 1.5),
        ("validation_freq", (1, 2)),
        ("shuffle", "yes"),
        ("seed", "abc"),
        ("seed", 1.5),
        ("seed", True),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", np.zeros(3)),
        ("save_every", "often"),
        ("save_every", 0),
        ("save_every", -5),
        ("save_every", ["epoch"]),
        ("keep", "some"),
        ("keep", 0),
        ("keep", -1),
        ("keep", 1.5),
        ("name", 5),
        ("name", ""),
        ("verbose", "loud"),
        ("verbose", 7),
        ("steps_per_epoch", 1.5),
        ("max_queue_size", 0),
        ("steps_per_epoch", np.float64(2)),
        ("epochs", np.bool_(True)),
        ("validation_steps", 1.5),
        ("validation_steps", "1"),
        ("validation_batch_size", 1.5),
        ("verbose", np.zeros(3)),
        ("shuffle", np.zeros(3)),
    ],
)
def test_a_bad_argument_is_named(tmp_path: Path, field: str, value: Any) -> None:
    begin_process()
    model = PLAIN.build()
    arguments = {**ARRAYS, "verbose": 0, "validation_data": (X[:3], Y[:3]), field: value}
    with process(tmp_path), pytest.raises(UsageError) as error:
        fit(model, job_dir=tmp_path / "job", **arguments)
    assert error.value.fields["field"] == field
    assert not (tmp_path / "job" / "checkpoints").exists()


HELD_OUT = (X[:7], Y[:7])
# What a caller may give, and the plain value that it stands for.
NUMBERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epochs": ({"epochs": np.int64(2)}, {}),
    "epochs of one value": ({"epochs": np.array(2)}, {}),
    "epochs as a tensor": ({"epochs": tf.constant(2)}, {}),
    "batch_size": ({"batch_size": np.int32(8)}, {}),
    "seed": ({"seed": np.int64(3), "shuffle": True}, {"seed": 3, "shuffle": True}),
    "initial_epoch": ({"initial_epoch": np.int64(1)}, {"initial_epoch": 1}),
    "steps_per_epoch": ({"steps_per_epoch": np.int64(1)}, {"steps_per_epoch": 1}),
    "max_queue_size": ({"max_queue_size": np.uint8(3)}, {"max_queue_size": 3}),
    "validation_steps": (
        {"validation_data": HELD_OUT, "validation_steps": np.int64(1)},
        {"validation_data": HELD_OUT, "validation_steps": 1},
    ),
    "validation_batch_size": (
        {"validation_data": HELD_OUT, "validation_batch_size": np.int64(3)},
        {"validation_data": HELD_OUT, "validation_batch_size": 3},
    ),
    "validation_freq": (
        {"validation_data": HELD_OUT, "validation_freq": np.int64(2)},
        {"validation_data": HELD_OUT, "validation_freq": 2},
    ),
    "validation_freq as a list": (
        {"validation_data": HELD_OUT, "validation_freq": [np.int64(2)]},
        {"validation_data": HELD_OUT, "validation_freq": [2]},
    ),
    "validation_split": ({"validation_split": np.array(0.25)}, {"validation_split": 0.25}),
    "no validation_split": ({"validation_split": None}, {}),
    "class_weight": (
        {"class_weight": {np.int64(0): np.float32(1), np.int64(1): np.int8(2), 2: 0.5}},
        {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
    ),
    "shuffle": ({"shuffle": np.bool_(False)}, {}),
    "shuffle=0": ({"shuffle": 0}, {}),
    "shuffle=None": ({"shuffle": None}, {}),
    "verbose": ({"verbose": np.int64(0)}, {}),
    "verbose=False": ({"verbose": np.bool_(False)}, {}),
    "verbose=None": ({"verbose": None}, {}),
    "verbose in words": ({"verbose": "0"}, {}),
    "save_every": ({"save_every": np.int64(2)}, {"save_every": 2}),
    "keep": ({"keep": np.int64(2)}, {"keep": 2}),
    "name": ({"name": np.str_("one")}, {"name": "one"}),
    "jit_compile": ({"jit_compile": np.bool_(False)}, {"jit_compile": False}),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_are_accepted_as_those_of_python(tmp_path: Path, name: str) -> None:
    given, plain = NUMBERS[name]
    end = train(PLAIN.but(**given), tmp_path / "a")
    assert_same_end(end, train(PLAIN.but(**plain), tmp_path / "b"))
    if "validation_freq" not in given and not {"verbose", "keep", "save_every", "seed"} & set(
        given
    ):
        keras_takes = {n: v for n, v in given.items() if n not in ("max_queue_size", "jit_compile")}
        assert_same_end(keras_fit(PLAIN.but(**keras_takes)), end, rows=False)


def test_a_number_of_numpy_may_be_compiled_in(tmp_path: Path) -> None:
    script = PLAIN.with_build(tiny(steps_per_execution=np.int64(2)))
    with pytest.raises(Death), dying_at(3):
        train(script.but(save_every=1), tmp_path)
    assert_same_end(keras_fit(script), train(script.but(save_every=1), tmp_path), rows=False)


@pytest.mark.parametrize("verbose", ["2", np.str_("2"), np.int64(2), 2.0])
def test_verbose_two_prints_one_line_per_epoch_in_any_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verbose: Any
) -> None:
    train(PLAIN.but(verbose=verbose), tmp_path)
    assert "3/3 - " in capsys.readouterr().out


def test_without_a_job_directory_the_error_says_what_to_do() -> None:
    begin_process()
    with pytest.raises(UsageError, match=r"job_dir.*outlast run"):
        fit(PLAIN.build(), **ARRAYS)


def test_an_uncompiled_model_is_refused_as_keras_does(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((6,)), layers.Dense(3)])
    with process(tmp_path), pytest.raises(ValueError, match=r"call `compile\(\)` before"):
        fit(model, X, Y, job_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": None}, ValueError, "x"),
        ({"x": "text"}, ValueError, "text|x"),
        ({"x": object()}, ValueError, "object"),
        ({"x": X[:5]}, ValueError, "cardinality"),
        ({"sample_weight": np.ones(5)}, ValueError, "cardinality"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "no samples"),
        ({"class_weight": {0: 1.0}, "sample_weight": np.ones(SAMPLES)}, ValueError, "same time"),
        ({"x": iter([(X, Y)]), "batch_size": None}, ValueError, "`y`"),
        ({"validation_split": 0.99}, ValueError, "validation_split"),
    ],
    ids=[
        "none",
        "text",
        "object",
        "fewer inputs than targets",
        "fewer weights",
        "no samples",
        "both weights",
        "targets beside a generator",
        "nothing left to train",
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(PLAIN.but(**arguments), tmp_path)


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Any:
        return X[:8], Y[:8]


STREAMS: dict[str, Callable[[], Any]] = {
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
    "PyDataset": Batches,
    "generator": lambda: ((X[:8], Y[:8]) for _ in range(9)),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_arguments_of_arrays_are_refused_for_other_data_with_the_message_of_keras(
    tmp_path: Path, kind: str
) -> None:
    """Keras refuses some of these arguments and ignores others, such as batch_size."""
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    given: dict[str, Any] = {
        "y": Y,
        "sample_weight": np.ones(SAMPLES),
        "class_weight": weights,
        "validation_split": 0.2,
        "batch_size": 4,
        "shuffle": True,
    }
    refused = set()
    for field, value in given.items():
        arguments = {"epochs": 1, "steps_per_epoch": 2, "shuffle": False, field: value}
        answers = []
        for run in (keras_fit, lambda script, to=tmp_path / field: train(script, to)):
            try:
                end = run(Script(tiny(), {"x": STREAMS[kind](), **arguments}))
                answers.append(repr(end.history))
            except ValueError as error:
                said = re.sub(r"0x\w+", "", str(error))
                if kind == "generator":  # Keras before 3.15 calls it a PyDataset
                    said = said.replace("PyDataset", "generator")
                answers.append(said)
                refused.add(field)
        assert answers[0] == answers[1], field
    assert refused == {"y", "sample_weight", "validation_split"} | (
        {"class_weight"} if kind == "generator" else set()
    )


def test_a_wrong_shape_raises_the_error_of_keras(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="incompatible"):
        train(PLAIN.but(x=X[:, :4]), tmp_path)
    # and the job is not spoilt by it
    assert train(PLAIN, tmp_path).epoch == [0, 1]


def test_two_phases_of_one_name_are_refused(tmp_path: Path) -> None:
    begin_process()
    model = PLAIN.build()
    with process(tmp_path):
        fit(model, job_dir=tmp_path, name="one", verbose=0, **ARRAYS)
        with pytest.raises(UsageError, match="name"):
            fit(model, job_dir=tmp_path, name="one", verbose=0, **ARRAYS)


def with_own(name: str, *, on_the_class: bool) -> Any:
    """Return a compiled model with a method of its own, which raises."""

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("never called")

    kind = type("Special", (keras.Sequential,), {name: never} if on_the_class else {})
    model = kind([layers.Input((6,)), layers.Dense(3)])
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    if not on_the_class:
        setattr(model, name, never)
    return model


@pytest.mark.parametrize("on_the_class", [True, False])
@pytest.mark.parametrize("name", ["make_train_function", "train_function"])
def test_a_custom_training_method_is_refused_by_name(
    tmp_path: Path, name: str, on_the_class: bool
) -> None:
    if name == "train_function" and on_the_class:
        pytest.skip("Keras sets this attribute of the instance")
    begin_process()
    model = with_own(name, on_the_class=on_the_class)
    with process(tmp_path), pytest.raises(NotSupported, match=f"Special overrides {name}"):
        fit(model, job_dir=tmp_path, **ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_keras_has_trained_before_is_trained(tmp_path: Path) -> None:
    """Keras' own train_function is not the user's."""
    begin_process()
    model = PLAIN.build()
    model.fit(**ARRAYS, verbose=0)
    with process(tmp_path):
        assert fit(model, job_dir=tmp_path, verbose=0, **ARRAYS).epoch == [0, 1]


class OwnEvaluation(keras.Sequential):  # type: ignore[misc]
    """An evaluate that doubles the loss, and a test function that adds one to it."""

    def evaluate(self, *args: Any, **options: Any) -> Any:
        logs = super().evaluate(*args, **options)
        return {**logs, "loss": 2 * logs["loss"]}

    def make_test_function(self, force: bool = False) -> Any:
        super().make_test_function(force=True)
        keras_own = self.test_function
        self.test_function = lambda iterator: {**keras_own(iterator), "seen": tf.constant(1.0)}
        return self.test_function


def test_custom_evaluate_and_test_functions_are_called(tmp_path: Path) -> None:
    def build() -> Any:
        model = OwnEvaluation([layers.Input((6,)), layers.Dense(3, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        return model

    script = Script(build, {**ARRAYS, "validation_data": HELD_OUT})
    theirs = keras_fit(script)
    assert theirs.history["val_loss"] != keras_fit(script.with_build(tiny())).history["val_loss"]
    assert_same_end(theirs, train(script, tmp_path), rows=False)


def test_a_loss_that_is_nan_ends_the_training_if_so_configured(tmp_path: Path) -> None:
    begin_process()
    x = X.copy()
    x[9] = np.nan
    model = tiny()()
    with process(tmp_path):
        ctx = bare.open_bare(tmp_path)
        ctx.spec = msgspec.structs.replace(ctx.spec, on_nan="stop")
        with pytest.raises(Diverged, match=r"nan at step 2 \(epoch 0\)"):
            fit(model, **{**ARRAYS, "x": x}, job_dir=tmp_path, verbose=0)
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "step"] in ([], [1], [1, 2])


def test_stateful_random_ops_are_named_at_the_start(tmp_path: Path) -> None:
    class Noisy(layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.random.shuffle(x, seed=3)

    def build() -> Any:
        model = keras.Sequential([layers.Input((6,)), Noisy(), layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    end = train(Script(build, ARRAYS), tmp_path)
    assert end.epoch == [0, 1]
    logs = (tmp_path / "attempts" / "0001" / "log.jsonl").read_text()
    assert logs.count("inexact_ops_found") == 1
    assert "RandomShuffle" in logs


def test_nothing_warns(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Script(own(), ARRAYS), tmp_path)
