"""Signed storages: every document carries a MAC, made with a key that the storage does not have.

`create` and `replace` sign what they write, and `read_document` verifies it before anything of it
is parsed. The MAC is bound to the job and to the document's path, and so to its attempt, its
checkpoint or its number: a document that is moved elsewhere is refused.

A signed document is `{"checksum":"xxh3:…","mac":"hmac-sha256:<key id>:<64 hex digits>","body":…}`.
The checksum covers all that follows it, so that damage is told apart from a wrong key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from outlast_checkpoints.errors import FormatError, KeyWrong, NotAuthentic, NotFound
from outlast_checkpoints.storage import file_mac
from outlast_checkpoints.storage.base import Appender, Capabilities, Following, Storage, Unfinished
from outlast_checkpoints.storage.file_mac import FileMac
from outlast_checkpoints.storage.key_file import KeyRing

IDENTITY: Final = "spec.json"  # the document whose hash is the identity of its job
DOCUMENT: Final = ".json"  # the ending of all documents
_PURPOSE: Final = b"outlast document 1"
_HEAD: Final = re.compile(
    rb'\{"checksum":"xxh3:([0-9a-f]{32})",'
    rb'"mac":"hmac-sha256:([0-9a-f]{16}):([0-9a-f]{64})","body":'
)
_LOOKS: Final = re.compile(rb'\{"checksum":"[^"]{0,64}","mac":')
_CHECKED: Final = len('{"checksum":"xxh3:",') + 32  # where the part begins that is checked


class Envelope(NamedTuple):
    """A signed document, taken apart.

    key: id of the key. mac: the MAC in hex. body: the document.
    """

    key: str
    mac: str
    body: bytes


def envelope(data: bytes, path: str) -> Envelope | None:
    """Return a signed document's parts; None for an unsigned one. Raises `FormatError`."""
    if not _LOOKS.match(data):
        return None
    head = _HEAD.match(data)
    if head is None or xxhash.xxh3_128_hexdigest(data[_CHECKED:]).encode() != head[1]:
        raise FormatError(path=path, reason="its checksum does not match its content")
    return Envelope(head[2].decode(), head[3].decode(), data[head.end() : -1])


def identity_of(spec: bytes) -> str:
    """Return what the documents of the job with this spec belong to."""
    return hashlib.sha256(spec).hexdigest()


class SignedStorage:
    """A storage that signs and verifies the documents of one job, or of the jobs below it.

    Args:
        inner: The storage without keys.
        keys: The keys.
        identity: What the documents belong to. None (default): the job whose spec is in it.
    """

    def __init__(self, inner: Storage, keys: KeyRing, identity: str | None = None) -> None:
        self.inner = inner
        self.keys = keys
        self._identity = identity

    @property
    def root(self) -> str:
        return self.inner.root

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    def create(self, path: str, data: bytes) -> None:
        self.inner.create(path, self.sign(path, data))

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self.inner.replace(path, self.sign(path, data), durable=durable)

    def sign(self, path: str, data: bytes) -> bytes:
        """Return a document with its MAC; any other file unchanged."""
        if not path.endswith(DOCUMENT):
            return data
        mac = self.keys.mac(self._bound(path, data))
        rest = b'"mac":"hmac-sha256:%b:%b","body":%b}' % (
            self.keys.ids[0].encode(),
            mac.encode(),
            data,
        )
        return b'{"checksum":"xxh3:%b",%b' % (xxhash.xxh3_128_hexdigest(rest).encode(), rest)

    def verified(self, path: str, data: bytes) -> bytes:
        """Return the document that was read from `path`.

        Raises:
            NotAuthentic: no holder of the key wrote it for this place.
            KeyWrong: it was signed with a key that is not in the key file.
            FormatError: it is damaged.
        """
        found = envelope(data, path)
        if found is None:
            raise NotAuthentic(path=path, reason="it has no MAC, and a key is set")
        self._check_key(path, found.key)
        wanted = self.keys.mac(self._bound(path, found.body), found.key)
        if not hmac.compare_digest(wanted, found.mac):
            reason = "it was changed, or it belongs to another job or place"
            raise NotAuthentic(path=path, reason=reason)
        return found.body

    def file_mac(self, path: str, stored: str | None = None) -> FileMac:
        """Return what computes the MAC of the file at `path`: a new one, or like the stored one.

        Raises:
            FormatError: `stored` is not a MAC.
            KeyWrong: it was made with a key that is not in the key file.
        """
        if stored is None:
            return self.keys.file_mac()
        found = file_mac.parts(stored)
        if found is None:
            raise FormatError(path=path, reason="its MAC is not valid")
        self._check_key(path, found.key)
        return self.keys.file_mac(found.key, found.salt)

    def _check_key(self, path: str, key: str) -> None:
        """Raise `KeyWrong` unless the key with this id is in the key file."""
        if key not in self.keys.ids:
            self.keys = self.keys.again()  # a key may have been put into the file meanwhile
        if key not in self.keys.ids:
            raise KeyWrong(
                path=path,
                found=key,
                file=self.keys.path,
                known=", ".join(self.keys.ids),
                reason=f"it was signed with key {key}",
            )

    def identity(self) -> str:
        """Return what the documents belong to: for a job, the hash of its spec.

        Raises:
            NotAuthentic: there is no spec, or it is not authentic.
        """
        if self._identity is None:
            try:
                data = self.inner.read_range(IDENTITY, 0, None)
            except NotFound:
                reason = "the job's spec is missing, so nothing proves that a file belongs to it"
                raise NotAuthentic(path=IDENTITY, reason=reason) from None
            self._identity = identity_of(self.verified(IDENTITY, data))
        return self._identity

    def _bound(self, path: str, data: bytes) -> bytes:
        """Return the bytes that the MAC of a document covers."""
        identity = "" if path == IDENTITY else self.identity()
        parts = [_PURPOSE, identity.encode(), path.encode()]
        return b"".join(b"%d:%b" % (len(part), part) for part in parts) + data

    def sub(self, folder: str) -> Storage:
        return type(self)(self.inner.sub(folder), self.keys)

    # Everything else is the storage's own.

    def read(self, path: str) -> bytes:
        return self.inner.read(path)

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        return self.inner.read_range(path, start, end)

    def size(self, path: str) -> int:
        return self.inner.size(path)

    def exists(self, path: str) -> bool:
        return self.inner.exists(path)

    def modified(self, path: str) -> float:
        return self.inner.modified(path)

    def list(self, folder: str) -> list[str]:
        return self.inner.list(folder)

    def delete(self, path: str) -> None:
        self.inner.delete(path)

    def delete_tree(self, folder: str) -> None:
        self.inner.delete_tree(folder)

    def stage(self, path: str, *, over: bool = False) -> AbstractContextManager[Path]:
        return self.inner.stage(path, over=over)

    def follow(self, path: str, local: Path, size: int) -> Following | None:
        return self.inner.follow(path, local, size)

    def fetch(self, path: str) -> AbstractContextManager[Path]:
        return self.inner.fetch(path)

    def read_into(self, path: str, buffer: memoryview) -> int:
        return self.inner.read_into(path, buffer)

    def link(self, source: str, path: str) -> bool:
        return self.inner.link(source, path)

    def appender(self, path: str) -> Appender:
        return self.inner.appender(path)

    def local_path(self, path: str) -> Path | None:
        return self.inner.local_path(path)

    def unfinished(self) -> Sequence[Unfinished]:
        return self.inner.unfinished()

    def discard(self, left: Unfinished) -> None:
        self.inner.discard(left)

    def __repr__(self) -> str:
        return f"SignedStorage({self.inner!r})"
