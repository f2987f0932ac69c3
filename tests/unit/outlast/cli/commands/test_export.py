"""`outlast export`: the selected checkpoint, and the exported file."""

from __future__ import annotations

import json
import os
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from outlast.job import spec as specs
from outlast.job.spec import JobSpec
from outlast_checkpoints.arrays import array_table
from outlast_checkpoints.arrays.array_table import ArrayPlace, ArrayTable
from outlast_checkpoints.arrays.hdf5_file import write_arrays
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.command_line import Call
from tests.support.resealed import reseal, stripped

MODEL = {"config": {"class_name": "Sequential", "config": {"name": "é"}}, "keras_version": "3.15.1"}


@pytest.fixture
def export(outlast: Call) -> Call:
    """Return a function that exports from the job "digits"."""
    return partial(outlast, "export", "digits")


def save(
    store: CheckpointStore, phase: int, step: int, stage: Stage, *, weights: bool = True,
    model: bool = True, **metrics: float,
) -> None:  # fmt: skip
    name = "model.weights.h5" if weights else "generator.weights.h5"
    store.save(
        Snapshot(
            Progress(phase=phase, step=step, epoch=0, batch=0, stage=stage),
            files={name: ArrayFile({"layers/dense/vars/0": np.full(5, phase * 100 + step)})},
            documents={"model.json": json.dumps(MODEL).encode()} if model else {},
            metrics=metrics,
        ),
        reason="step",
    )


@pytest.fixture
def store(job_root: Path) -> CheckpointStore:
    storage = open_storage(job_root / "digits")
    storage.create(layout.SPEC, specs.encode(JobSpec(job="digits", script="t.py", created=1e9)))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    save(store, 0, 1, Stage.STEP, loss=3.0, val_accuracy=0.5)
    save(store, 0, 2, Stage.STEP, loss=1.0, val_accuracy=0.9)
    save(store, 0, 3, Stage.END, loss=1.0, val_accuracy=float("nan"))
    save(store, 1, 1, Stage.STEP, loss=2.0, val_accuracy=0.7)
    return store


def weights_of(storage: Storage, name: str) -> bytes:
    return storage.read(f"checkpoints/{name}/model.weights.h5")


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("latest", "01-000000000001.0-0001"),
        ("best:loss", "00-000000000002.0-0001"),
        ("best:loss:max", "00-000000000001.0-0001"),
        ("best:val_accuracy", "00-000000000002.0-0001"),
        ("best:val_accuracy:min", "00-000000000001.0-0001"),
        ("phase:0", "00-000000000003.2-0001"),
        ("phase:1", "01-000000000001.0-0001"),
        ("00-000000000002.0-0001", "00-000000000002.0-0001"),
    ],
)
def test_the_selected_checkpoint_is_exported(
    export: Call, store: CheckpointStore, tmp_path: Path, wanted: str, meant: str
) -> None:
    dest = tmp_path / "a.weights.h5"
    code, out, _ = export(str(dest), "--checkpoint", wanted, "--json")
    assert code == 0
    assert json.loads(out) == {
        "checkpoint": meant, "file": str(dest), "size": dest.stat().st_size,
    }  # fmt: skip
    assert dest.read_bytes() == weights_of(store.storage, meant)


@pytest.mark.parametrize(
    ("wanted", "code", "said"),
    [
        ("00-000000000009.0-0001", 66, "There is no 00-000000000009.0-0001 checkpoint"),
        ("phase:7", 66, "There is no phase:7 checkpoint"),
        ("best:auc", 2, "Known metrics: loss, val_accuracy."),
        ("newest", 2, "invalid selection 'newest'. Use ID, 'latest'"),
        ("best:", 2, "invalid selection 'best:'"),
        ("phase:x", 2, "invalid selection 'phase:x'"),
    ],
)
def test_a_missing_checkpoint_is_named(
    export: Call, store: CheckpointStore, tmp_path: Path, wanted: str, code: int, said: str
) -> None:
    found, _, err = export(str(tmp_path / "a.keras"), "--checkpoint", wanted)
    assert found == code
    assert said in err
    assert list(tmp_path.glob("*.keras")) == []


def test_a_whole_model_is_the_zip_that_keras_writes(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    dest = tmp_path / "model.keras"
    code, out, _ = export(str(dest))
    assert code == 0
    assert 'keras.saving.load_model("' in out
    with zipfile.ZipFile(dest) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["metadata.json", "config.json", "model.weights.h5"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.read("config.json")) == MODEL["config"]
        assert set(json.loads(archive.read("metadata.json"))) == {"keras_version", "date_saved"}
        newest = weights_of(store.storage, "01-000000000001.0-0001")
        assert archive.read("model.weights.h5") == newest
    first = dest.read_bytes()
    export(str(dest))
    assert dest.read_bytes() == first


def test_a_file_in_parts_is_joined(export: Call, store: CheckpointStore, tmp_path: Path) -> None:
    """The very file that a checkpoint in one piece would hold, in either kind of export."""
    for step in (1, 2, 3):
        arrays = {
            "layers/base/vars/0": np.ones((512, 1024)),
            "layers/head/vars/0": np.full(9, step),
        }
        file = ArrayFile(arrays, {"layers/base": {"name": "base"}})
        place = Progress(phase=2, step=step, epoch=0, batch=0)
        documents = {"model.json": json.dumps(MODEL).encode()}
        made = store.save(Snapshot(place, {"model.weights.h5": file}, documents), reason="step")
    assert [entry.part_of for entry in made.files] == [None, "model.weights.h5", None]
    write_arrays(tmp_path / "whole.h5", file)
    whole = (tmp_path / "whole.h5").read_bytes()
    weights, model = tmp_path / "a.weights.h5", tmp_path / "a.keras"
    assert export(str(weights))[0] == export(str(model))[0] == 0
    assert weights.read_bytes() == whole
    with zipfile.ZipFile(model) as archive:
        assert archive.read("model.weights.h5") == whole

    part = store.storage.local_path(f"checkpoints/{made.checkpoint}/model.weights.frozen.h5")
    assert part is not None
    with open(part, "r+b") as damaged:
        damaged.seek(10_000)
        damaged.write(b"?")
    code, _, err = export(str(weights), "--checkpoint", made.checkpoint)
    assert code == 65
    assert "model.weights.frozen.h5: its content has changed" in err
    assert weights.read_bytes() == whole


def test_nothing_but_arrays_of_a_stored_file_is_exported(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    """A dataset that HDF5 would read from another file: with a table and without."""
    secret, dest, newest = tmp_path / "secret", tmp_path / "a.weights.h5", store.ids()[-1]
    secret.write_bytes(b"secret!!" * 5)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("layers/x", (5,), "f8", external=[(str(secret), 0, 40)])
    hdf5 = (tmp_path / "x.h5").read_bytes()
    reseal(store.storage, newest, layout.WEIGHTS_FILE, hdf5)
    code, _, err = export(str(dest), "--checkpoint", str(newest))
    assert code == 65
    assert "stored elsewhere" in err
    assert [damage.file for damage in store.verify(newest)] == [layout.WEIGHTS_FILE]
    table = ArrayTable((ArrayPlace("layers/x", "<f8", (5,), 0),))
    reseal(store.storage, newest, layout.WEIGHTS_FILE, hdf5 + array_table.behind(table))
    assert export(str(dest), "--checkpoint", str(newest))[0] == 0
    with h5py.File(dest) as file:
        assert file["layers/x"].external is None
        assert file["layers/x"][()].tobytes() == hdf5[:40]
    assert b"secret" not in dest.read_bytes()


def test_a_checkpoint_of_an_older_outlast_is_exported(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    newest, dest = store.ids()[-1], tmp_path / "a.weights.h5"
    before = weights_of(store.storage, str(newest))
    stripped(store.storage, newest)
    assert export(str(dest))[0] == 0
    assert dest.read_bytes() == before


@pytest.mark.parametrize("content", [b"[]", b"true", b"{}", b"[" * 100_000, b"\xff", b""])
def test_a_description_that_is_none_is_damage(
    export: Call, store: CheckpointStore, tmp_path: Path, content: bytes
) -> None:
    reseal(store.storage, store.ids()[-1], layout.MODEL_FILE, content)
    code, _, err = export(str(tmp_path / "a.keras"))
    assert code == 65
    assert "model.json: it does not describe a model" in err
    assert list(tmp_path.glob("*.keras")) == []


def test_latest_skips_a_damaged_checkpoint_and_says_so(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    path = "checkpoints/01-000000000001.0-0001/model.weights.h5"
    data = bytearray(store.storage.read(path))
    data[100] ^= 1
    store.storage.replace(path, bytes(data))
    code, out, err = export(str(tmp_path / "a.weights.h5"))
    assert code == 0
    assert "00-000000000003.2-0001" in out
    assert "skipped: 01-000000000001.0-0001: model.weights.h5: its content has changed" in err


@pytest.mark.parametrize("ending", ["weights.h5", "keras"])
@pytest.mark.parametrize("file", ["model.weights.h5", "model.json"])
def test_a_damaged_file_is_never_exported(
    export: Call, store: CheckpointStore, tmp_path: Path, ending: str, file: str
) -> None:
    name = "00-000000000002.0-0001"
    path = f"checkpoints/{name}/{file}"
    data = bytearray(store.storage.read(path))
    data[-3] ^= 4
    store.storage.replace(path, bytes(data))
    dest = tmp_path / f"a.{ending}"
    dest.write_text("from before")
    code, _, err = export(str(dest), "--checkpoint", name)
    if (ending, file) == ("weights.h5", "model.json"):
        assert code == 0  # that file is not asked for
        return
    assert code == 65
    assert f"Checkpoint {name} is damaged: {file}" in err
    assert dest.read_text() == "from before"
    assert {path.name for path in tmp_path.iterdir()} == {"jobs", dest.name}


def test_without_a_model_description_only_weights_are_exported(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, 2, 1, Stage.STEP, model=False)
    code, _, err = export(str(tmp_path / "a.keras"))
    assert code == 2
    assert "get_config()" in err
    assert ".weights.h5" in err
    assert export(str(tmp_path / "a.weights.h5"))[0] == 0


def test_without_weights_of_a_single_model_the_available_ones_are_named(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, 2, 1, Stage.STEP, weights=False)
    code, _, err = export(str(tmp_path / "a.weights.h5"))
    assert code == 2
    assert "generator.weights.h5" in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.h5", "must end in .keras or .weights.h5"),
        (".keras", "must end in"),
        ("no/folder/model.keras", "there is no folder"),
    ],
)
def test_an_invalid_destination_is_refused(
    export: Call, store: CheckpointStore, tmp_path: Path, name: str, said: str
) -> None:
    code, _, err = export(str(tmp_path / name))
    assert code == 2
    assert said in err


def test_an_unwritable_folder_is_exit_code_74(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    (tmp_path / "a.keras").mkdir()
    assert export(str(tmp_path / "a.keras"))[0] == 2
    code, _, err = export("/proc/self/a.keras")
    assert code == 74
    assert "'/proc/self/a.keras'" in err


def test_the_written_file_follows_the_umask(
    export: Call, store: CheckpointStore, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        export(str(tmp_path / "a.keras"))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "a.keras").stat().st_mode & 0o777 == 0o640


def test_a_job_without_checkpoints_says_so(export: Call, job_root: Path, tmp_path: Path) -> None:
    storage = open_storage(job_root / "digits")
    storage.create(layout.SPEC, specs.encode(JobSpec(job="digits", script="t.py")))
    code, _, err = export(str(tmp_path / "a.keras"))
    assert code == 66
    assert "`outlast checkpoints` lists the existing ones" in err
