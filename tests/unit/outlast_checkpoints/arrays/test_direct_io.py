"""Direct I/O gives the same bytes on every file system, in pieces of any size."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outlast_checkpoints.arrays import direct_io, page_cache

BLOCK = 4096
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 7, 17 * BLOCK, 40_000]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat files of a few blocks as large, with several buffers and pieces."""
    monkeypatch.setattr(page_cache, "WORTHWHILE", 1)
    monkeypatch.setattr(direct_io, "_BUFFER", 3 * BLOCK)
    monkeypatch.setattr(direct_io, "_PIECE", 2 * BLOCK)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def write(path: Path, content: bytes) -> None:
    pieces = random.Random(len(content))
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        writer = direct_io.DirectWriter(file)
        while content:
            size = pieces.randint(0, 2 * direct_io._BUFFER)
            writer.write(memoryview(content)[:size])
            content = content[size:]
        writer.end()
        os.fsync(file)


def read(path: Path, size: int) -> bytes:
    """Return the pieces joined, after checking that each is at its place in memory."""
    content = direct_io.memory(size)
    found = b""
    with opened(path, os.O_RDONLY) as file:
        for piece in direct_io.filling(content, file):
            found += piece
    assert bytes(content[: len(found)]) == found
    return found


def forget(path: Path) -> None:
    with opened(path, os.O_RDONLY) as file:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def stays_out_of_the_cache(folder: Path) -> bool:
    """Return whether direct writes bypass the page cache on this file system."""
    with opened(folder / "probe", os.O_RDWR | os.O_CREAT) as file, mmap.mmap(-1, BLOCK) as block:
        if not direct_io._switch(file, on=True):
            return False
        os.write(file, block)
        return not direct_io._cached(file, BLOCK)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_written_bytes_are_read_back(tmp_path: Path, length: int, cached: bool) -> None:
    content = random.Random(length).randbytes(length)
    path = tmp_path / "file"
    write(path, content)
    assert path.read_bytes() == content
    if not cached:
        forget(path)
    assert read(path, length) == content


def test_neither_writing_nor_reading_fills_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "WORTHWHILE", 64 * BLOCK)
    filled = not stays_out_of_the_cache(tmp_path)  # a file system in memory, say
    path = tmp_path / "file"
    write(path, bytes(64 * BLOCK))
    assert read(path, 64 * BLOCK) == bytes(64 * BLOCK)
    with opened(path, os.O_RDONLY) as file:
        assert direct_io._cached(file, 64 * BLOCK) is filled
        os.pread(file, 64 * BLOCK, 0)
        assert direct_io._cached(file, 64 * BLOCK)


@pytest.mark.parametrize("refuses", ["the switch", "the first call"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_file_system_without_direct_access_gets_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, refuses: str
) -> None:
    def is_direct(file: int) -> bool:
        return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)

    def refusing(call: Callable[..., int]) -> Callable[..., int]:
        def called(file: int, *arguments: object) -> int:
            if is_direct(file):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return call(file, *arguments)

        return called

    if refuses == "the switch":
        monkeypatch.setattr(direct_io, "_DIRECT", 0)
    else:
        monkeypatch.setattr(os, "write", refusing(os.write))
        monkeypatch.setattr(os, "preadv", refusing(os.preadv))
    content = random.Random(length).randbytes(length)
    write(tmp_path / "file", content)
    forget(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    forget(tmp_path / "file")
    assert read(tmp_path / "file", length) == content


def test_a_partial_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = os.write
    monkeypatch.setattr(os, "write", lambda file, data: actual(file, data[:5000]))
    content = random.Random(1).randbytes(10 * BLOCK + 3)
    monkeypatch.setattr(direct_io, "_DIRECT", 0)  # 5000 bytes are no blocks
    write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content


def test_a_full_disk_is_an_error_of_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", bytes(10 * BLOCK))


@pytest.mark.parametrize("there", [0, 1, 2 * BLOCK, 2 * BLOCK + 1, 9 * BLOCK])
def test_a_shortened_file_returns_what_it_has(tmp_path: Path, there: int) -> None:
    content = random.Random(2).randbytes(12 * BLOCK)
    write(tmp_path / "file", content)
    os.truncate(tmp_path / "file", there)
    forget(tmp_path / "file")
    assert read(tmp_path / "file", len(content)) == content[:there]


def test_reading_can_be_cancelled(tmp_path: Path) -> None:
    write(tmp_path / "file", bytes(40 * BLOCK))
    forget(tmp_path / "file")
    with opened(tmp_path / "file", os.O_RDONLY) as file:
        pieces = direct_io.filling(direct_io.memory(40 * BLOCK), file)
        assert 0 < len(next(pieces)) < 40 * BLOCK
        pieces.close()  # type: ignore[attr-defined]
