"""The conformance suite: the tests that every storage must pass."""

from __future__ import annotations

import errno
import threading
import time
from contextlib import suppress

import pytest

from outlast_checkpoints.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageFull,
    UsageError,
)
from outlast_checkpoints.storage.base import Storage


class StorageConformance:
    """The contract of `Storage`. Subclass it with a fixture `storage` that returns an empty one."""

    def test_reads_back_what_was_created(self, storage: Storage) -> None:
        data = bytes(range(256)) * 5
        storage.create("a/b c/d'é\".json", data)
        assert storage.read("a/b c/d'é\".json") == data
        assert storage.size("a/b c/d'é\".json") == len(data)
        assert storage.exists("a/b c/d'é\".json")

    def test_creates_empty_files(self, storage: Storage) -> None:
        storage.create("empty", b"")
        assert storage.read("empty") == b""
        assert storage.list("") == ["empty"]

    def test_create_never_overwrites(self, storage: Storage) -> None:
        storage.create("a/b", b"first")
        with pytest.raises(AlreadyExists):
            storage.create("a/b", b"second")
        assert storage.read("a/b") == b"first"

    def test_modification_times_come_from_one_clock(self, storage: Storage) -> None:
        storage.create("old", b"1")
        storage.create("new", b"2")
        before = storage.modified("old")
        assert before <= storage.modified("new") < before + 3600
        time.sleep(1.1)  # some clocks count whole seconds
        storage.replace("old", b"3")
        assert before < storage.modified("old")
        with pytest.raises(NotFound):
            storage.modified("missing")

    def test_finished_files_are_not_among_the_unfinished(self, storage: Storage) -> None:
        storage.create("a/file", b"1")
        storage.replace("a/file", b"2")
        with storage.stage("a/large") as path:
            path.write_bytes(b"3" * 1000)
        with suppress(ZeroDivisionError), storage.stage("a/half") as path:
            path.write_bytes(b"4")
            raise ZeroDivisionError
        assert list(storage.unfinished()) == []

    def test_one_of_many_creators_wins(self, storage: Storage) -> None:
        if not storage.capabilities.exclusive_create:
            pytest.skip("this storage has no exclusive create")
        start = threading.Barrier(16)
        won: list[int] = []
        lost: list[int] = []

        def claim(number: int) -> None:
            start.wait()
            try:
                storage.create("journal/00000001.json", str(number).encode())
            except AlreadyExists:
                lost.append(number)
            else:
                won.append(number)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(lost) == 15
        assert storage.read("journal/00000001.json") == str(won[0]).encode()
        assert storage.list("journal") == ["00000001.json"]

    def test_read_range(self, storage: Storage) -> None:
        storage.create("a", b"0123456789")
        assert storage.read_range("a", 2, 5) == b"234"
        assert storage.read_range("a", 7, None) == b"789"
        assert storage.read_range("a", 7, 99) == b"789"
        assert storage.read_range("a", 10, None) == b""
        assert storage.read_range("a", 50, 60) == b""
        assert storage.read_range("a", 5, 5) == b""

    def test_a_missing_file_is_not_found(self, storage: Storage) -> None:
        for read in (storage.read, storage.size, lambda path: storage.read_range(path, 0, 1)):
            with pytest.raises(NotFound):
                read("no/such")
        with pytest.raises(NotFound), storage.fetch("no/such"):
            pass
        assert not storage.exists("no/such")
        assert storage.list("no/such") == []

    def test_replace(self, storage: Storage) -> None:
        storage.replace("a/beat", b"long content")
        storage.replace("a/beat", b"2", durable=False)
        assert storage.read("a/beat") == b"2"
        storage.replace("a/beat", b"third")
        assert storage.read("a/beat") == b"third"
        assert storage.list("a") == ["beat"]

    def test_list_returns_names_of_files_and_folders(self, storage: Storage) -> None:
        for path in ("f/b", "f/a/x", "f/a/y", "f/c[1]*?/z", "g"):
            storage.create(path, b"1")
        assert storage.list("f") == ["a", "b", "c[1]*?"]
        assert storage.list("f/c[1]*?") == ["z"]
        assert storage.list("") == ["f", "g"]

    def test_list_sees_what_others_write(self, storage: Storage) -> None:
        other = storage.sub("f")
        assert storage.list("f") == []
        other.create("x", b"1")
        assert storage.list("f") == ["x"]
        other.delete("x")
        assert storage.list("f") == []

    def test_delete(self, storage: Storage) -> None:
        storage.create("a/b", b"1")
        storage.delete("a/b")
        assert not storage.exists("a/b")
        storage.delete("a/b")
        storage.create("a/b", b"2")
        assert storage.read("a/b") == b"2"

    def test_delete_tree_deletes_nothing_else(self, storage: Storage) -> None:
        for path in ("t/a", "t/b/c", "t2/a", "t[1]/a", "t1/a", "t*/b"):
            storage.create(path, b"1")
        storage.delete_tree("t")
        assert storage.list("") == ["t*", "t1", "t2", "t[1]"]
        storage.delete_tree("t[1]")
        storage.delete_tree("t*")
        assert storage.list("") == ["t1", "t2"]
        storage.delete_tree("t")

    def test_stage_publishes_on_a_clean_exit(self, storage: Storage) -> None:
        with storage.stage("c/x/file.h5") as path:
            assert not path.exists()
            path.write_bytes(b"z" * 100_000)
        assert storage.read("c/x/file.h5") == b"z" * 100_000
        assert storage.list("c/x") == ["file.h5"]

    def test_stage_leaves_nothing_after_an_error(self, storage: Storage) -> None:
        def break_off() -> None:
            with storage.stage("c/x/file.h5") as path:
                path.write_bytes(b"half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            break_off()
        assert not storage.exists("c/x/file.h5")
        assert storage.list("c/x") == []

    def test_stage_never_overwrites(self, storage: Storage) -> None:
        storage.create("c/file", b"first")
        with pytest.raises(AlreadyExists), storage.stage("c/file") as path:
            path.write_bytes(b"second")
        assert storage.read("c/file") == b"first"

    def test_stage_overwrites_an_earlier_try_on_request(self, storage: Storage) -> None:
        storage.create("c/file", b"an earlier try, cut")
        with storage.stage("c/file", over=True) as path:
            assert not path.exists()
            path.write_bytes(b"whole")
        assert storage.read("c/file") == b"whole"
        with storage.stage("c/other", over=True) as path:
            path.write_bytes(b"new")
        assert storage.read("c/other") == b"new"
        assert storage.list("c") == ["file", "other"]

    def test_errors_of_the_local_disk_are_storage_errors(self, storage: Storage) -> None:
        with pytest.raises(StorageFull) as caught, storage.stage("c/file"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert "c/file" in str(caught.value)

    def test_fetch(self, storage: Storage) -> None:
        storage.create("c/file.h5", b"content")
        with storage.fetch("c/file.h5") as path:
            assert path.read_bytes() == b"content"
            assert path.name == "file.h5"
        assert storage.read("c/file.h5") == b"content"

    def test_read_into(self, storage: Storage) -> None:
        storage.create("c/file.h5", b"content")
        for size, read in ((7, b"content"), (4, b"cont"), (9, b"content\0\0"), (0, b"")):
            buffer = memoryview(bytearray(size))
            assert storage.read_into("c/file.h5", buffer) == min(size, 7)
            assert buffer == read
        with pytest.raises(NotFound):
            storage.read_into("no/such", memoryview(bytearray(1)))

    def test_link(self, storage: Storage) -> None:
        storage.create("c/one/file.h5", b"content")
        storage.create("taken", b"other")
        assert not storage.link("c/none/file.h5", "c/two/file.h5")
        assert storage.list("c/two") == []
        made = storage.link("c/one/file.h5", "c/two/file.h5")
        assert storage.capabilities.links or not made
        if not made:  # a local folder may be on a file system without links
            assert not storage.exists("c/two/file.h5")
            return
        with pytest.raises(AlreadyExists):
            storage.link("c/one/file.h5", "taken")
        assert storage.read("taken") == b"other"
        storage.delete_tree("c/one")
        assert storage.read("c/two/file.h5") == b"content"
        assert storage.link("c/two/file.h5", "c/three/file.h5")
        storage.delete("c/two/file.h5")
        assert storage.read("c/three/file.h5") == b"content"

    def test_sub_is_the_folder_below(self, storage: Storage) -> None:
        job = storage.sub("jo b")
        job.create("spec.json", b"1")
        assert storage.read("jo b/spec.json") == b"1"
        assert storage.list("") == ["jo b"]
        assert job.list("") == ["spec.json"]
        assert job.capabilities == storage.capabilities
        assert job.root.startswith(storage.root)

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "a/./b", "a\0b"])
    def test_paths_stay_below_the_root(self, storage: Storage, path: str) -> None:
        with pytest.raises(UsageError):
            storage.create(path, b"1")
        with pytest.raises(UsageError):
            storage.read(path)

    def test_appender(self, storage: Storage) -> None:
        if not storage.capabilities.append:
            with pytest.raises(StorageError):
                storage.appender("h")
            return
        file = storage.appender("a/h")
        file.write(b"one\n")
        file.write(b"two\n")
        assert storage.read("a/h") == b"one\ntwo\n"
        assert file.size == 8
        file.sync()
        file.close()
        again = storage.appender("a/h")
        assert again.size == 8
        again.write(b"three\n")
        again.close()
        assert storage.read("a/h") == b"one\ntwo\nthree\n"

    def test_local_path(self, storage: Storage) -> None:
        storage.create("a/b", b"1")
        path = storage.local_path("a/b")
        if storage.capabilities.local:
            assert path is not None
            assert path.read_bytes() == b"1"
        else:
            assert path is None
