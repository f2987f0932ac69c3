"""Documents of state that others have written: each ends in plain data or in a `FormatError`."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlast.training.state import document, random_state, trees
from outlast_checkpoints.arrays.array_reader import read_file
from outlast_checkpoints.arrays.hashing import read_local
from outlast_checkpoints.arrays.hdf5_file import write_arrays
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.manifest import FileEntry

# Every form that `encode` makes, with what it needs.
GENERATORS = [
    random.Random(1), np.random.RandomState(1),
    *(np.random.Generator(kind(1)) for kind in trees.BIT_GENERATORS.values()),
]  # fmt: skip
FORMS: list[Any] = [
    2**70, float("nan"), b"bytes", (1, (2,)), {1, "a"}, frozenset({1}), deque([1, 2], maxlen=3),
    {1: 2, (1, 2): [3]}, OrderedDict(a=1), Counter(a=2), defaultdict(list, a=[1]),
    np.arange(6.0).reshape(2, 3), np.int8(3), [0.5] * 100, {"plain": [None, True, "x", 1.5]},
    *GENERATORS,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 5, 624, 625, 2**31, 2**63, 10**30, "9" * 5000, 1.5, 1e308, "", "x",
    "MT19937", "PCG64", "Philox", "list", [], [1], [[]], [["a", 1]], [[[], 1]], [1, 2, 3], {},
    {"a": 1}, {"$int": "7"}, {"$int": 7.5}, {"$float": "inf"}, {"$bytes": "é"}, {"$set": [[1]]},
    {"$tuple": [1, 2, 3]}, {"$deque": [], "maxlen": 10**30}, {"$array": "tree/000000"},
    {"$array": "tree/000000", "scalar": 1}, {"$floats": "tree/000000"},
    {"$default": [], "factory": []},
    {"$counter": [[[], 1]]}, {"$dict": [[{}, 1]]}, {"$generator": {"bit_generator": "SFC64"}},
    {"$randomstate": []}, {"$random": [3, [1] * 625, "x"]}, {"$nothing": 1},
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in JSON data."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at, *(place for key, each in items for place in places(each, (*at, key)))]


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    value = copy.copy(value)
    value[at[0]] = put(value[at[0]], at[1:], new)
    return value


def unpacked(plain: Any, arrays: dict[str, Any]) -> None:
    """Unpack a document and use what came out. Only a `FormatError` may be raised."""
    text = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    with suppress(FormatError):
        found, _ = document.unpack({**arrays, document.DOCUMENT: text}, "state.h5")
        for value in found.values():
            if isinstance(value, random.Random):
                value.random(), value.gauss(0, 1)
            elif isinstance(value, np.random.Generator | np.random.RandomState):
                value.random(), value.standard_normal(3), value.bytes(5)


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_every_form_with_something_wrong_in_it(form: int) -> None:
    arrays: dict[str, Any] = {}
    plain = trees.encode({"a": FORMS[form], "b": 1}, arrays, "tree")
    for at in places(plain):
        for value in VALUES:
            unpacked(put(plain, at, value), dict(arrays))
    wrong = [
        np.zeros(0),
        np.zeros((2, 2), "f4"),
        np.float64(1),
        np.full(700, 2**31),
        np.ones(3, bool),
    ]
    for name in arrays:
        for array in wrong:
            unpacked(plain, {**arrays, name: np.asarray(array)})
        unpacked(plain, {other: array for other, array in arrays.items() if other != name})


def test_deep_and_wide_documents() -> None:
    for text in (b"[" * 100_000, b'{"a":' * 100_000, b"null", b"7", b'"x"', b"", b"\xff", b"[]"):
        with pytest.raises(FormatError):
            document.unpack({document.DOCUMENT: np.frombuffer(text, np.uint8)}, "state.h5")
    for form in ("$tuple", "$set", "$frozenset", "$deque", "$dict"):
        for depth in (20, 300, 900, 5000):
            deep = f'{{"{form}":[' * depth + '],"maxlen":null}' * depth
            text = np.frombuffer(f'{{"a":{deep}}}'.encode(), np.uint8)
            with suppress(FormatError):
                document.unpack({document.DOCUMENT: text}, "state.h5")


@pytest.mark.parametrize("kind", ["MT19937", "Philox"])
@pytest.mark.parametrize("position", [-1, 10**6, 2**31 - 1, -(2**31)])
def test_no_generator_reads_beside_its_words(kind: str, position: int) -> None:
    """numpy takes any position, and then reads and writes there."""
    arrays: dict[str, Any] = {}
    made = np.random.Generator(trees.BIT_GENERATORS[kind](1))
    plain = trees.encode({"a": made}, arrays, "tree")
    state = plain["a"]["$generator"]
    (state["state"] if kind == "MT19937" else state)[
        "pos" if kind == "MT19937" else "buffer_pos"
    ] = position
    text = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    with pytest.raises(FormatError, match="not a number up to"):
        document.unpack({**arrays, document.DOCUMENT: text}, "state.h5")


@pytest.mark.parametrize("first", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("kind", ["random", "randomstate", "generator"])
def test_no_generator_is_made_that_stands_still(kind: str, first: int) -> None:
    """Its next normal number would never be found. Found by the fuzzer of documents."""
    words = [first, *[0] * 623]
    mt = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    plain: dict[str, Any] = {
        "random": {"$random": [3, [*words, 624], None]},
        "randomstate": {"$randomstate": {**mt, "has_gauss": 0, "gauss": 0.0}},
        "generator": {"$generator": mt},
    }
    text = np.frombuffer(json.dumps({"a": plain[kind]}).encode(), np.uint8)
    with pytest.raises(FormatError, match="all zero"):
        document.unpack({document.DOCUMENT: text}, "state.h5")


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM"])
def test_no_generator_of_an_even_increment_is_made(kind: str) -> None:
    arrays: dict[str, Any] = {}
    plain = trees.encode({"a": np.random.Generator(trees.BIT_GENERATORS[kind](1))}, arrays, "tree")
    inner = plain["a"]["$generator"]["state"]
    inner["state"] = inner["inc"] = 0
    text = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    with pytest.raises(FormatError, match="increment"):
        document.unpack({**arrays, document.DOCUMENT: text}, "state.h5")


def test_the_global_generators_take_no_wrong_state() -> None:
    whole = random_state.capture()
    for key, value in (("pos", 10**6), ("pos", -1), ("pos", "x"), ("key", [1, 2])):
        numpys = copy.deepcopy(whole["numpy"])
        numpys["state"][key] = value
        with pytest.raises(FormatError, match="random generator"):
            random_state.restore({"numpy": numpys})
    for name, part in (("words", [1]), ("version", 2), ("gauss", "x")):
        with pytest.raises(FormatError, match="random generator"):
            random_state.restore({"python": {**whole["python"], name: part}})
    assert random.getstate()[1] == tuple(map(int, whole["python"]["words"]))


def memory(what: str) -> int:
    """Return this process's resident memory in bytes: now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) << 10


@pytest.mark.parametrize("kind", ["one", "many", "unaligned", "booleans", "named twice"])
def test_unpacking_takes_three_times_the_file_at_most(tmp_path: Path, kind: str) -> None:
    size = 48 << 20
    if kind == "many":
        value: Any = [np.zeros(size // 4000, np.uint8) for _ in range(4000)]
    elif kind == "booleans":
        value = np.ones(size, bool)
    elif kind == "unaligned":
        value = [np.uint8(1), np.zeros(size // 8)]
    else:
        value = np.zeros(size, np.uint8)
    file = document.pack({"a": value}, {})
    if kind == "named twice":
        text = json.dumps({"a": [{"$array": "tree/000000", "scalar": False}] * 2000}).encode()
        file = type(file)({**file.arrays, document.DOCUMENT: np.frombuffer(text, np.uint8)})
    path = tmp_path / "state.h5"
    length, digest = write_arrays(path, file)
    del value, file
    entry = FileEntry("state.h5", length, digest)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    content, _ = read_local(path, entry, None)
    assert content is not None
    found = read_file(content, partial(nullcontext, path), "state.h5")
    with pytest.raises(FormatError) if kind == "named twice" else nullcontext():
        document.unpack(found.arrays, "state.h5")
    assert memory("VmHWM") - before <= 3 * length
