"""The hashes of a file are those of its bytes, whichever thread computes them."""

from __future__ import annotations

import hashlib
import threading

import pytest
import xxhash

from outlast_checkpoints.arrays.file_hasher import FileHasher, hashes_of

BYTES = bytes(range(256)) * (5 << 12)  # 5 MiB


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("size", [1, 7 << 10, 1 << 20, (1 << 20) + 1, len(BYTES)])
def test_pieces_of_any_size_give_the_hashes_of_the_whole(size: int, reused: bool) -> None:
    data = BYTES if size > 1 else BYTES[:999]
    for sha256 in (True, False):
        hasher = FileHasher(sha256=sha256, reused=reused)
        for at in range(0, len(data), size):
            hasher.update(memoryview(data)[at : at + size])
        found = hasher.end()
        assert found.hash == f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"
        assert found.sha256 == (hashlib.sha256(data).hexdigest() if sha256 else None)
        assert hasher.end() == found  # it may be asked again
    assert not [one for one in threading.enumerate() if one.name == "outlast-sha256"]


def test_small_and_large_pieces_keep_their_order() -> None:
    pieces = [b"a" * 10, b"b" * (2 << 20), b"c" * 10, b"d" * (3 << 20), b"e"]
    hasher = FileHasher(sha256=True)
    for piece in pieces:
        hasher.update(piece)
    assert hasher.end() == hashes_of(b"".join(pieces), sha256=True)


def test_without_a_second_thread_it_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter, where no thread can be started."""

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    hasher = FileHasher(sha256=True)
    hasher.update(BYTES)
    assert hasher.end() == hashes_of(BYTES, sha256=True)


def test_an_error_of_the_second_thread_is_raised_and_blocks_nobody() -> None:
    class Broken:
        def update(self, piece: object) -> None:
            raise ValueError("broken")

    hasher = FileHasher(sha256=True)
    hasher._sha256 = Broken()  # type: ignore[assignment]
    for _ in range(100):
        hasher.update(BYTES)
    with pytest.raises(ValueError, match="broken"):
        hasher.end()
