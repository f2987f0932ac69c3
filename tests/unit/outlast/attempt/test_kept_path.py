"""What changes in a file or folder is found, and put back."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from outlast.attempt.kept_path import Changes, Content, KeptPath


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return all files of a folder with their content, and its folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "search"
    (found / "trial_0").mkdir(parents=True)
    (found / "empty").mkdir()
    (found / "oracle.json").write_text("0")
    (found / "trial_0" / "weights").write_bytes(b"\0\1")
    return found


def age(folder: Path) -> None:
    """Make all files so old that their times tell of every change."""
    then = time.time() - 60
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


@pytest.mark.parametrize("old", [False, True])
def test_changes_are_found_and_put_back(folder: Path, old: bool) -> None:
    if old:
        age(folder)
    kept, before = KeptPath("search", folder), tree(folder)
    kept.begin()
    assert kept.changes() == Changes({}, [])
    first = kept.content()
    (folder / "oracle.json").write_text("1")
    (folder / "trial_1").mkdir()
    (folder / "trial_1" / "weights").write_bytes(b"")
    (folder / "trial_0" / "weights").unlink()
    changes = kept.changes()
    assert changes == Changes({"oracle.json": b"1", "trial_1/weights": b""}, ["trial_0/weights"])
    assert kept.changes() == changes
    after = tree(folder)

    kept.rewind(first)
    assert tree(folder) == before
    kept.begin()
    kept.put_back(changes)
    assert tree(folder) == after
    assert kept.changes() == changes


def test_a_change_that_leaves_time_and_size_is_found(folder: Path) -> None:
    kept = KeptPath("search", folder)
    kept.begin()
    path = folder / "oracle.json"
    found = path.stat()
    path.write_text("1")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert kept.changes() == Changes({"oracle.json": b"1"}, [])


@pytest.mark.parametrize("made", ["file", "folder"])
def test_what_was_not_there_is_removed(tmp_path: Path, made: str) -> None:
    path = tmp_path / "result"
    kept = KeptPath("result", path)
    first = kept.content()
    assert (first.exists, first.files, first.folders) == (False, {}, [])
    kept.begin()
    if made == "file":
        path.write_text("a")
        assert kept.changes() == Changes({"": b"a"}, [])
    else:
        (path / "in").mkdir(parents=True)
        (path / "in" / "a").write_text("a")
        assert kept.changes() == Changes({"in/a": b"a"}, [])
    kept.rewind(first)
    assert not path.exists()


def test_a_file_stays_open_and_links_are_left_alone(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "search" / "log.csv", tmp_path / "elsewhere"
    path.parent.mkdir()
    elsewhere.write_text("mine")
    kept = KeptPath("search", path.parent)
    with path.open("a") as script:
        print("a", file=script, flush=True)
        (path.parent / "link").symlink_to(elsewhere)
        kept.begin()
        print("b", file=script, flush=True)
        changes = kept.changes()
        assert changes == Changes({"log.csv": b"a\nb\n"}, [])
        print("c", file=script, flush=True)
        kept.put_back(changes)
        print("d", file=script, flush=True)
    assert path.read_text() == "a\nb\nd\n"
    kept.rewind(KeptPath("none", tmp_path / "none").content())
    assert elsewhere.read_text() == "mine"


def test_a_database_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    kept = KeptPath("study.db", path)
    nothing = kept.content()
    with closing(sqlite3.connect(path)) as script:
        script.execute("pragma journal_mode=wal")
        script.execute("create table trials (value)")
        script.commit()
        kept.begin()
        assert kept.changes() == Changes({}, [])
        script.execute("insert into trials values (1)")
        script.commit()
        changes = kept.changes()
        assert list(changes.files) == [""]
        script.execute("insert into trials values (2)")
        script.commit()
        kept.put_back(changes)
        assert script.execute("select value from trials").fetchall() == [(1,)]
        within = KeptPath("folder", tmp_path)
        assert list(within.content().files) == ["study.db"]
    kept.rewind(nothing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../other", "/etc/other", "a/../../other"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    kept = KeptPath("search", tmp_path / "search")
    with pytest.raises(ValueError, match="is not in"):
        kept.put_back(Changes({name: b"x"}, []))
    with pytest.raises(ValueError, match="is not in"):
        kept.put_back(Changes({}, [name]))
    with pytest.raises(ValueError, match="is not in"):
        kept.rewind(Content(path="search", exists=True, files={}, folders=[name]))
