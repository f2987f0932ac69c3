"""Plain data of any kind survives a round trip through a state file."""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from outlast.training.state import document, trees
from outlast_checkpoints.arrays.array_reader import read_file
from outlast_checkpoints.arrays.hdf5_file import write_arrays

NUMBERS = [np.bool_, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64]
NUMBERS += [np.float16, np.float32, np.float64, np.complex64, np.complex128]

arrays = st.sampled_from(NUMBERS).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
numpy_scalars = arrays.filter(lambda a: a.size > 0).map(lambda a: a.reshape(-1)[0])
scalars = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
# NaN is no useful key or member: it equals nothing, itself included.
hashable = st.recursive(
    scalars | st.floats(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
keys = (
    st.text() | st.sampled_from(["$int", "$array", "a/b", "a", "", ".", "..", "/", "\0"]) | hashable
)
plain = st.recursive(
    hashable | st.floats() | arrays | numpy_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=3).map(lambda d: defaultdict(list, d)),
        st.dictionaries(keys, st.integers(), max_size=3).map(Counter),
        st.sets(hashable, max_size=4),
        st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=5)),
    ),
    max_leaves=12,
)


def alike(a: Any, b: Any) -> bool:
    """Return whether two values are equal in type and content, more strictly than ==."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    if isinstance(a, dict):
        extra = getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        return extra and alike(list(a), list(b)) and alike(list(a.values()), list(b.values()))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(alike(x, y) for y in b) for x in a)
    if isinstance(a, list | tuple | deque):
        same_length = len(a) == len(b) and getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return same_length and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@settings(deadline=None)
@given(plain)
def test_every_plain_value_round_trips(value: Any) -> None:
    stored: dict[str, Any] = {}
    encoded = trees.encode(value, stored, "tree")
    assert alike(trees.decode(encoded, stored), value)


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(keys, plain, max_size=4))
def test_every_plain_value_round_trips_through_a_file(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.h5"
        write_arrays(path, document.pack({"value": value}, {"variables/0": np.arange(3)}))
        back, variables = document.unpack(
            read_file(memoryview(path.read_bytes()), partial(nullcontext, path), str(path)).arrays,
            "state.h5",
        )
    assert alike(back["value"], value)
    assert list(variables) == ["variables/0"]


@settings(deadline=None)
@given(plain)
def test_a_copy_has_the_same_fingerprint(value: Any) -> None:
    stored: dict[str, Any] = {}
    copy = trees.decode(trees.encode(value, stored, "tree"), stored)
    if "frozenset" not in repr(value):  # whose members have no order to go by
        assert trees.fingerprint(value) == trees.fingerprint(copy)


@settings(deadline=None)
@given(plain, plain)
def test_different_values_have_different_fingerprints(one: Any, two: Any) -> None:
    assert alike(one, two) or trees.fingerprint(one) != trees.fingerprint(two)


@settings(deadline=None)
@given(st.lists(st.floats(), min_size=60, max_size=70))
def test_long_lists_of_floats_round_trip(values: list[float]) -> None:
    stored: dict[str, Any] = {}
    assert alike(trees.decode(trees.encode(values, stored, "tree"), stored), values)


@settings(deadline=None)
@given(arrays.filter(lambda a: a.any()))
def test_packed_values_are_copies(value: Any) -> None:
    packed = document.pack({"value": [value]}, {})
    before = value.tobytes()
    value.fill(0)
    back, _ = document.unpack(packed.arrays, "state.h5")
    assert back["value"][0].tobytes() == before


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 700))
def test_generators_are_restored_in_mid_stream(seed: int, draws: int) -> None:
    made = [random.Random(seed), np.random.RandomState(seed)]
    kinds = (np.random.PCG64, np.random.Philox, np.random.MT19937, np.random.SFC64)
    made += [np.random.Generator(kind(seed)) for kind in kinds]
    for generator in made:
        for _ in range(draws % 5):
            generator.random()
        # Half of a pair of normal numbers stays behind, which is state as well.
        if draws % 2 and isinstance(generator, random.Random):
            generator.gauss(0, 1)
        elif draws % 2 and isinstance(generator, np.random.RandomState):
            generator.standard_normal()
        stored: dict[str, Any] = {}
        twin = trees.decode(trees.encode(generator, stored, "tree"), stored)
        assert trees.fingerprint(generator) == trees.fingerprint(twin)
        assert [generator.random() for _ in range(3)] == [twin.random() for _ in range(3)]
        generator.random()
        assert trees.fingerprint(generator) != trees.fingerprint(twin)


class Unknown:
    pass


class Special(dict[str, int]):
    pass


class Listed(list[int]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Unknown(),
        Special(a=1),
        Listed([1]),
        lambda: 1,
        object,
        1j,
        np.array(["text"]),
        np.array([None]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.ma.masked_array([1, 2], [True, False]),
        np.void(b"abc"),
        np.longdouble(1),
        np.datetime64("2020-01-01"),
        defaultdict(Unknown),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(trees.NotPlain, match="tree/a/1/x"):
        trees.encode({"a": [0, {"x": value}]}, {}, "tree")


def test_endless_nesting_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(trees.NotPlain):
        trees.encode(endless, {}, "tree")


def test_branching_nesting_is_refused_as_fast() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless["b"] = endless["c"] = endless
    with pytest.raises(trees.NotPlain):
        trees.encode(endless, {}, "tree")
