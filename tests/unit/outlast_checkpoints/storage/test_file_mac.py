"""The MAC of a file: the published values, a key for each file, and pieces of any length."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from outlast_checkpoints.errors import FormatError, KeyWrong
from outlast_checkpoints.storage import file_mac, key_file
from outlast_checkpoints.storage.file_mac import FileMac
from outlast_checkpoints.storage.local import LocalStorage
from outlast_checkpoints.storage.signed import SignedStorage

CONTENT = bytes(range(256)) * 5 + b"tail"


def test_it_is_gcm_without_a_text() -> None:
    """Case 13 of the vectors in the specification of GCM by McGrew and Viega."""
    found = FileMac("0" * 16, bytes(16), bytes(32)).hexdigest()
    assert found == f"gmac:{'0' * 16}:{'0' * 32}:530f8afbc74536b9a963b4f1c4cb738b"


@pytest.mark.parametrize("length", [1, 15, 16, 17, 1000, 4096])
def test_the_pieces_do_not_matter(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_mac, "_AT_ONCE", 700)
    key = bytes(range(32))
    made = FileMac("0" * 16, bytes(16), key)
    for start in range(0, len(CONTENT), length):
        made.update(memoryview(CONTENT)[start : start + length])
    tag = AESGCM(key).encrypt(bytes(12), b"", CONTENT)
    assert made.hexdigest().rpartition(":")[2] == tag.hex()


def test_each_file_has_a_key_of_its_own(tmp_path: Path) -> None:
    ring = key_file.create(tmp_path / "key")
    first, second = ring.file_mac(), ring.file_mac()
    for one in (first, second):
        one.update(CONTENT)
    texts = first.hexdigest(), second.hexdigest()
    a, b = (file_mac.parts(text) for text in texts)
    assert a is not None
    assert b is not None
    assert a.key == b.key == ring.ids[0]
    assert a.salt != b.salt
    secret = bytes.fromhex((tmp_path / "key").read_text().strip())
    derived = hmac.new(secret, b"outlast file 1\0" + a.salt, hashlib.sha256).digest()
    assert a.tag == AESGCM(derived).encrypt(bytes(12), b"", CONTENT).hex()
    again = ring.file_mac(b.key, b.salt)
    again.update(CONTENT)
    assert again.hexdigest() == again.hexdigest() == texts[1]


@pytest.mark.parametrize("text", ["", "gmac:", "gmac:" + "0" * 16, "hmac" + "0" * 90])
def test_another_text_is_no_mac(text: str, tmp_path: Path) -> None:
    storage = SignedStorage(LocalStorage(tmp_path), key_file.create(tmp_path / "key"))
    assert file_mac.parts(text) is None
    with pytest.raises(FormatError):
        storage.file_mac("x", text)


def test_a_mac_of_another_key_is_named(tmp_path: Path) -> None:
    storage = SignedStorage(LocalStorage(tmp_path), key_file.create(tmp_path / "key"))
    other = key_file.create(tmp_path / "other")
    with pytest.raises(KeyWrong, match=other.ids[0]):
        storage.file_mac("x", other.file_mac().hexdigest())
