"""A tuner's folder is kept before it reads it, while calls of `fit` are adopted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import outlast
from outlast.attempt import adoption, bare, context, search_folders


class BaseTuner:
    def __init__(
        self, oracle: Any, hypermodel: Any = None, directory: Any = None, project_name: Any = None
    ) -> None:
        self.found = sorted(path.name for path in Path(directory or ".").glob("*/*"))
        self.directory = directory


class Tuner(BaseTuner):
    def __init__(self, oracle: Any, **others: Any) -> None:
        super().__init__(oracle, **others)


@pytest.fixture(autouse=True)
def _adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BaseTuner, "__init__", BaseTuner.__init__)
    base_tuner = SimpleNamespace(BaseTuner=BaseTuner)
    search_folders.keep_folders(SimpleNamespace(engine=SimpleNamespace(base_tuner=base_tuner)))
    yield
    adoption.end()


def tuner_of_attempt(**others: Any) -> list[str]:
    """Make a tuner as an attempt does, and write into its folder; return what it has found."""
    outlast.adopt("job")
    try:
        found = Tuner("oracle", directory="searches", **others).found
    finally:
        if (ctx := context.current()) is not None:
            bare.close_bare(ctx)
    folder = Path("searches") / (others.get("project_name") or "untitled_project")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "oracle.json").write_text("")
    return found


@pytest.mark.parametrize("others", [{}, {"project_name": "mine"}])
def test_each_attempt_begins_with_the_first_folder(others: dict[str, Any]) -> None:
    assert tuner_of_attempt(**others) == []
    assert tuner_of_attempt(**others) == []
    log = "".join(path.read_text() for path in Path("job").glob("attempts/*/log.jsonl"))
    assert log.count('"by": "KerasTuner"') == 2


def test_a_tuner_of_a_distributed_search_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "KERASTUNER_ORACLE_IP", "127.0.0.1")
    assert tuner_of_attempt() == []
    assert tuner_of_attempt() == ["oracle.json"]
    assert not Path("job").exists()


def test_a_tuner_without_adoption_is_left_alone() -> None:
    assert Tuner("oracle", directory="searches").found == []
    assert context.current() is None


def test_a_folder_that_others_need_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    outlast.adopt("job")
    Tuner("oracle", directory=".", project_name=".")
    ctx = context.current()
    assert ctx is not None
    bare.close_bare(ctx)
    assert "the folder of a tuner is not kept" in capfd.readouterr().err


class Storage:
    def __init__(self, url: str, engine_kwargs: Any = None) -> None:
        self.url = url


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("sqlite:///study.db", True),
        ("sqlite+pysqlite:///study.db?timeout=5", True),
        ("sqlite:///kept/study.db", False),
        ("sqlite://", False),
        ("sqlite:///:memory:", False),
        ("mysql://user@127.0.0.1/studies", False),
    ],
)
def test_a_study_in_a_file_that_is_not_kept_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, named: bool
) -> None:
    monkeypatch.setattr(Storage, "__init__", Storage.__init__)
    search_folders.name_studies(SimpleNamespace(storages=SimpleNamespace(RDBStorage=Storage)))
    assert Storage(url).url == url
    assert capfd.readouterr().err == ""  # without adoption
    outlast.adopt("job")
    outlast.keep("kept")
    ctx = context.current()
    assert ctx is not None
    assert Storage(url).url == url
    bare.close_bare(ctx)
    said = "outlast.keep('study.db') before the study is opened"
    assert (said in capfd.readouterr().err) is named
    log = "".join(path.read_text() for path in Path("job").glob("attempts/*/log.jsonl"))
    assert ('"files_not_kept"' in log) is named
