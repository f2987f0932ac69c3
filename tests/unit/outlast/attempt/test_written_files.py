"""Which files of a script an audit names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outlast.attempt.written_files import WrittenFiles, load
from outlast_checkpoints.storage import open_storage


def test_files_that_python_opens_for_writing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    for name in ("temporary", "audit", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "x.npz").touch()
    watching = WrittenFiles([tmp_path / "audit"])
    watching.watch()
    Path("first.txt").write_text("a")
    with open("data/log.csv", "a") as file:
        file.write("b")
    os.close(os.open(b"third", os.O_CREAT | os.O_RDWR))
    Path("data/x.npz").read_bytes()
    Path("temporary/some").touch()
    Path("audit/log.csv").write_text("")
    os.close(os.open(os.devnull, os.O_WRONLY))
    Path("first.txt").write_text("again")
    names = [str(tmp_path / name) for name in ("first.txt", "data/log.csv", "third")]
    assert list(watching.found) == names
    storage = open_storage(tmp_path / "audit" / "job")
    assert load(storage) == []
    watching.store(storage)
    assert load(storage) == names
