"""Local folders: names, full disks, and unusual file systems."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from outlast_checkpoints.errors import AlreadyExists, StorageError, StorageFull, UsageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.local import LocalStorage
from tests.support.disk_limits import files_no_longer_than


def test_opening_creates_nothing(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "a" / "b")
    assert storage.list("") == []
    assert not (tmp_path / "a").exists()
    storage.create("c/d", b"1")
    assert (tmp_path / "a" / "b" / "c" / "d").read_bytes() == b"1"


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}"])
def test_forms_of_a_folder(tmp_path: Path, form: str) -> None:
    storage = open_storage(form.format(tmp_path / "x y%20z"))
    assert storage.root == str(tmp_path / "x y%20z")
    assert isinstance(storage, LocalStorage)


def test_relative_folders_do_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    relative, home = open_storage("jobs"), open_storage("~/jobs")
    monkeypatch.chdir("/")
    assert relative.root == str(tmp_path / "jobs")
    assert home.root == str(tmp_path / "home" / "jobs")


def test_invalid_folders_are_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        open_storage("")
    with pytest.raises(UsageError, match="nonsense"):
        open_storage("nonsense://x")


def test_temporary_files_are_hidden_from_readers(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.create("a/b", b"1")
    (tmp_path / "a" / ".tmp-left-by-a-crash").write_bytes(b"half")
    assert storage.list("a") == ["b"]
    storage.delete_tree("a")
    assert not (tmp_path / "a").exists()


def test_no_temporary_file_remains(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.create("a", b"1")
    storage.replace("a", b"2")
    with pytest.raises(AlreadyExists):
        storage.create("a", b"3")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        storage.replace("folder", b"4")
    with files_no_longer_than(100):
        with pytest.raises(StorageFull):
            storage.create("b", b"x" * 1000)
        with pytest.raises(StorageFull):
            storage.replace("a", b"x" * 1000)
        with pytest.raises(StorageFull), storage.stage("c") as path:
            path.write_bytes(b"x" * 1000)
    assert sorted(os.listdir(tmp_path)) == ["a", "folder"]  # noqa: PTH208
    assert storage.read("a") == b"2"


def test_errors_name_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    storage = open_storage(tmp_path)
    with pytest.raises(StorageError, match="Not a directory") as caught:
        storage.create("file/below", b"1")
    assert str(tmp_path / "file/below") in str(caught.value)
    assert caught.value.errno == errno.ENOTDIR
    assert isinstance(caught.value, OSError)
    with files_no_longer_than(0), pytest.raises(StorageFull, match="No space left to create"):
        storage.create("x", b"1")


def test_a_failed_append_leaves_whole_writes_only(tmp_path: Path) -> None:
    file = open_storage(tmp_path).appender("h")
    file.write(b"one\n")
    with files_no_longer_than(6):
        with pytest.raises(StorageFull):
            file.write(b"second\n")
        assert (tmp_path / "h").read_bytes() == b"one\n"
    assert file.size == 4
    file.write(b"2\n")
    assert (tmp_path / "h").read_bytes() == b"one\n2\n"
    file.close()
    file.close()


def test_a_folder_deleted_by_another_process_is_created_again(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "job")
    storage.create("a/b/c", b"1")
    storage.sub("a").delete_tree("b")
    storage.create("a/b/c", b"2")
    assert storage.read("a/b/c") == b"2"


def test_each_folder_is_synced_once_and_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fails_at = "job"
    fsync = os.fsync

    def watched(file: int) -> None:
        name = Path(f"/proc/self/fd/{file}").readlink().name
        if name == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        synced.append(name.partition("-")[0])
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    storage = open_storage(tmp_path / "above" / "job")
    with pytest.raises(StorageError, match="Input/output error"):
        storage.create("a/b/c", b"1")
    assert synced == [tmp_path.name, "above"]  # "above" and "job" have their names for good
    fails_at = ""
    synced.clear()
    storage.create("a/b/c", b"1")
    assert synced == ["job", "a", ".tmp", "b"]
    synced.clear()
    storage.create("a/b/d", b"1")
    assert synced == [".tmp", "b"]


def test_symbolic_links_are_not_followed_by_deleting(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_bytes(b"1")
    storage = open_storage(tmp_path / "job")
    storage.create("t/file", b"1")
    (tmp_path / "job" / "t" / "link").symlink_to(tmp_path / "precious")
    storage.delete_tree("t")
    assert (tmp_path / "precious" / "data").exists()


def test_creating_again_syncs_the_existing_file(
    tmp_path: Path, require: Callable[[str], str]
) -> None:
    """The first create links the file and fails to sync the folder; the second does only that."""
    script = """
        import sys
        from outlast_checkpoints.errors import AlreadyExists, StorageError
        from outlast_checkpoints.storage import open_storage

        storage = open_storage(sys.argv[1])
        try:
            storage.create("a", b"1")
        except AlreadyExists:
            raise
        except StorageError:
            pass
        try:
            storage.create("a", b"1")
        except AlreadyExists:
            print("there")
    """
    log = tmp_path / "log"
    root = tmp_path / "root"
    root.mkdir()
    traced = [require("strace"), "-f", "-y", "-qq", "-o", str(log), "-e", "trace=fsync"]
    command = [sys.executable, "-c", textwrap.dedent(script), str(root)]
    inject = ["-e", "inject=fsync:error=EIO:when=3"]
    done = subprocess.run(
        [*traced, *inject, *command], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "there\n"
    synced = [line.partition("<")[2].partition(">")[0] for line in log.read_text().splitlines()]
    assert [Path(path).name.split("-")[0] for path in synced[1:]] == [".tmp", "root", "root"]


@pytest.mark.parametrize(
    ("inject", "told"),
    [
        ("link:error=EIO", "Input/output error"),
        ("fsync:error=EIO", "Input/output error"),
        ("fsync:error=ENOSPC", "No space left to create"),
    ],
)
def test_errors_of_the_disk_are_reported(
    tmp_path: Path, require: Callable[[str], str], inject: str, told: str
) -> None:
    script = """
        import os, sys
        from outlast_checkpoints.errors import StorageError
        from outlast_checkpoints.storage import open_storage

        try:
            open_storage(sys.argv[1]).create("a", b"1")
        except StorageError as error:
            print(error)
        print(sorted(os.listdir(sys.argv[1])))
    """
    traced = [require("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}"]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(
        [*traced, *command], check=True, capture_output=True, text=True, timeout=120
    )
    first, second = done.stdout.splitlines()
    assert told in first
    assert str(tmp_path / "a") in first
    assert second == "[]"


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 300_000, 9_000_000])
def test_files_of_any_size_are_read_whole_and_in_part(tmp_path: Path, size: int) -> None:
    storage = open_storage(tmp_path)
    content = os.urandom(1000) * (size // 1000) + b"x" * (size % 1000)
    (tmp_path / "file").write_bytes(content)
    assert storage.read("file") == content
    for start, end in ((0, 5), (0, None), (size // 2, None), (1, size), (5, 3), (size, size + 9)):
        assert storage.read_range("file", start, end) == content[start:end]


def test_a_link_to_another_file_system_is_not_made(tmp_path: Path) -> None:
    other = tempfile.mkdtemp(dir="/dev/shm")
    try:
        if os.stat(other).st_dev == tmp_path.stat().st_dev:  # noqa: PTH116
            pytest.skip("one file system is all there is")
        (tmp_path / "b").symlink_to(other)
        storage = open_storage(tmp_path)
        storage.create("a/file", b"1")
        assert not storage.link("a/file", "b/file")
        assert os.listdir(other) == []  # noqa: PTH208
    finally:
        shutil.rmtree(other)


@pytest.mark.parametrize("error", ["EMLINK", "EPERM", "EOPNOTSUPP", "EXDEV", "EIO", "ENOSPC"])
def test_a_link_that_the_disk_refuses(
    tmp_path: Path, require: Callable[[str], str], error: str
) -> None:
    script = """
        import os, sys
        from outlast_checkpoints.errors import StorageError
        from outlast_checkpoints.storage import open_storage

        try:
            print(open_storage(sys.argv[1]).link("a", "b"))
        except StorageError as error:
            print(type(error).__name__, error)
        print(sorted(os.listdir(sys.argv[1])))
    """
    (tmp_path / "a").write_bytes(b"1")
    inject = f"inject=link:error={error}"
    traced = [require("strace"), "-f", "-qq", "-o", "/dev/null", "-e", inject]
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(
        [*traced, *command], check=True, capture_output=True, text=True, timeout=120
    )
    told, left = done.stdout.splitlines()
    kinds = {"EIO": "StorageError", "ENOSPC": "StorageFull"}
    assert told.split()[0] == kinds.get(error, "False")
    assert error not in kinds or str(tmp_path / "b") in told
    assert left == "['a']"


def test_a_link_whose_answer_was_lost_is_there(tmp_path: Path) -> None:
    """Over NFS a repeated request finds that the first one succeeded."""
    storage = open_storage(tmp_path)
    storage.create("a", b"1")
    os.link(tmp_path / "a", tmp_path / "b")
    assert storage.link("a", "b")
