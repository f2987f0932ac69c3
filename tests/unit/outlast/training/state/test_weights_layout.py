"""Keras' `load_weights` reads the whole weights file of a checkpoint, without warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from outlast.training.keras_internals.versions import number
from outlast_checkpoints.format.layout import WEIGHTS_FILE
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.training_harness import Death, Script, begin_process, dying_at, train

# Keras' own: its save_weights reads variables in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RNG = np.random.default_rng(9)
X = RNG.normal(size=(16, 6)).astype("float32")
TOKENS = RNG.integers(0, 9, (16, 6))
IMAGES = RNG.normal(size=(16, 6, 6, 1)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")


def compiled(model: Any, optimizer: Any = None, **options: Any) -> Any:
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", run_eagerly=True, **options)
    return model


def sequential() -> Any:
    parts = [layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.1), layers.Dense(2)]
    return compiled(keras.Sequential([layers.Input((6,)), *parts]), metrics=["mae"])


def functional() -> Any:
    x = layers.Input((6, 6, 1))
    h = layers.RandomFlip()(x)
    h = layers.Conv2D(3, 3, name="mine")(h)
    h = layers.Conv2D(3, 3, name="other")(h)
    h = layers.Flatten()(layers.LayerNormalization()(h))
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True, amsgrad=True)
    return compiled(keras.Model(x, layers.Dense(2)(h)), optimizer)


def nested() -> Any:
    inner = keras.Sequential([layers.Input((6,)), layers.Dense(4), layers.Dense(4)], name="block")
    x = layers.Input((6,))
    deeper = keras.Model(x, layers.Dense(3)(inner(x)))
    y = layers.Input((6,))
    outer = keras.Model(y, layers.Dense(2)(layers.Concatenate()([deeper(y), inner(y)])))
    return compiled(outer, keras.optimizers.SGD(0.01, momentum=0.9))


# Older ones leave containers within containers out, when they save and when they load.
READS_NESTED_CONTAINERS = number(keras.__version__) >= (3, 15)


def in_a_container(layer: Any) -> Any:
    return [layer] if READS_NESTED_CONTAINERS else layer


def only(part: Any) -> Any:
    return part if isinstance(part, layers.Layer) else part[0]


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts = [layers.Dense(6), layers.Dense(6)]
        self.by_name = {
            "norm": layers.LayerNormalization(),
            "more": in_a_container(layers.Dense(6)),
        }
        self.own = self.add_weight(shape=(6,), name="own")

    def build(self, shape: Any) -> None:
        for part in [*self.parts, self.by_name["norm"], only(self.by_name["more"])]:
            part.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return only(self.by_name["more"])(self.by_name["norm"](x)) * self.own


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = [Block(), Block()]
        self.shared = self.blocks[0]
        self.head = layers.Dense(2)
        self.drop = layers.Dropout(0.2)

    def call(self, x: Any, training: bool = False) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(self.drop(x, training=training))


def subclassed() -> Any:
    model = compiled(Subclassed())
    model(X[:1])
    return model


def attention() -> Any:
    x = layers.Input((6,))
    h = layers.Embedding(9, 8)(x)
    h = layers.MultiHeadAttention(2, 4, dropout=0.1)(h, h)
    h = layers.Bidirectional(layers.LSTM(3))(h)
    return compiled(keras.Model(x, layers.Dense(2)(h)), keras.optimizers.Lion(0.001))


def half() -> Any:
    policy = keras.DTypePolicy("mixed_float16")
    parts = [layers.Dense(5, dtype=policy), layers.Dense(2, dtype="float32")]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    return compiled(keras.Sequential([layers.Input((6,)), *parts]), optimizer)


def small_floats() -> Any:
    parts = [layers.Dense(5, dtype="bfloat16"), layers.Dense(2, dtype="bfloat16")]
    return compiled(keras.Sequential([layers.Input((6,)), *parts]))


def with_variables_computed() -> Any:
    table = layers.Dense(6)
    model = keras.Sequential([layers.Input((6,)), table, layers.Normalization(), layers.Dense(2)])
    model.layers[1].adapt(X)
    return compiled(model)


MODELS: dict[Callable[[], Any], Any] = {
    sequential: X,
    functional: IMAGES,
    nested: X,
    subclassed: X,
    attention: TOKENS,
    half: X,
    small_floats: X,
    with_variables_computed: X,
}


def datasets(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the dtype, shape and bytes of every dataset, and the attributes of every group."""
    found: dict[str, Any] = {}
    attributes: dict[str, dict[str, Any]] = {}
    with h5py.File(path) as file:

        def visit(name: str, item: Any) -> None:
            attributes[name] = dict(item.attrs)
            if isinstance(item, h5py.Dataset):
                found[name] = (item.dtype, item.shape, item[()].tobytes())

        file.visititems(visit)
    return found, attributes


def last_weights(folder: Path) -> Path:
    newest, damages = CheckpointStore(open_storage(folder)).latest()
    assert newest is not None
    assert damages == []
    return folder / "checkpoints" / newest.checkpoint / WEIGHTS_FILE


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_keras_reads_it_without_a_warning_optimizer_included(
    tmp_path: Path, build: Callable[[], Any]
) -> None:
    script = Script(build, {"x": MODELS[build], "y": Y, "batch_size": 8, "epochs": 2})
    end = train(script, tmp_path / "job")
    path = last_weights(tmp_path / "job")

    end.model.save_weights(tmp_path / "keras.weights.h5")
    ours, theirs = datasets(path), datasets(tmp_path / "keras.weights.h5")
    assert list(ours[0]) == list(theirs[0])
    assert ours == theirs

    begin_process(seed=1)
    model = build()
    model.optimizer.build(model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_weights(path)
    for mine, his in ((model, end.model), (model.optimizer, end.model.optimizer)):
        assert [np.asarray(v).tobytes() for v in mine.variables if "seed" not in v.path] == [
            np.asarray(v).tobytes() for v in his.variables if "seed" not in v.path
        ]
    assert int(model.optimizer.iterations) > 0


def test_a_checkpoint_in_mid_epoch_is_readable_too(tmp_path: Path) -> None:
    script = Script(
        sequential, {"x": X, "y": Y, "batch_size": 4, "epochs": 2, "save_every": 3, "keep": "all"}
    )
    with pytest.raises(Death), dying_at(4):
        train(script, tmp_path)
    begin_process(seed=1)
    model = sequential()
    model.optimizer.build(model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_weights(last_weights(tmp_path))
    assert int(model.optimizer.iterations) == 3


def test_the_weights_of_a_finished_phase_are_those_that_fit_returned(tmp_path: Path) -> None:
    script = Script(functional, {"x": IMAGES, "y": Y, "batch_size": 8, "epochs": 2})
    end = train(script, tmp_path)
    begin_process(seed=1)
    model = functional()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(last_weights(tmp_path))
    assert np.array_equal(model.predict(IMAGES, verbose=0), end.model.predict(IMAGES, verbose=0))
