"""Documents of a signed storage: what no holder of the key wrote for this place is refused."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from outlast_checkpoints.errors import (
    AlreadyExists,
    FormatError,
    KeyWrong,
    NotAuthentic,
    UsageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import key_file, open_storage, signed
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document, unsigned
from outlast_checkpoints.storage.signed import SignedStorage
from outlast_checkpoints.testing import StorageConformance

BODY = b'{\n  "format": 1\n}\n'
EVENT = layout.journal_event(7)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key file that every storage uses from now on."""
    path = tmp_path / "key"
    key_file.create(path)
    monkeypatch.setenv(key_file.KEY_FILE, str(path))
    return path


@pytest.fixture
def root(tmp_path: Path, key: Path) -> Storage:
    """Two jobs with one document each."""
    root = open_storage(tmp_path / "jobs")
    for name in ("a", "b"):
        job = root.sub(name)
        job.create(layout.SPEC, b'{"job": "%b"}' % name.encode())
        job.create(EVENT, BODY)
    return root


class TestSignedStorage(StorageConformance):
    """It is a storage like any other: its files are those of the storage below."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        keys = key_file.create(tmp_path / "key")

        class Whole(SignedStorage):
            def sign(self, path: str, data: bytes) -> bytes:
                return data

        return Whole(open_storage(tmp_path / "root"), keys)


def refused(storage: Storage, path: str = EVENT) -> str:
    with pytest.raises(FormatError) as found:
        read_document(storage, path)
    assert found.value.exit_code == 65
    assert isinstance(found.value, NotAuthentic), found.value
    return str(found.value)


def test_what_a_holder_wrote_is_read(root: Storage) -> None:
    assert read_document(root.sub("a"), EVENT) == BODY
    stored = unsigned(root.sub("a")).read(EVENT)
    assert re.match(
        rb'\{"checksum":"xxh3:[0-9a-f]{32}","mac":"hmac-sha256:[0-9a-f]{16}:[0-9a-f]{64}","body":',
        stored,
    )
    assert BODY in stored


def test_without_the_key_it_is_read_but_not_verified(
    root: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(key_file.KEY_FILE)
    assert read_document(open_storage(root.sub("a").root), EVENT) == BODY


def test_an_edit_is_refused(root: Storage) -> None:
    """Also one whose checksum was computed again, as an attacker does."""
    a, plain = root.sub("a"), unsigned(root.sub("a"))
    stored = plain.read(EVENT)
    forged = signed.SignedStorage(plain, _other_ring(), "x").sign(EVENT, b'{"format": 2}')
    head = stored[: stored.index(b'"mac"')]
    mac = stored[len(head) : stored.index(b'"body"')]
    rest = mac + b'"body":{"format": 2}}'
    resealed = b'{"checksum":"xxh3:%b",%b' % (_xxh3(rest), rest)
    for data, why in ((resealed, "was changed"), (forged, "signed with key")):
        plain.replace(EVENT, data)
        assert why in refused(a)


def test_damage_is_no_forgery(root: Storage) -> None:
    """Every flipped bit is damage, so a flipped bit never accuses anybody."""
    a, plain = root.sub("a"), unsigned(root.sub("a"))
    stored = plain.read(EVENT)
    for at in range(len(stored)):
        for bit in (1, 4):
            plain.replace(EVENT, stored[:at] + bytes([stored[at] ^ bit]) + stored[at + 1 :])
            with pytest.raises(FormatError) as found:
                read_document(a, EVENT)
            unmarked = at < len('{"checksum":"xxh3:","mac":') + 32 and isinstance(
                found.value, NotAuthentic
            )
            assert unmarked or type(found.value) is FormatError, (at, found.value)


def test_a_document_without_a_mac_is_refused(root: Storage) -> None:
    unsigned(root.sub("a")).replace(EVENT, BODY)
    assert "it has no MAC" in refused(root.sub("a"))


@pytest.mark.parametrize(
    ("job", "path"),
    [
        ("a", layout.journal_event(8)),
        ("a", layout.origin(1)),
        ("b", EVENT),
    ],
)
def test_a_document_of_another_place_is_refused(root: Storage, job: str, path: str) -> None:
    data = unsigned(root.sub("a")).read(EVENT)
    unsigned(root.sub(job)).replace(path, data)
    assert "another job or place" in refused(root.sub(job), path)


def test_a_job_takes_no_spec_of_another_without_losing_its_documents(root: Storage) -> None:
    spec = unsigned(root.sub("b")).read(layout.SPEC)
    unsigned(root.sub("a")).replace(layout.SPEC, spec)
    refused(root.sub("a"))
    unsigned(root.sub("a")).delete(layout.SPEC)
    assert "spec is missing" in refused(root.sub("a"))


def test_a_wrong_key_is_told_apart(
    root: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file.create(tmp_path / "other")
    monkeypatch.setenv(key_file.KEY_FILE, str(tmp_path / "other"))
    with pytest.raises(KeyWrong, match="Add the missing key"):
        read_document(open_storage(root.sub("a").root), layout.SPEC)


def test_rotation(root: Storage, key: Path) -> None:
    """The new key signs, and the old one still verifies."""
    old = key_file.load(key).ids
    new = key_file.rotate(key).ids
    assert new[1:] == old
    again = open_storage(root.sub("a").root)
    assert read_document(again, EVENT) == BODY
    again.create(layout.journal_event(8), BODY)
    assert new[0].encode() in unsigned(again).read(layout.journal_event(8))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    # A process that has run since before learns the new key when it meets it.
    assert read_document(root.sub("a"), layout.journal_event(8)) == BODY


def test_a_key_file_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    ring = key_file.create(path)
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(bytes.fromhex(text.strip())) == 32
    assert text.strip() not in repr(ring)
    for mode in (0o640, 0o604, 0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(UsageError, match="others can read or write"):
            key_file.load(path)
    path.chmod(0o600)
    with pytest.raises(AlreadyExists):
        key_file.create(path)
    if os.geteuid() == 0:
        me = 4001
        monkeypatch.setattr(os, "geteuid", lambda: me)
        path.chmod(0o640)  # as a cluster gives a Secret to a pod: of root, its group may read
        assert key_file.load(path).ids == ring.ids
        path.chmod(0o644)
        with pytest.raises(UsageError, match="others"):
            key_file.load(path)
        os.chown(path, 4002, 4002)
        path.chmod(0o600)
        with pytest.raises(UsageError, match="belongs to user 4002"):
            key_file.load(path)


@pytest.mark.parametrize(
    "text", ["", "# none\n", "00" * 31, "xy" * 32, "00" * 32 + "0", "hunter2-hunter2"]
)
def test_a_bad_key_file_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(UsageError) as found:
        key_file.load(path)
    assert str(path) in str(found.value)
    assert not text or text.startswith("#") or text not in str(found.value)


def test_a_key_file_is_no_pipe_and_may_be_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UsageError, match="regular file"):
        key_file.load(tmp_path / "pipe")
    key_file.create(tmp_path / "key")
    (tmp_path / "link").symlink_to("key")  # as a cluster mounts a Secret
    assert key_file.load(tmp_path / "link").ids


def test_the_identity_is_the_spec() -> None:
    assert signed.IDENTITY == layout.SPEC


def _other_ring() -> key_file.KeyRing:
    return key_file.KeyRing("other", [b"k" * 32])


def _xxh3(data: bytes) -> bytes:
    import xxhash

    return xxhash.xxh3_128_hexdigest(data).encode()
