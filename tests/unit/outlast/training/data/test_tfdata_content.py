"""The fingerprint of a tf.data pipeline: other data of the same shape is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from outlast.training.data.tfdata_graph import Pipeline
from outlast.training.errors import DataMismatch
from outlast.training.loaded_checkpoint import ACCEPT_OTHER_DATA
from tests.support.data_models import plain_model
from tests.support.data_samples import BATCH, SAMPLES, X, Y
from tests.support.training_harness import Death, Script, dying_at, train

D = tf.data.Dataset
Make = Callable[[], Any]


def slices(x: Any = X) -> Any:
    return D.from_tensor_slices((x, Y))


def other() -> Any:
    x = X.copy()
    x[0] = 5.0
    return x


def gathered(x: Any) -> Any:
    return D.range(SAMPLES).map(lambda i: tf.gather(x, i))


def lines(tmp_path: Path, text: str) -> Any:
    (tmp_path / "data.txt").write_text(text)
    return tf.data.TextLineDataset(str(tmp_path / "data.txt"))


SAME: dict[str, tuple[Make, Make]] = {
    "again": (lambda: slices().shuffle(9, seed=1), lambda: slices().shuffle(9, seed=1)),
    "more threads": (
        lambda: slices().map(lambda x, y: (x + 1, y), num_parallel_calls=2).prefetch(1),
        lambda: slices().map(lambda x, y: (x + 1, y), num_parallel_calls=4).prefetch(3),
    ),
    "another folder": (
        lambda: D.from_tensor_slices(["/a/1.jpg", "/a/2.jpg"]),
        lambda: D.from_tensor_slices(["/b/c/1.jpg", "/b/c/2.jpg"]),
    ),
    "another cache file": (lambda: slices().cache("/a"), lambda: slices().cache("/b")),
}
DIFFERENT: dict[str, tuple[Make, Make]] = {
    "samples": (slices, lambda: slices(other())),
    "files": (
        lambda: D.from_tensor_slices(["/a/1.jpg", "/a/2.jpg"]),
        lambda: D.from_tensor_slices(["/a/1.jpg", "/a/3.jpg"]),
    ),
    "a function": (
        lambda: slices().map(lambda x, y: (x + 1, y)),
        lambda: slices().map(lambda x, y: (x * 2, y)),
    ),
    "a constant of a function": (
        lambda: slices().map(lambda x, y: (x + 1, y)),
        lambda: slices().map(lambda x, y: (x + 2, y)),
    ),
    "captured data": (
        lambda: gathered(tf.constant(X)),
        lambda: gathered(tf.constant(other())),
    ),
    "captured arrays": (lambda: gathered(X), lambda: gathered(other())),
    "the batch size": (lambda: slices().batch(8), lambda: slices().batch(16)),
    "the buffer": (lambda: slices().shuffle(8, seed=1), lambda: slices().shuffle(16, seed=1)),
    "what is taken": (lambda: slices().take(16), lambda: slices().take(24)),
    "one input of two": (
        lambda: D.zip((slices(), slices())),
        lambda: D.zip((slices(), slices(other()))),
    ),
    "a range": (lambda: D.range(9), lambda: D.range(1, 10)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_the_batches_does_not_count(name: str) -> None:
    one, two = SAME[name]
    assert Pipeline(one()).content == Pipeline(two()).content


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_data_has_another_digest(name: str) -> None:
    one, two = DIFFERENT[name]
    assert Pipeline(one()).content != Pipeline(two()).content


def test_a_file_that_has_another_size_is_other_data(tmp_path: Path) -> None:
    assert (
        Pipeline(lines(tmp_path, "1\n2\n")).content != Pipeline(lines(tmp_path, "1\n22\n")).content
    )


def test_seeds_are_kept_apart() -> None:
    """They may be derived from a global seed, which a script may set otherwise each time."""
    one, two = (Pipeline(slices().shuffle(9, seed=seed)) for seed in (1, 2))
    assert one.content == two.content
    assert one.seeds != two.seeds


def log_of(folder: Path, attempt: int) -> str:
    return (folder / f"attempts/{attempt:04d}/log.jsonl").read_text()


def script_of(make: Make, **arguments: Any) -> Script:
    data: dict[str, Any] = {}

    def build() -> Any:
        data.update({"x": make(), "epochs": 2, "save_every": 2, **arguments})
        return plain_model()

    return Script(build, data)


def test_other_data_within_an_epoch_is_refused_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = script_of(lambda: slices().batch(BATCH))
    second = script_of(lambda: slices(other()).batch(BATCH))
    with dying_at(5), pytest.raises(Death):
        train(first, tmp_path)
    with pytest.raises(DataMismatch, match=f"(?s)contents, x.*{ACCEPT_OTHER_DATA}"):
        train(second, tmp_path)
    monkeypatch.setenv(ACCEPT_OTHER_DATA, "1")
    assert len(train(second, tmp_path).history["loss"]) == 2
    assert '"event": "data_changed"' in log_of(tmp_path, 3)


def test_other_validation_data_and_seeds(tmp_path: Path) -> None:
    def of(validation: Any, seed: int) -> Script:
        return script_of(
            lambda: slices().shuffle(9, seed=seed).batch(BATCH),
            validation_data=slices(validation).batch(BATCH),
        )

    with dying_at(5), pytest.raises(Death):
        train(of(X, 1), tmp_path)
    with pytest.raises(DataMismatch, match="contents, validation_data"):
        train(of(other(), 1), tmp_path)
    train(of(X, 2), tmp_path)
    assert "its seeds or first batches are not those of the checkpoint" in log_of(tmp_path, 3)


class Python:
    """A function that keeps state, in a pipeline."""

    def __call__(self, x: Any, y: Any) -> Any:
        drawn = tf.numpy_function(lambda v: v, [x], tf.float32)
        return tf.ensure_shape(drawn, [4]), y


def test_a_doubt_is_named_once_a_job_with_the_line_of_the_user(tmp_path: Path) -> None:
    def doubled(x: Any, y: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda v: v * 2, [x], tf.float32), [4]), y

    script = script_of(lambda: slices().map(doubled).batch(BATCH), epochs=1)
    for step in (3, 5):
        with dying_at(step), pytest.raises(Death):
            train(script, tmp_path)
    train(script, tmp_path)
    line = doubled.__code__.co_firstlineno + 1
    assert f"test_tfdata_content.py:{line} keeps state" in log_of(tmp_path, 1)
    assert [log_of(tmp_path, i).count("inexact_data_found") for i in (1, 2, 3)] == [1, 0, 0]


def test_an_operation_that_is_not_in_the_table_is_named(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    found = Pipeline(slices().snapshot(str(tmp_path)))
    assert found.inexact_reasons()[0].startswith(
        "snapshot in the pipeline: it reads what an earlier"
    )
    unknown = Pipeline(slices().apply(tf.data.experimental.copy_to_device("/cpu:0")))
    assert (
        "copytodevice in the pipeline: it is not among the operations"
        in unknown.inexact_reasons()[0]
    )


def test_a_lock_that_a_kill_left_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    script = script_of(lambda: slices().shuffle(SAMPLES, seed=3).cache(str(file)).batch(BATCH))
    with dying_at(5), pytest.raises(Death):
        train(script, tmp_path / "job")
    lock = Path(f"{file}_0.lockfile")
    lock.write_text("Created at: 0")  # TensorFlow removes its own when an iterator ends
    ended = train(script, tmp_path / "job")
    assert not lock.exists()
    assert "cache_locks_removed" in log_of(tmp_path / "job", 2)
    untouched = script_of(
        lambda: slices().shuffle(SAMPLES, seed=3).cache(str(tmp_path / "two")).batch(BATCH)
    )
    assert repr(train(untouched, tmp_path / "untouched").history) == repr(ended.history)
    assert np.isfinite(ended.history["loss"]).all()
