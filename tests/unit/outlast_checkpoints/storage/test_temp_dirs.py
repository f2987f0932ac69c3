"""Temporary folders of killed processes are deleted; folders in use are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.temp_dirs import sweep, temp_dir

HOLD = """
import sys
from outlast_checkpoints.storage.temp_dirs import temp_dir
with temp_dir() as folder:
    (folder / "model.weights.h5").write_bytes(b"large")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_deleted_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temp_dir() as folder:
        (folder / "a").touch()
        assert sweep(tmp_path, settled=0) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_wanted_elsewhere(tmp_path: Path) -> None:
    with temp_dir(tmp_path) as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_killed_process_are_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        assert sweep(tmp_path, settled=0) == []
        holder.kill()
    assert (folder / "model.weights.h5").exists()
    assert sweep(tmp_path) == [], "it may be of one that has just begun"
    assert sweep(tmp_path, settled=0) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_temporary_folder_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="none"), temp_dir():
        pass
