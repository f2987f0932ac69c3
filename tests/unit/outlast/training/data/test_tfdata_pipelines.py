"""Every operation of tf.data: read, killed in several epochs and resumed, with validation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
import xxhash
from tensorflow.python.framework import config

from outlast.training.data import tfdata_graph
from outlast.training.data.tfdata_graph import Pipeline
from outlast.training.data.tfdata_ops import OPS, Promise
from tests.support.data_epochs import assert_exact, read

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ran out of data", "ignore:Seed .* from outer graph"
)

D = tf.data.Dataset
N = 24
Make = Callable[[], Any]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    was = config.is_op_determinism_enabled()
    keras.utils.set_random_seed(7)
    config.enable_op_determinism()
    yield
    if not was:
        config.disable_op_determinism()


def numbers() -> Any:
    return D.range(N)


def shuffled(seed: int = 1) -> Any:
    return numbers().shuffle(N, seed=seed)


def lengths() -> Any:
    return numbers().map(lambda v: tf.range(v % 5 + 1))


def split(**_: Any) -> dict[str, Any]:
    """Training and validation data from one shuffle."""
    ds = shuffled()
    return {"x": ds.take(16).batch(4), "validation_data": ds.skip(16).batch(4)}


def split_cached() -> dict[str, Any]:
    ds = shuffled().cache()
    return {"x": ds.take(16).batch(4), "validation_data": ds.skip(16).batch(4)}


def split_and_cached() -> dict[str, Any]:
    ds = shuffled()
    return {"x": ds.take(16).cache().batch(4), "validation_data": ds.skip(16).batch(4).cache()}


def both_from(ds: Any) -> dict[str, Any]:
    return {"x": ds.batch(4), "validation_data": ds.batch(6)}


def rejected() -> Any:
    return shuffled().rejection_resample(
        lambda v: tf.cast(v % 3 == 0, tf.int32), [0.5, 0.5], seed=3
    )


def classes() -> Any:
    """Balanced classes, each shuffled and endless."""
    parts = [numbers().filter(lambda v, k=k: v % 3 == k).shuffle(9, seed=k) for k in range(3)]
    return D.sample_from_datasets([p.repeat() for p in parts], [0.2, 0.3, 0.5], seed=4)


def chosen() -> Any:
    order = D.range(3).repeat(8)
    return D.choose_from_datasets([shuffled(k).take(8) for k in range(3)], order)


def augment(v: Any) -> Any:
    image = tf.reshape(tf.cast(tf.range(12) + tf.cast(v, tf.int32), tf.float32), (2, 2, 3))
    return tf.image.random_brightness(tf.image.random_flip_left_right(image), 0.3)


def looked_up() -> Any:
    init = tf.lookup.KeyValueTensorInitializer(tf.range(N, dtype=tf.int64), tf.range(N) * 7)
    table = tf.lookup.StaticHashTable(init, -1)
    return shuffled().map(table.lookup)


def captured() -> Any:
    inner = D.range(6).shuffle(6, seed=2)
    return D.range(4).flat_map(lambda _: inner)


# One kind of pipeline each, as the element pipeline of training; `batched` are batched already.
PIPELINES: dict[str, Make] = {
    "shuffle": shuffled,
    "shuffle once": lambda: numbers().shuffle(N, seed=1, reshuffle_each_iteration=False),
    "two shuffles": lambda: shuffled().shuffle(5, seed=2),
    "three shuffles": lambda: shuffled().shuffle(5, seed=2).map(lambda v: v).shuffle(3, seed=4),
    "shuffle and cache": lambda: shuffled().cache(),
    "cache and shuffle": lambda: numbers().cache().shuffle(9, seed=3),
    "shuffle, cache, shuffle": lambda: shuffled().cache().shuffle(9, seed=3),
    "two shuffles and cache": lambda: shuffled().shuffle(5, seed=2).cache(),
    "cache, shuffle, cache": lambda: numbers().cache().shuffle(9, seed=3).cache(),
    "cache and repeat": lambda: shuffled().cache().repeat(2),
    "cache and take": lambda: shuffled().cache().take(12),
    "repeat twice": lambda: shuffled().repeat(2),
    "repeat and shuffle": lambda: shuffled().repeat(2).shuffle(5, seed=3),
    "shuffle and repeat": lambda: numbers().apply(
        tf.data.experimental.shuffle_and_repeat(N, count=2, seed=3)
    ),
    "concatenate": lambda: shuffled().concatenate(shuffled(2)),
    "zip of shuffles": lambda: D.zip((shuffled(), shuffled(2))),
    "zip of one shuffle": lambda: (lambda ds: D.zip((ds, ds)))(shuffled()),
    "enumerate": lambda: shuffled().enumerate(),
    "interleave of shuffles": lambda: D.range(3).interleave(
        lambda i: D.range(i * 8, i * 8 + 8).shuffle(8, seed=5), num_parallel_calls=2
    ),
    "captured shuffle": captured,
    "map": lambda: numbers().map(lambda v: v + 1).prefetch(2),
    "parallel map": lambda: shuffled().map(lambda v: v + 1, num_parallel_calls=2),
    "loose map": lambda: shuffled().map(lambda v: v + 1, num_parallel_calls=2, deterministic=False),
    "random map": lambda: shuffled().map(augment, num_parallel_calls=2),
    "random map, cached": lambda: shuffled().map(augment).cache(),
    "random filter": lambda: numbers().filter(lambda v: tf.random.uniform([]) < 0.6),
    "lookup table": looked_up,
    "filter": lambda: shuffled().filter(lambda v: v % 3 > 0),
    "flat_map": lambda: shuffled().flat_map(lambda v: D.range(v % 3)),
    "interleave": lambda: shuffled().interleave(lambda v: D.range(v % 3), cycle_length=3),
    "window": lambda: shuffled().window(4).flat_map(lambda w: w.batch(4)),
    "from_tensors": lambda: D.from_tensors(tf.range(N)).unbatch().shuffle(9, seed=2),
    "reduce in a map": lambda: shuffled().map(
        lambda v: D.range(v).reduce(np.int64(0), lambda s, w: s + w)
    ),
    "unbatch": lambda: shuffled().batch(5).unbatch(),
    "rebatch": lambda: shuffled().batch(5).rebatch(3).unbatch(),
    "scan": lambda: shuffled().scan(np.int64(0), lambda s, v: (s + v, s)),
    "take_while": lambda: shuffled().take_while(lambda v: v != 3),
    "unique": lambda: shuffled().map(lambda v: v // 2).unique(),
    "shard": lambda: shuffled().shard(2, 1),
    "take and skip": lambda: shuffled().skip(3).take(15),
    "ignore_errors": lambda: (
        shuffled().map(lambda v: tf.debugging.check_numerics(1.0 / tf.cast(v, tf.float32), ""))
    ).ignore_errors(),
    "assert_cardinality": lambda: (
        shuffled().filter(lambda v: v >= 0).apply(tf.data.experimental.assert_cardinality(N))
    ),
    "sample_from_datasets": lambda: classes().take(N),
    "choose_from_datasets": chosen,
    "shuffled choice": lambda: D.choose_from_datasets(
        [D.range(k, k + 8) for k in (0, 10, 20)], D.range(3).repeat(8).shuffle(24, seed=6)
    ),
    "rejection_resample": rejected,
    "random": lambda: D.random(seed=4).take(N),
    "random anew": lambda: D.random(seed=4, rerandomize_each_iteration=True).take(N),
    "list": lambda: tf.data.experimental.from_list(list(range(N))).shuffle(N, seed=2),
    "sparse slices": lambda: D.from_tensor_slices(
        tf.sparse.from_dense(np.eye(N, dtype="float32"))
    ).map(tf.sparse.to_dense),
    "group_by_reducer": lambda: shuffled().apply(
        tf.data.experimental.group_by_reducer(
            lambda v: v % 5,
            tf.data.experimental.Reducer(lambda k: k, lambda s, v: s * 3 + v, lambda s: s),
        )
    ),
    "options": lambda: shuffled().with_options(tf.data.Options()),
}
BATCHED: dict[str, Make] = {
    "group_by_window": lambda: shuffled().group_by_window(
        lambda v: v % 3, lambda _, w: w.batch(4), window_size=4
    ),
    "bucket_by_sequence_length": lambda: (
        lengths()
        .shuffle(N, seed=1)
        .bucket_by_sequence_length(lambda v: tf.shape(v)[0], [2, 4], [3, 3, 3])
    ),
    "ragged_batch": lambda: lengths().shuffle(N, seed=1).ragged_batch(4),
    "padded_batch": lambda: lengths().shuffle(N, seed=1).padded_batch(4),
    "sparse_batch": lambda: (
        numbers().map(lambda v: tf.fill([1], v)).shuffle(9, seed=1).sparse_batch(4, [1])
    ),
    "parallel batch": lambda: shuffled().batch(4, num_parallel_calls=2),
    "map_and_batch": lambda: shuffled().apply(
        tf.data.experimental.map_and_batch(lambda v: v + 1, 4)
    ),
    "batch and cache": lambda: shuffled().batch(5).cache(),
    "batch, cache, prefetch": lambda: shuffled().batch(4).prefetch(1).cache().prefetch(2),
    "batch and shuffle": lambda: numbers().batch(4).shuffle(9, seed=1),
}
# With validation data, or with steps_per_epoch.
SETS: dict[str, Callable[[], dict[str, Any]]] = {
    "take and skip of one shuffle": split,
    "take and skip of one cached shuffle": split_cached,
    "take and skip, then cached": split_and_cached,
    "the same data": lambda: both_from(shuffled()),
    "the same cached data": lambda: both_from(shuffled().cache()),
    "the same data through two shuffles": lambda: both_from(shuffled().shuffle(7, seed=3)),
    "validation behind a cache": lambda: {
        "x": numbers().cache().shuffle(9, seed=3).batch(4),
        "validation_data": shuffled().batch(5).cache().prefetch(1),
    },
    "validation of a few steps": lambda: {
        "x": shuffled().batch(4),
        "validation_data": shuffled(2).shuffle(3, seed=1).repeat().batch(4),
        "validation_steps": 2,
    },
    "one pass over several epochs": lambda: {
        "x": shuffled().repeat().batch(4),
        "steps_per_epoch": 4,
        "validation_data": shuffled(2).batch(4),
    },
    "cached pass over several epochs": lambda: {
        "x": shuffled().batch(4).cache().repeat(),
        "steps_per_epoch": 4,
    },
    "pieces of a cached pass": lambda: {"x": shuffled().batch(3).cache(), "steps_per_epoch": 4},
    "random validation": lambda: {
        "x": numbers().batch(4),
        "validation_data": shuffled().map(augment).batch(4),
    },
}


def files(folder: Path) -> list[str]:
    """Return three text files of eight lines, beside three record files of eight records."""
    for k in range(3):
        lines = [str(i) for i in range(k * 8, k * 8 + 8)]
        (folder / f"{k}.txt").write_text("\n".join(lines))
        with tf.io.TFRecordWriter(str(folder / f"{k}.rec")) as writer:
            for line in lines:
                writer.write(line.encode())
    return [str(folder / f"{k}.txt") for k in range(3)]


def example(line: Any) -> Any:
    return tf.strings.to_number(line)


def examples() -> list[bytes]:
    def of(value: int) -> bytes:
        feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        features = tf.train.Features(feature={"a": feature})
        return bytes(tf.train.Example(features=features).SerializeToString())

    return [of(i) for i in range(N)]


def listed(folder: Path) -> Any:
    files(folder)
    return D.list_files(f"{folder}/*.rec", shuffle=True, seed=3)


def saved(folder: Path) -> Any:
    if not (folder / "saved").exists():
        numbers().save(str(folder / "saved"))
    return D.load(str(folder / "saved"))


READERS: dict[str, Callable[[Path], Any]] = {
    "text lines": lambda f: tf.data.TextLineDataset(files(f)).map(example),
    "text lines of shuffled files": lambda f: tf.data.TextLineDataset(
        D.from_tensor_slices(files(f)).shuffle(3, seed=2)
    ).map(example),
    "records of listed files": lambda f: tf.data.TFRecordDataset(listed(f)).map(example),
    "records read in parallel": lambda f: (
        tf.data.TFRecordDataset(listed(f), num_parallel_reads=2).map(example).shuffle(5, seed=1)
    ),
    "listed, interleaved, shuffled": lambda f: (
        listed(f)
        .interleave(tf.data.TFRecordDataset, num_parallel_calls=2, deterministic=False)
        .shuffle(5, seed=1)
        .map(example, num_parallel_calls=2)
    ),
    "listed, interleaved, cached": lambda f: (
        listed(f).interleave(tf.data.TFRecordDataset).map(example).cache().shuffle(9, seed=1)
    ),
    "parse_example_dataset": lambda f: (
        D.from_tensor_slices(examples())
        .batch(3)
        .apply(
            tf.data.experimental.parse_example_dataset({"a": tf.io.FixedLenFeature([], tf.int64)})
        )
        .map(lambda found: found["a"])
        .unbatch()
        .shuffle(5, seed=2)
    ),
    "csv": lambda f: tf.data.experimental.CsvDataset(files(f), [tf.float32]).shuffle(5, seed=1),
    "make_csv_dataset": lambda f: tf.data.experimental.make_csv_dataset(
        files(f), 2, column_names=["a"], num_epochs=1, shuffle_seed=3, header=False
    ).unbatch(),
    "fixed length": lambda f: tf.data.FixedLengthRecordDataset(files(f), 1).shuffle(9, seed=1),
    "save and load": lambda f: saved(f).shuffle(9, seed=1),
    "cache in a file": lambda f: shuffled().cache(tempfile.mktemp(dir=f)),
    "images": lambda f: images(f, shuffle=True),
    "images, cached": lambda f: images(f, shuffle=True).cache().prefetch(1),
}


def images(folder: Path, **options: Any) -> Any:
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        for k in range(10):
            path = folder / "images" / label / f"{k}.png"
            if not path.exists():
                path.write_bytes(tf.io.encode_png(tf.fill([2, 2, 3], np.uint8(k))).numpy())
    return keras.utils.image_dataset_from_directory(
        folder / "images", image_size=(2, 2), batch_size=4, seed=3, verbose=False, **options
    ).unbatch()


def of(make: Make) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": make()}


ALL = {
    **{name: of(lambda make=make: make().batch(4)) for name, make in PIPELINES.items()},
    **{name: of(make) for name, make in BATCHED.items()},
    **SETS,
}


@pytest.mark.parametrize("name", ALL)
def test_a_pipeline_is_read_on_exactly(name: str) -> None:
    """Killed in mid-epoch, at borders and in later epochs; no doubt is raised."""
    untouched = assert_exact(ALL[name])
    assert untouched.doubts == []


# Training and validation draw from one shuffle, and the order of the two is a matter of speed, or
# of what an earlier attempt has written.
DOUBTED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a shared repeat": (
        lambda _: (
            lambda ds: {
                "x": ds.take(16).repeat().batch(4),
                "steps_per_epoch": 3,
                "validation_data": ds.skip(16).batch(4),
            }
        )(shuffled()),
        "training and validation read the same shuffle, and steps_per_epoch",
    ),
    "a shuffle read past a file": (
        lambda folder: (
            lambda ds: {
                "x": ds.take(16).cache(str(folder / "cache")).batch(4),
                "validation_data": ds.skip(16).batch(4),
            }
        )(shuffled()),
        "a shuffle feeds a cache in a file",
    ),
}


@pytest.mark.parametrize("name", DOUBTED)
def test_what_two_read_from_one_shuffle_is_named_where_it_is_not_exact(
    name: str, tmp_path: Path
) -> None:
    make, why = DOUBTED[name]
    (doubt,) = read(lambda: make(tmp_path), epochs=1).doubts
    assert doubt.startswith(why)


@pytest.mark.parametrize("name", READERS)
def test_files_are_read_on_exactly(name: str, tmp_path: Path) -> None:
    untouched = assert_exact(lambda: {"x": READERS[name](tmp_path).batch(4)})
    assert untouched.doubts == []


def test_the_parts_of_image_folders(tmp_path: Path) -> None:
    """The usual tutorial: a split by subset, and each part cached behind its shuffle."""

    def make() -> dict[str, Any]:
        parts = [
            images(tmp_path, validation_split=0.4, subset=s) for s in ("training", "validation")
        ]
        train, validation = (part.batch(3) for part in parts)
        return {
            "x": train.cache().shuffle(9, seed=2).prefetch(1),
            "validation_data": validation.cache().prefetch(1),
        }

    assert assert_exact(make).doubts == []


class Hashed:
    """A hash that notes what it is given."""

    given: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        self.hash = xxhash.xxh3_64()

    def update(self, content: bytes) -> None:
        self.given.append(content)
        self.hash.update(content)

    def hexdigest(self) -> str:
        return str(self.hash.hexdigest())


def test_every_operation_that_is_promised_is_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint is equal in each process: it contains no address of an object."""
    monkeypatch.setattr(tfdata_graph, "xxhash", SimpleNamespace(xxh3_64=Hashed))
    made = [make()["x"] for make in ALL.values()]
    made += [make(tmp_path).batch(4) for make in READERS.values()]
    read = {kind for one in made for kind in Pipeline(one).kinds}
    promised = {kind for kind, op in OPS.items() if op.promise is not Promise.NAMED}
    assert promised <= read
    assert len(Hashed.given) > 1000
    assert not [content for content in Hashed.given if b" at 0x" in content]
