"""Reading a job's small documents: their size is limited, and with a key they are verified."""

from __future__ import annotations

from typing import Final

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.file_mac import FileMac
from outlast_checkpoints.storage.signed import SignedStorage, envelope, identity_of

_LARGEST: Final = 16 << 20  # bytes; a larger document is refused


def read_document(storage: Storage, path: str, *, often: bool = False) -> bytes:
    """Return the content of one of a job's small documents.

    often: the document is read so often that its size is not checked in a bucket, where the check
    costs a second request.

    Raises:
        NotFound: there is no such document.
        FormatError: it is larger than 16 MiB, or its checksum is wrong.
        NotAuthentic: a key is set, and no holder of it wrote the document.
    """
    return opened(storage, path, raw_document(storage, path, often=often))


def raw_document(storage: Storage, path: str, *, often: bool = False) -> bytes:
    """Return a document as it is stored, with its MAC. Arguments and errors as above."""
    if often and not storage.capabilities.local:
        return storage.read(path)
    data = storage.read_range(path, 0, _LARGEST + 1)
    if len(data) > _LARGEST:
        raise FormatError(path=path, reason=f"it is larger than {_LARGEST} bytes")
    return data


def opened(storage: Storage, path: str, data: bytes) -> bytes:
    """Return the document in what was read from `path`: verified, or only without its MAC."""
    if isinstance(storage, SignedStorage):
        return storage.verified(path, data)
    found = envelope(data, path)
    return data if found is None else found.body


def is_signed(storage: Storage) -> bool:
    """Return whether documents of this storage are signed and verified."""
    return isinstance(storage, SignedStorage)


def file_mac(storage: Storage, path: str, stored: str | None = None) -> FileMac | None:
    """Return what computes the MAC of a file, a new one or like the stored one; None without keys.

    Raises:
        FormatError: `stored` is not a MAC.
        KeyWrong: it was made with a key that is not in the key file.
    """
    return storage.file_mac(path, stored) if isinstance(storage, SignedStorage) else None


def unsigned(storage: Storage) -> Storage:
    """Return the storage as it is without keys, to copy documents with their MACs."""
    return storage.inner if isinstance(storage, SignedStorage) else storage


def with_spec(storage: Storage, spec: bytes) -> Storage:
    """Return the storage of a job whose spec will be written last."""
    if isinstance(storage, SignedStorage):
        return SignedStorage(storage.inner, storage.keys, identity_of(spec))
    return storage


def belonging(storage: Storage, like: Storage, identity: str) -> Storage:
    """Return a storage without a spec, signed with the keys of another one.

    identity: what its documents belong to.
    """
    if isinstance(like, SignedStorage):
        return SignedStorage(unsigned(storage), like.keys, identity)
    return storage
