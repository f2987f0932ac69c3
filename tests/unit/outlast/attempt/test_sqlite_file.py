"""Databases are read and written under open connections, with and without a log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from outlast.attempt import sqlite_file


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_goes_back_while_it_is_open(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as script:
        script.execute(f"pragma journal_mode={mode}")
        script.execute("create table trials (value)")
        script.execute("insert into trials values (1)")
        script.commit()
        first = sqlite_file.read(path)
        script.execute("insert into trials values (2)")
        script.execute("create table others (value)")
        script.commit()
        second = sqlite_file.read(path)
        assert sqlite_file.is_database(path)
        sqlite_file.write(path, first)
        assert script.execute("select value from trials").fetchall() == [(1,)]
        script.execute("insert into trials values (3)")
        script.commit()
        sqlite_file.write(path, second)
        assert script.execute("select value from trials").fetchall() == [(1,), (2,)]
    new = tmp_path / "new.db"
    sqlite_file.write(new, second)
    with closing(sqlite3.connect(new)) as read:
        assert read.execute("select value from trials").fetchall() == [(1,), (2,)]


def test_a_lock_is_named_by_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as script:
        script.execute("create table trials (value)")
        script.commit()
        content = sqlite_file.read(path)
        script.execute("begin exclusive")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite_file.write(path, content, wait=0.0)
        script.rollback()


def test_other_files_are_no_database(tmp_path: Path) -> None:
    for content in (b"", b"SQLite", b"a,b\n1,2\n"):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert not sqlite_file.is_database(path)
