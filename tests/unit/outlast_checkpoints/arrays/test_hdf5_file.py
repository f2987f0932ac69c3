"""HDF5 round trips for every dtype, readable by h5py and Keras; odd files are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import msgspec
import numpy as np
import pytest
import xxhash

from outlast_checkpoints.arrays import array_table, direct_io, page_cache
from outlast_checkpoints.arrays import hashing as digest
from outlast_checkpoints.arrays.array_reader import read_file
from outlast_checkpoints.arrays.hdf5_file import as_arrays, write_arrays
from outlast_checkpoints.arrays.hdf5_layout import layout_of
from outlast_checkpoints.arrays.hdf5_template import _laid_out, template_of
from outlast_checkpoints.errors import FormatError, UsageError
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.format.snapshot import ArrayFile
from tests.support.disk_limits import files_no_longer_than

KINDS = {
    "f4": np.linspace(-1, 1, 30, dtype=np.float32).reshape(2, 3, 5),
    "f8": np.array([np.nan, np.inf, -0.0, 5e-324]),
    "f2": np.arange(5, dtype=np.float16),
    "i1": np.array([-128, 127], np.int8),
    "u8": np.array([2**64 - 1], np.uint64),
    "big_endian": np.arange(4, dtype=">i4"),
    "bool": np.array([[True, False], [False, False]]),
    "c8": np.array([1j, 2], np.complex64),
    "bfloat16": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "float8": np.arange(6).astype(ml_dtypes.float8_e4m3fn),
    "float8 of numpy's kind": np.arange(6).astype(ml_dtypes.float8_e5m2),
    "int4": np.arange(6).astype(ml_dtypes.int4),
    "longdouble": np.arange(6).astype(np.longdouble),
    "scalar": np.float32(3.5),
    "scalar_bfloat16": np.array(2.5, ml_dtypes.bfloat16),
    "scalar_bool": np.bool_(True),
    "python_number": 7,
    "nothing": np.zeros((0, 4), np.float32),
    "empty_bfloat16": np.zeros((3, 0), ml_dtypes.bfloat16),
    "reversed": np.arange(10)[::-1],
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "three pieces": np.arange(9 << 18, dtype=np.int32),
    "nested/a/b/vars/0": np.ones(3),
    "ünïcode/vars/0": np.ones(2),
}


def read_arrays(path: Path) -> Mapping[str, Any]:
    return read_file(memoryview(path.read_bytes()), partial(nullcontext, path), str(path)).arrays


def read_attributes(path: Path) -> Mapping[str, Mapping[str, str]]:
    return read_file(
        memoryview(path.read_bytes()), partial(nullcontext, path), str(path)
    ).group_attributes


def read_foreign(path: Path) -> None:
    """Do what the limited child and its parent do, without a child."""
    with open(path, "rb") as file:
        table = layout_of(file, str(path))
    text = msgspec.json.encode(table)
    assert array_table.decode(text, path.stat().st_size, str(path)) == table


def same(found: np.ndarray, wanted: object) -> bool:
    wanted = np.asarray(wanted)
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and found.tobytes() == wanted.tobytes()
    )


def test_every_dtype_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    size, digest = write_arrays(path, ArrayFile(KINDS))
    assert size == path.stat().st_size
    assert digest == f"xxh3:{xxhash.xxh3_128_hexdigest(path.read_bytes())}"
    found = read_arrays(path)
    assert sorted(found) == sorted(KINDS)
    for name, wanted in KINDS.items():
        assert same(found[name], wanted), name


@pytest.mark.parametrize("name", sorted(KINDS))
def test_each_kind_alone(tmp_path: Path, name: str) -> None:
    size, digest = write_arrays(tmp_path / "a.h5", ArrayFile({name: KINDS[name]}))
    data = (tmp_path / "a.h5").read_bytes()
    assert (size, digest) == (len(data), f"xxh3:{xxhash.xxh3_128_hexdigest(data)}")
    assert same(read_arrays(tmp_path / "a.h5")[name], KINDS[name])


def test_no_arrays_at_all(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.h5", ArrayFile({}))
    assert read_arrays(tmp_path / "a.h5") == {}


def test_plain_h5py_reads_it(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.h5", ArrayFile(KINDS, {"nested/a": {"name": "ä b"}}))
    with h5py.File(tmp_path / "a.h5", "r") as file:
        for name in ("f4", "f8", "bool", "c8", "scalar", "three pieces", "nested/a/b/vars/0"):
            assert same(file[name][()], KINDS[name]), name
        assert file["nothing"].shape == (0, 4)
        assert file["f4"].chunks is None
        assert file["bfloat16"].attrs["dtype"] == "bfloat16"
        assert file["nested/a"].attrs["name"] == "ä b"


def test_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    turned = dict(reversed(KINDS.items()))
    assert write_arrays(tmp_path / "a.h5", ArrayFile(KINDS)) == write_arrays(
        tmp_path / "b.h5", ArrayFile(turned)
    )


def test_many_small_arrays(tmp_path: Path) -> None:
    arrays = {f"layers/d{i}/vars/{j}": np.full(7, i * 10 + j) for i in range(300) for j in (0, 1)}
    write_arrays(tmp_path / "a.h5", ArrayFile(arrays))
    found = read_arrays(tmp_path / "a.h5")
    assert all(same(found[name], wanted) for name, wanted in arrays.items())


def test_attributes(tmp_path: Path) -> None:
    attributes = {
        "": {"root": "1"},
        "rng": {"kind": "philox", "é": "ü" * 10_000},
        "bare": {"a": ""},
    }
    write_arrays(tmp_path / "a.h5", ArrayFile({"rng/key": np.ones(2)}, attributes))
    assert read_attributes(tmp_path / "a.h5") == attributes


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.h5", ArrayFile({"a": np.ones(2)}))
    with pytest.raises(FileExistsError):
        write_arrays(tmp_path / "a.h5", ArrayFile({"a": np.zeros(2)}))
    assert read_arrays(tmp_path / "a.h5")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "value", ["text", np.array(["a"]), np.array([object()]), np.zeros(1, "i4,f4"), b"bytes", None]
)
def test_only_numbers_are_accepted(tmp_path: Path, value: object) -> None:
    with pytest.raises(UsageError, match="layers/x"):
        write_arrays(tmp_path / "a.h5", ArrayFile({"layers/x": value}))
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("name", ["x/" * 70 + "y", "x" * 5000])
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="too long or too deep"):
        write_arrays(tmp_path / "a.h5", ArrayFile({name: np.ones(2)}))
    assert not (tmp_path / "a.h5").exists()


def test_paths_are_as_hdf5_understands_them(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.h5", ArrayFile({"/a//b/./c": np.ones(2)}, {"/a/": {"n": "x"}}))
    assert list(read_arrays(tmp_path / "a.h5")) == ["a/b/c"]
    assert read_attributes(tmp_path / "a.h5") == {"a": {"n": "x"}}
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["a/b/c"][()].tolist() == [1, 1]


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_full_disk_is_an_ordinary_error_and_leaves_hdf5_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past_cache: bool
) -> None:
    monkeypatch.setattr(page_cache, "WORTHWHILE", 1)
    big = ArrayFile({"a": np.zeros(1 << 20), "b": np.ones(3)})
    for size in (0, 100, 5000, 1 << 20, 8 << 20):
        with files_no_longer_than(size), pytest.raises(OSError, match="too large"):
            write_arrays(tmp_path / f"{size}.h5", big, past_cache=past_cache)
    write_arrays(tmp_path / "good.h5", big, past_cache=past_cache)
    assert read_arrays(tmp_path / "good.h5")["b"].tolist() == [1, 1, 1]


def _soft_link(file: h5py.File) -> None:
    file["link"] = h5py.SoftLink("/good")


def _external_link(file: h5py.File) -> None:
    file["link"] = h5py.ExternalLink("/etc/passwd", "/x")


def _cycle(file: h5py.File) -> None:
    file.create_group("g")["again"] = file["/"]


def _twice(file: h5py.File) -> None:
    file["again"] = file["good"]


def _chunked(file: h5py.File) -> None:
    file.create_dataset("x", data=np.zeros(100), chunks=(10,))


def _compressed(file: h5py.File) -> None:
    file.create_dataset("x", data=np.zeros(100), compression="gzip")


def _external_data(file: h5py.File) -> None:
    file.create_dataset("x", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("x", layout)


def _bomb(file: h5py.File) -> None:
    file.create_dataset("x", (1 << 40,), "f8")  # 8 TB, none of them there


def _text(file: h5py.File) -> None:
    file.create_dataset("x", data="text")


def _reference(file: h5py.File) -> None:
    file.create_dataset("x", data=file["good"].ref)


def _named_type(file: h5py.File) -> None:
    file["x"] = np.dtype("f8")


def _null(file: h5py.File) -> None:
    file["x"] = h5py.Empty("f4")


def _wrong_name_of_type(file: h5py.File) -> None:
    file.create_dataset("x", data=np.zeros(3)).attrs["dtype"] = "bfloat16"


def _list_as_name_of_type(file: h5py.File) -> None:
    file.create_dataset("x", data=np.zeros(3)).attrs["dtype"] = ["bfloat16", "a"]


@pytest.mark.parametrize(
    "spoil",
    [
        _soft_link,
        _external_link,
        _cycle,
        _twice,
        _chunked,
        _compressed,
        _external_data,
        _virtual,
        _bomb,
        _text,
        _reference,
        _named_type,
        _null,
        _wrong_name_of_type,
        _list_as_name_of_type,
    ],
)
def test_structures_that_outlast_never_writes_are_refused(
    tmp_path: Path, spoil: Callable[[h5py.File], None]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = np.ones(2)
        spoil(file)
    with pytest.raises(FormatError) as caught:
        read_foreign(tmp_path / "a.h5")
    assert str(tmp_path / "a.h5") in str(caught.value)


def test_attributes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("g").attrs["n"] = np.arange(3)
    with pytest.raises(FormatError, match="attribute n of g"):
        read_foreign(tmp_path / "a.h5")


def test_files_that_are_not_hdf5_or_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_arrays(path, ArrayFile({"a/b": np.arange(1000)}))
    whole = path.read_bytes()
    for content in (b"", b"no HDF5", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            read_foreign(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keras_loads_it_with_the_optimizer_and_no_warning(tmp_path: Path, dtype: str) -> None:
    import keras

    def build() -> keras.Model:
        keras.utils.clear_session()
        kinds = keras.layers
        layers = [kinds.Dense(4, dtype=dtype), kinds.BatchNormalization(dtype=dtype)]
        model = keras.Sequential([keras.Input((3,)), *layers, kinds.Dense(2, dtype=dtype)])
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    first, second = build(), build()
    rng = np.random.default_rng(0)
    for variable in [*first.weights, *first.optimizer.variables]:
        variable.assign(rng.standard_normal(variable.shape) * 10)
    assert {variable.dtype for variable in first.weights} == {dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own way of saving warns
        first.save_weights(tmp_path / "keras.weights.h5")
    # Keras' own file says which names it reads; ours has the same under them.
    arrays: dict[str, object] = {}

    def note(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = _as_keras(node)

    with h5py.File(tmp_path / "keras.weights.h5", "r") as file:
        file.visititems(note)
    write_arrays(tmp_path / "ours.weights.h5", ArrayFile(arrays))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_weights(tmp_path / "ours.weights.h5")
    pairs = zip(
        [*first.weights, *first.optimizer.variables],
        [*second.weights, *second.optimizer.variables],
        strict=True,
    )
    for one, other in pairs:
        assert same(other.numpy(), one.numpy()), one.path


def _as_keras(node: h5py.Dataset) -> np.ndarray:
    if node.attrs.get("dtype") == "bfloat16":
        return np.array(node, dtype=ml_dtypes.bfloat16)
    return np.array(node)


def test_files_of_the_same_arrays_have_one_template_and_any_other_has_its_own() -> None:
    def template(array: object, path: str = "a/vars/0", text: str = "x") -> object:
        file = ArrayFile({path: array, "b": np.ones(3)}, {"a": {"name": text}})
        return template_of(as_arrays(file), file.group_attributes)

    first = template(np.zeros((2, 3), np.float32))
    assert template(np.ones((2, 3), np.float32)) is first
    others = [
        template(np.zeros((3, 2), np.float32)),
        template(np.zeros((2, 3), np.int32)),
        template(np.zeros((2, 3), ">f4")),
        template(np.zeros((2, 3), np.float16)),
        template(np.zeros((2, 3), ml_dtypes.bfloat16)),
        template(np.zeros((2, 3), np.float32), path="a/vars/1"),
        template(np.zeros((2, 3), np.float32), text="y"),
    ]
    assert len({id(each) for each in [first, *others]}) == 8


def test_a_cached_template_gives_the_same_bytes_as_a_new_one(tmp_path: Path) -> None:
    file = ArrayFile(
        {k: v for k, v in KINDS.items() if k != "three pieces"}, {"nested": {"n": "x"}}
    )
    _laid_out.cache_clear()
    for name in ("new.h5", "kept.h5"):
        write_arrays(tmp_path / name, file)
    assert _laid_out.cache_info().hits == 1
    assert (tmp_path / "kept.h5").read_bytes() == (tmp_path / "new.h5").read_bytes()


def test_arrays_are_read_in_place(tmp_path: Path) -> None:
    odd = {f"a{i}": np.arange(length, dtype=np.uint8) for i, length in enumerate((3, 65, 131))}
    wide = {f"b{i}": np.arange(99 + i, dtype=kind) for i, kind in enumerate(("f8", "c16", "f4"))}
    write_arrays(tmp_path / "x.h5", ArrayFile({**odd, **wide, "between": np.ones(67, np.int8)}))
    content = np.frombuffer((tmp_path / "x.h5").read_bytes(), np.uint8)
    found = read_file(content.data, partial(nullcontext, tmp_path / "x.h5"), "x.h5").arrays
    assert all(np.shares_memory(found[name], content) for name in wide)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 32, 33, 100])
def test_a_file_is_read_and_hashed_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(direct_io, "_BUFFER", 8)
    content = bytes(range(length))
    (tmp_path / "file").write_bytes(content)
    good = f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"
    found, wrong = digest.read_local(tmp_path / "file", FileEntry("file", length, good), None)
    assert found is not None
    assert (bytes(found), wrong) == (content, "")
    other = f"xxh3:{xxhash.xxh3_128_hexdigest(content + b'.')}"
    found, wrong = digest.read_local(tmp_path / "file", FileEntry("file", length, other), None)
    assert (found, wrong) == (None, "its content has changed (the hash differs)")
