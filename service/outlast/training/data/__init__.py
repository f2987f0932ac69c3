"""Training data: a source for each kind of `x`, and feeds that cut it into epochs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras

from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.arrays import ArraySource
from outlast.training.data.epoch_batches import Feed
from outlast.training.data.permutation import Shuffle
from outlast.training.data.source import Source
from outlast.training.keras_internals import data_adapters


def make_feed(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: int | None,
    steps_per_epoch: int | None,
    class_weight: dict[int, float] | None,
    shuffle: Shuffle,
    seed: int,
    max_queue_size: int,
    steps_per_execution: int = 1,
) -> ArrayFeed | Feed:
    """Return the feed for any kind of data that Keras' fit accepts.

    `keras.config.max_steps_per_epoch()` limits an epoch, as in Keras. Raises `ValueError`, as Keras
    does, for an unknown kind, and for `y`, `sample_weight` or `class_weight` besides data that
    contains them.
    """
    most = keras.config.max_steps_per_epoch()
    if most and (not steps_per_epoch or most < steps_per_epoch):
        warnings.warn(f"Limiting steps_per_epoch to {most}", stacklevel=2)
        steps_per_epoch = int(most)
    group = int(steps_per_execution)
    if not isinstance(x, data_adapters.DataAdapter) and data_adapters.can_convert_arrays(
        (x, y, sample_weight)
    ):
        data = ArraySource(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            class_weight=class_weight,
            shuffle=shuffle,
            seed=seed,
            steps=steps_per_epoch,
        )
        return ArrayFeed(data, steps_per_epoch, group)
    source = _source(x, y, sample_weight, class_weight, bool(shuffle), seed, max_queue_size)
    return Feed(source, steps_per_epoch, group)


def _source(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: dict[int, float] | None,
    shuffle: bool,
    seed: int,
    max_queue_size: int,
) -> Source:
    if isinstance(x, data_adapters.DataAdapter):
        from outlast.training.data.tfdata import AdapterSource

        return AdapterSource(x)
    if data_adapters.is_tf_dataset(x):
        from outlast.training.data.tfdata import DatasetSource

        _refuse_beside(y, sample_weight, "tf.data.Dataset")
        return DatasetSource(x, class_weight)
    if isinstance(x, keras.utils.PyDataset):
        from outlast.training.data.pydataset import PyDatasetSource

        _refuse_beside(y, sample_weight, "PyDataset")
        return PyDatasetSource(x, class_weight=class_weight, shuffle=shuffle, seed=seed)
    if data_adapters.is_torch_dataloader(x):
        from outlast.training.data.torch import TorchSource

        _refuse_beside(y, sample_weight, "torch DataLoader")
        _refuse_class_weight(class_weight, "torch DataLoader")
        return TorchSource(x)
    if data_adapters.is_grain_dataset(x):
        from outlast.training.data.grain import GrainSource

        _refuse_beside(y, sample_weight, "grain.Dataset and grain.DataLoader")
        _refuse_class_weight(class_weight, "grain.Dataset and grain.DataLoader")
        return GrainSource(x)
    if isinstance(x, Iterator):
        from outlast.training.data.generators import StreamSource

        _refuse_beside(y, sample_weight, "generator")
        _refuse_class_weight(class_weight, "Python generator")
        return StreamSource(x, max_queue_size=max_queue_size)
    raise ValueError(f"Unrecognized data type: x={x} (of type {type(x)})")


def _refuse_beside(y: Any, sample_weight: Any, kind: str) -> None:
    if y is not None:
        data_adapters.raise_unsupported_arg("y", "the targets", kind)
    if sample_weight is not None:
        data_adapters.raise_unsupported_arg("sample_weights", "the sample weights", kind)


def _refuse_class_weight(class_weight: Any, kind: str) -> None:
    if class_weight is not None:
        raise ValueError(
            f"Argument `class_weight` is not supported for {kind} inputs. "
            f"Received: class_weight={class_weight}"
        )
