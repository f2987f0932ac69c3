"""The content of objects is restored into those that a script creates again, without pickle."""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from outlast.training.state import document
from outlast.training.state.object_graph import ObjectGraph
from outlast.training.state.object_restore import Restore
from outlast_checkpoints.format.snapshot import ArrayFile


class Mood(Enum):
    CALM = 1
    WILD = 2


class Pair(NamedTuple):
    one: Any
    two: Any


@dataclass
class Seen:
    steps: int = 0
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    step: int = 0


class Slotted:
    __slots__ = ("count", "rest")

    def __init__(self) -> None:
        self.count = 0


class Own:
    """An object of the script's own."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Speaking:
    def __init__(self) -> None:
        self._at = 0

    def state_dict(self) -> Any:
        return {"at": self._at}

    def load_state_dict(self, state: Any) -> None:
        self._at = state["at"]


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    step: int = 0


@dataclass(slots=True)
class Slots:
    step: int = 0


class More(Slotted):
    __slots__ = ("more",)


class Dictionary(dict):  # type: ignore[type-arg]
    pass


Change = Callable[[Any], None]


def arrays_of(file: ArrayFile) -> dict[str, Any]:
    return {name: np.array(value) for name, value in file.arrays.items()}


def over(
    make: Callable[[], Any], *changes: Change, everything: bool = False
) -> tuple[Any, Any, list[Any], ObjectGraph]:
    """Change an object; let one that was made anew take over its state, and do so twice."""
    changed, other = make(), make()
    graph = ObjectGraph({"Own#0": changed}, everything=everything)
    for change in changes:
        change(changed)
    problems: list[Any] = []
    for target in (other, make()):
        variables: dict[str, Any] = {}
        file = document.pack({"objects": graph.capture(variables)}, variables)
        plain, stored = document.unpack(arrays_of(file), "state.h5")
        first = graph
        graph = ObjectGraph({"Own#0": target}, everything=everything)
        restore = Restore(graph, plain["objects"], stored)
        restore.apply()
        problems += restore.problems
    return changed, target, problems, first


def text_of(value: Any) -> str:
    """Return all that an object holds, of kinds whose repr says it."""
    if isinstance(value, keras.random.SeedGenerator):
        value = value.state
    if isinstance(value, tf.Variable | keras.Variable):
        return repr(np.asarray(value))
    if isinstance(value, keras.metrics.Metric | keras.Model | keras.optimizers.Optimizer):
        return repr([np.asarray(v) for v in value.variables])
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, list | tuple):
        return f"{type(value)}{[text_of(v) for v in value]}"
    if isinstance(value, set | frozenset):  # their order hangs on the seed of this process's hashes
        return f"{type(value)}{sorted(map(repr, value))}"
    if isinstance(value, dict):
        return f"{type(value)}{[(repr(k), text_of(v)) for k, v in value.items()]}"
    if isinstance(value, Own | Speaking | Slotted | SimpleNamespace):
        names = getattr(value, "__slots__", None) or vars(value)
        return repr({n: text_of(getattr(value, n)) for n in names if hasattr(value, n)})
    return f"{type(value)}{value!r}"


def clone() -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


def zone() -> datetime:
    return datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)


def frame() -> Any:
    times = pd.to_datetime(["2026-01-01", "2026-01-02"])
    return pd.DataFrame({"a": [1, 2], "b": ["x", None], 3: [1.5, 2.5], "t": times})


def append(value: Any) -> Change:
    return lambda own: own.x.append(value)


def let(value: Callable[[Any], Any]) -> Change:
    return lambda own: setattr(own, "x", value(own.x))


def call(method: str, *arguments: Any) -> Change:
    return lambda own: getattr(own.x, method)(*arguments)


HELD: dict[str, tuple[Callable[[], Any], Change]] = {
    "tf.Variable": (lambda: tf.Variable([1.0]), call("assign_add", [2.0])),
    "keras.Variable": (lambda: keras.Variable([1.0]), call("assign", [2.0])),
    "list of variables": (lambda: [tf.Variable(1.0)], lambda o: o.x[0].assign(3.0)),
    "variables made later": (lambda: None, let(lambda _: [tf.Variable(2), keras.Variable(2.0)])),
    "bfloat16 made later": (lambda: None, let(lambda _: keras.Variable(2.0, dtype="bfloat16"))),
    "variable appended": (lambda: [tf.Variable(1.0)], append(tf.Variable(7.0))),
    "tensor": (lambda: tf.constant(1), let(lambda x: x + 1)),
    "tensors": (list, lambda o: o.x.extend(tf.constant(i) for i in range(20))),
    "few tensors": (list, lambda o: o.x.extend([tf.constant(1.0), tf.constant([2, 3])])),
    "metric": (keras.metrics.Mean, call("update_state", 3.0)),
    "dict of metrics": (lambda: {"m": keras.metrics.AUC()}, lambda o: o.x["m"]([1], [0.3])),
    "model": (clone, lambda o: o.x.set_weights([w + 1 for w in o.x.get_weights()])),
    "optimizer": (lambda: clone().optimizer, lambda o: o.x.iterations.assign(5)),
    "seed generator": (lambda: keras.random.SeedGenerator(1), call("next")),
    "dataclass": (Seen, lambda o: (setattr(o.x, "steps", 3), o.x.names.append("a"))),
    "frozen dataclass": (Frozen, let(lambda x: replace(x, step=4))),
    "namespace": (SimpleNamespace, lambda o: setattr(o.x, "steps", 3)),
    "object": (lambda: Own(a=1), lambda o: setattr(o.x, "b", Counter("aab"))),
    "slots": (Slotted, lambda o: (setattr(o.x, "count", 2), setattr(o.x, "rest", [1]))),
    "objects in objects": (lambda: Own(a=Own(b=Seen())), lambda o: setattr(o.x.a.b, "steps", 2)),
    "spoken": (lambda: Speaking(), lambda o: setattr(o.x, "_at", 4)),
    "frame": (lambda: None, let(lambda _: frame())),
    "frame in place": (frame, lambda o: o.x.insert(0, "new", [1, 2])),
    "frame by date": (frame, let(lambda x: x.set_index("t"))),
    "series": (lambda: None, let(lambda _: pd.Series([1, 2], name="s", index=["a", "b"]))),
    "datetime": (lambda: None, let(lambda _: datetime.now(UTC))),
    "zone": (lambda: None, let(lambda _: zone())),
    "offset": (lambda: None, let(lambda _: datetime.now(timezone(timedelta(hours=2))).timetz())),
    "date": (lambda: None, let(lambda _: [date(2026, 1, 2), timedelta(1, 2, 3)])),
    "path": (lambda: Path("a"), let(lambda x: x / "b")),
    "numbers": (lambda: None, let(lambda _: [Decimal("1.10"), Fraction(1, 3), 2 + 3j, 2**80])),
    "uuid": (lambda: None, let(lambda _: [UUID(int=5), range(1, 9, 2)])),
    "enum": (lambda: Mood.CALM, let(lambda _: Mood.WILD)),
    "enum never seen": (lambda: None, let(lambda _: [Mood.WILD])),
    "named tuple": (lambda: Pair(1, [2]), lambda o: o.x.two.append(3)),
    "new named tuple": (lambda: None, let(lambda _: Pair((1,), 2))),
    "deque": (lambda: deque([1], 2), lambda o: o.x.extend([2, 3])),
    "counter": (Counter, lambda o: o.x.update("abca")),
    "default": (lambda: defaultdict(list), lambda o: o.x[1].append(2)),
    "own default": (lambda: defaultdict(lambda: 5), lambda o: o.x[(1, "a")]),
    "ordered": (OrderedDict, lambda o: o.x.update({2: 1, 1: 2})),
    "set": (set, lambda o: o.x.update({(1, 2), "a", 3})),
    "frozenset": (frozenset, let(lambda x: x | {1})),
    "numpy": (lambda: np.random.default_rng(1), call("random")),
    "other numpy": (lambda: np.random.Generator(np.random.MT19937(1)), call("random")),
    "old numpy": (lambda: np.random.RandomState(1), call("rand")),
    "python": (lambda: random.Random(1), call("random")),
    "generator made later": (lambda: None, let(lambda _: np.random.default_rng(9))),
    "array": (lambda: np.zeros(3), lambda o: o.x.__setitem__(0, 2.0)),
    "larger array": (lambda: np.zeros(3), let(lambda x: np.append(x, 1))),
    "words": (lambda: np.array(["a", "b"]), lambda o: o.x.__setitem__(0, "c")),
    "dates": (lambda: None, let(lambda _: np.array(["2026-01-01"], "M8[D]"))),
    "numpy numbers": (list, lambda o: o.x.extend(np.float32(i) for i in range(20))),
    "nothing": (lambda: 5, let(lambda _: None)),
    "bytes": (lambda: b"a", let(lambda x: x + b"b")),
    "objects array": (lambda: np.array([None, 1], object), lambda o: o.x.__setitem__(0, "a")),
    "frozen slots": (FrozenSlots, let(lambda x: replace(x, step=4))),
    "dataclass with slots": (Slots, lambda o: setattr(o.x, "step", 3)),
    "slots of a base": (More, lambda o: (setattr(o.x, "count", 2), setattr(o.x, "more", 1))),
    "heap": (list, lambda o: heapq.heappush(o.x, (1, "a"))),
    "tuple of a list": (lambda: (1, [2]), lambda o: o.x[1].append(3)),
    "enums in a set": (set, lambda o: o.x.add((Mood.CALM, 1))),
    "keys of every kind": (dict, lambda o: o.x.update({Mood.CALM: 1, Path("a"): 2, (1, "$"): 3})),
    "odd numbers": (lambda: None, let(lambda _: [float("nan"), float("inf"), -0.0, 2**2000])),
    "odd texts": (dict, lambda o: o.x.update({"a/b": 1, "$x": 2, "": 3, "\0": "\ud800"})),
    "shared generator": (lambda: [np.random.default_rng(1)] * 2, lambda o: o.x[0].random()),
    "cells of a frame": (frame, lambda o: o.x.loc.__setitem__((0, "a"), 7)),
    "tf generator": (
        lambda: tf.random.Generator.from_seed(1).state, lambda o: o.x.assign_add([1, 0, 0])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_it_is_restored(name: str) -> None:
    make, change = HELD[name]
    changed, other, problems, graph = over(lambda: Own(x=make(), y=1), change)
    assert problems == graph.unsaved == []
    assert text_of(changed) == text_of(other) != text_of(Own(x=make(), y=1))


def test_unchanged_values_come_from_the_script() -> None:
    graph = ObjectGraph({"Own#0": Own(x=[1, {"a": Own(b=2)}], y=np.ones(2), z=tf.Variable(1.0))})
    assert graph.capture({}) == {"known": {}, "new": []}


def test_shared_and_cyclic_references_are_kept() -> None:
    def make() -> Any:
        one: list[Any] = [1]
        return Own(a=one, b=Own(c=one, d={}), e=None)

    def change(own: Any) -> None:
        own.a.append(own.b)
        own.b.d["self"] = own
        own.e = own.f = [own.a, ([own.b.d],)]
        own.f.append(own.f)

    _, other, problems, _ = over(make, change)
    assert problems == []
    assert other.a is other.b.c is other.e[0]
    assert other.a[1] is other.b
    assert other.b.d["self"] is other
    assert other.e is other.f is other.f[2]
    assert other.f[1][0][0] is other.b.d


def test_objects_that_swapped_places_stay_the_same_objects() -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append([tf.Variable(1.0), tf.Variable(2.0)])
        return Own(old=made[-1][0], new=made[-1][1])

    def swap(own: Any) -> None:
        own.old, own.new = own.new, own.old
        own.new.assign(5.0)

    _, other, problems, _ = over(make, swap)
    assert problems == []
    assert other.old is made[2][1]
    assert other.new is made[2][0]
    assert (float(other.old), float(other.new)) == (2.0, 5.0)


def test_a_replaced_list_does_not_change_the_first_one() -> None:
    first = np.zeros(2)
    changed = Own(x=first)
    _, other, _, _ = over(lambda: Own(x=first), let(lambda x: x + 1))
    assert other.x.tolist() == [1, 1]
    assert changed.x is first
    assert first.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("thing", "path"),
    [
        (lambda own: setattr(own, "reader", iter([1])), "Own#0.reader"),
        (lambda own: own.d.update(reader=iter([1])), "Own#0.d['reader']"),
        (lambda own: own.l.append(Seen()), "Own#0.l[1]"),
        (lambda own: setattr(own, "made", keras.metrics.Mean()), "Own#0.made"),
        (lambda own: setattr(own, "made", lambda: 1), "Own#0.made"),
        (lambda own: own.o.__dict__.update(a=np.array([object()])), "Own#0.o.a"),
        (lambda own: own.d.update({Seen: 1}), "Own#0.d, a key"),
    ],
)
def test_an_unstorable_object_does_not_affect_its_neighbours(thing: Any, path: str) -> None:
    def make() -> Any:
        return Own(l=[0], d={"k": 1}, o=Own(b=1), steps=0)

    def change(own: Any) -> None:
        own.steps, own.o.b, own.v = 7, 8, {"own": own.o}
        if "d[" in path:
            own.d["k"] = 9
        thing(own)

    _, other, problems, graph = over(make, change)
    assert [u.path for u in graph.unsaved] in ([], [path])
    assert (other.steps, other.o.b) == (7, 8)
    assert other.v["own"] is other.o
    assert problems == []
    if "d[" in path:
        assert other.d == {"k": 9}


def test_state_that_does_not_fit_is_named() -> None:
    one = Own(a=np.zeros(2), v=tf.Variable([1.0]), o=Own(n=1))
    graph = ObjectGraph({"Own#0": one})
    one.a[0], one.o.n = 1, 2
    one.v.assign([2.0])
    variables: dict[str, Any] = {}
    plain = graph.capture(variables)
    arrays = {name: np.asarray(value) for name, value in variables.items()}
    other = Own(a=np.zeros(3), v=tf.Variable([1.0, 2.0]))
    restore = Restore(ObjectGraph({"Own#0": other}), plain, arrays)
    restore.apply()
    found = dict(restore.problems)
    assert found["Own#0.a"] == (
        "the checkpoint has shape (2,) of float64, the script has shape (3,) of float64"
    )
    assert "shape (1,)" in found["Own#0.v"]
    assert found["Own#0.o"] == "the script has no object there"
    assert other.a.tolist() == [0, 0, 0]


def test_a_file_names_no_class_and_no_code() -> None:
    own = Own(x=1)
    graph = ObjectGraph({"Own#0": own})
    attributes = {
        "__class__": 1,
        "change": {"is": "enum", "of": "subprocess.Popen", "name": "x"},
        "named": {"is": "named", "of": "outlast.job.spec.JobSpec", "items": [1]},
    }
    content = {"kind": "object", "of": "x.Own", "attributes": attributes}
    restore = Restore(graph, {"known": {"Own#0": content}, "new": []}, {})
    restore.apply()
    assert type(own) is Own
    assert vars(own) == {"x": 1}
    assert len(restore.problems) == 2
