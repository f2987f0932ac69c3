"""The hashes of a file are those of its bytes, whichever thread computes them."""

from __future__ import annotations

import hashlib
import threading

import pytest
import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from outlast_checkpoints.arrays.file_hasher import FileHasher, hashes_of
from outlast_checkpoints.storage.file_mac import FileMac

BYTES = bytes(range(256)) * (5 << 12)  # 5 MiB


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize("size", [1, 7 << 10, 1 << 20, (1 << 20) + 1, len(BYTES)])
def test_pieces_of_any_size_give_the_hashes_of_the_whole(size: int, reused: bool) -> None:
    data = BYTES if size > 1 else BYTES[:999]
    for strong in (hashlib.sha256(), FileMac("0" * 16, bytes(16), bytes(32)), None):
        hasher = FileHasher(strong, reused=reused)
        for at in range(0, len(data), size):
            hasher.update(memoryview(data)[at : at + size])
        found = hasher.end()
        assert found.hash == f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"
        if strong is None:
            assert found.strong is None
        elif isinstance(strong, FileMac):
            tag = AESGCM(bytes(32)).encrypt(bytes(12), b"", data)
            assert found.strong == f"gmac:{'0' * 16}:{'0' * 32}:{tag.hex()}"
        else:
            assert found.strong == hashlib.sha256(data).hexdigest()
        assert hasher.end() == found  # it may be asked again
    assert not [one for one in threading.enumerate() if one.name == "outlast-mac"]


def test_small_and_large_pieces_keep_their_order() -> None:
    pieces = [b"a" * 10, b"b" * (2 << 20), b"c" * 10, b"d" * (3 << 20), b"e"]
    hasher = FileHasher(hashlib.sha256())
    for piece in pieces:
        hasher.update(piece)
    assert hasher.end() == hashes_of(b"".join(pieces), hashlib.sha256())


def test_without_a_second_thread_it_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter, where no thread can be started."""

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    hasher = FileHasher(hashlib.sha256())
    hasher.update(BYTES)
    assert hasher.end() == hashes_of(BYTES, hashlib.sha256())


def test_an_error_of_the_second_thread_is_raised_and_blocks_nobody() -> None:
    class Broken:
        def update(self, piece: object) -> None:
            raise ValueError("broken")

        def hexdigest(self) -> str:
            return ""

    hasher = FileHasher(Broken())
    for _ in range(100):
        hasher.update(BYTES)
    with pytest.raises(ValueError, match="broken"):
        hasher.end()
