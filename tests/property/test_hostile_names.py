"""Names cannot leave the root, and no two names mean the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.errors import JobExists, SpecInvalid
from outlast.job import submission
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import InvalidName, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage, check_path
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

LEAVING = [
    "", ".", "..", "../a", "a/../..", "/etc", "a/b", "a\\b", "a\0b", "a\n", "\na", " a", "a ", "~",
    "-a", ".a", "C:", "a:b", "\u2024\u2024", "\uff0e\uff0e", "a\u2044b", "a\u202eb", "ａ", "é",
    "a\u200b", "\u0661", "*", "a?b", "[a]", "a" * 101, "$HOME", "`a`", "a;b", "%2e%2e", "\udc80",
]  # fmt: skip


@pytest.mark.parametrize("name", LEAVING)
def test_no_job_and_no_file_has_such_a_name(name: str) -> None:
    assert not layout.is_name(name)
    with pytest.raises(InvalidName):
        layout.check_name("job", name)
    with pytest.raises(SpecInvalid):
        JobSpec(job=name, script="train.py")


@given(st.text(max_size=30))
def test_a_name_is_one_plain_component(name: str) -> None:
    if layout.is_name(name):
        assert name.isascii()
        assert not set(name) & set("/\\\0: \n")
        assert name not in (".", "..")
        assert check_path(name) == name


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b.json", "\0", "..."]), max_size=5))
def test_a_path_stays_below_its_root(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        check_path(path)
    except UsageError:
        return
    resolved = Path("/root").joinpath(path)
    assert ".." not in resolved.parts
    assert Path("/root") in resolved.parents


@pytest.mark.parametrize(
    "name",
    [
        "000000001.json",
        "\u0660" * 7 + "\u0661.json",
        "0000001.json",
        "+0000001.json",
        "0_0000001.json",
    ],
)
def test_an_event_has_one_name(name: str) -> None:
    assert layout.parse_journal_event("00000001.json") == 1
    assert layout.parse_journal_event(name) is None


@pytest.mark.parametrize("name", ["00001", "\u0660\u0660\u0660\u0661", "001", "-001", "1" * 5000])
def test_an_attempt_has_one_name(name: str) -> None:
    assert layout.parse_attempt("0001") == 1
    assert layout.parse_attempt("10001") == 10001
    assert layout.parse_attempt(name) is None


@pytest.mark.parametrize("digits", [19, 5000])
def test_endless_numbers_are_not_checkpoint_names(digits: int) -> None:
    number = "1" * digits
    assert CheckpointId.parse(f"00-{number}.0-0001") is None
    assert CheckpointId.parse(f"{number}-000000000001.0-0001") is None
    assert CheckpointId.parse(f"00-000000000001.0-{number}") is None
    assert layout.parse_journal_event(f"{number}.json") is None


class Insensitive:
    """A folder that ignores case in names, as on macOS and Windows."""

    def __init__(self, inner: Storage, folder: str = "") -> None:
        self._inner, self._folder = inner, folder
        self.capabilities, self.root = inner.capabilities, inner.root

    def sub(self, folder: str) -> Insensitive:
        return Insensitive(self._inner.sub(folder.lower()), folder)

    def create(self, path: str, data: bytes) -> None:
        self._inner.create(path.lower(), data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_names_that_differ_in_case_collide_on_case_insensitive_stores(tmp_path: Path) -> None:
    root = Insensitive(open_storage(tmp_path))
    submission.submit(root, JobSpec(job="Digits", script="train.py"))  # type: ignore[arg-type]
    with pytest.raises(JobExists):
        submission.submit(root, JobSpec(job="digits", script="train.py"))  # type: ignore[arg-type]


def test_deleting_a_linked_checkpoint_keeps_the_target(tmp_path: Path) -> None:
    other = CheckpointStore(open_storage(tmp_path / "other"), attempt=1)
    other.begin()
    made = other.save(sample_snapshot(1), reason="step")
    store = CheckpointStore(open_storage(tmp_path / "job"), attempt=1)
    store.begin()
    folder = tmp_path / "job" / layout.CHECKPOINTS
    folder.mkdir()
    (folder / made.checkpoint).symlink_to(tmp_path / "other" / layout.checkpoint_dir(made.id))
    for step in (2, 3):
        store.save(sample_snapshot(step), reason="step")
    assert made.checkpoint in store.prune(Keep(last=1))
    assert other.verify(made.id) == []
    assert made.id not in store.ids()
