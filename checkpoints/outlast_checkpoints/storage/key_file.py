"""Key files: the secret keys that authenticate the documents of jobs.

A key file is text: one key a line, of at least 64 hex digits (32 bytes). Empty lines and lines that
begin with "#" are skipped. The first key signs, and all keys verify, so that a key can be replaced
while jobs signed with the older one still exist.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from outlast_checkpoints.errors import AlreadyExists, UsageError
from outlast_checkpoints.storage.file_mac import SALT, FileMac

KEY_FILE: Final = "OUTLAST_KEY_FILE"
_LARGEST: Final = 1 << 16  # bytes
_KEY: Final = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")
_FILE: Final = b"outlast file 1\0"  # before the salt of a file's key; no document begins so
_HINT: Final = "Make a key file with `outlast key new FILE`."


class KeyRing:
    """The keys of a key file.

    Attributes:
        path: The key file, for messages.
        ids: The ids of the keys: 16 hex digits each, the signing key first. They reveal nothing of
            the keys.
    """

    def __init__(self, path: str, keys: list[bytes]) -> None:
        self.path = path
        self._keys = {_id(key): key for key in keys}
        self.ids = list(self._keys)

    def mac(self, data: bytes, key: str | None = None) -> str:
        """Return the HMAC-SHA256 of `data` with the key of this id (default: the first), in hex."""
        return hmac.digest(self._keys[key or self.ids[0]], data, "sha256").hex()

    def file_mac(self, key: str | None = None, salt: bytes | None = None) -> FileMac:
        """Return what computes the MAC of one file: of a new one, or as a stored MAC says.

        key: the id of a key (default: the first). salt: of the stored MAC (default: a new one).
        """
        key, salt = key or self.ids[0], salt or secrets.token_bytes(SALT)
        return FileMac(key, salt, hmac.digest(self._keys[key], _FILE + salt, "sha256"))

    def again(self) -> KeyRing:
        """Return the keys of the file as it is now, or these if it cannot be used."""
        try:
            return load(self.path)
        except UsageError:
            return self

    def __repr__(self) -> str:
        return f"KeyRing({self.path!r}, {self.ids})"


def configured() -> KeyRing | None:
    """Return the keys of the file that $OUTLAST_KEY_FILE names; None if it names none.

    Raises:
        UsageError: the file cannot be read, is not private, or holds no valid key.
    """
    path = os.environ.get(KEY_FILE)
    if not path:
        return None
    try:
        found = Path(path).stat()
    except OSError as error:
        raise _wrong(path, f"it cannot be read: {error.strerror}") from error
    return _read(path, (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode))


def load(path: str | os.PathLike[str]) -> KeyRing:
    """Return the keys of a key file. Raises `UsageError` as `configured` does."""
    name = os.fspath(path)
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _wrong(name, f"it cannot be read: {error.strerror}") from error
    with os.fdopen(file, "rb") as opened:
        if problem := _not_private(os.fstat(file)):
            raise _wrong(name, problem, "Its mode must be 0600, and its owner you or root.")
        text = opened.read(_LARGEST).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):  # the message never shows the key
            raise _wrong(name, f"key {number} is not 64 or more hex digits")
    if not keys:
        raise _wrong(name, "it holds no key")
    return KeyRing(name, [bytes.fromhex(key) for key in keys])


def create(path: Path) -> KeyRing:
    """Create a key file with one new random key, readable by its owner only.

    Raises:
        AlreadyExists: the file exists.
        UsageError: it cannot be written.
    """
    try:
        _write(path, [secrets.token_hex(32)])
    except FileExistsError as error:
        raise AlreadyExists(path=path.name, root=str(path.absolute().parent)) from error
    except OSError as error:
        raise _wrong(str(path), f"it cannot be written: {error.strerror}") from error
    return load(path)


def rotate(path: Path) -> KeyRing:
    """Put a new random key before the keys of a key file. Raises `UsageError`."""
    load(path)
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        _write(fresh, [secrets.token_hex(32), target.read_text().rstrip("\n")])
        fresh.replace(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise _wrong(str(path), f"it cannot be written: {error.strerror}") from error
    return load(path)


@functools.lru_cache(maxsize=8)
def _read(path: str, version: tuple[int, ...]) -> KeyRing:
    return load(path)


def _write(path: Path, lines: list[str]) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as opened:
        os.fchmod(file, 0o600)  # whatever the umask
        opened.write("\n".join(lines) + "\n")
        opened.flush()
        os.fsync(file)


def _not_private(found: os.stat_result) -> str:
    """Return why somebody else could know or change a key; "" if nobody can.

    A file of root may be readable by its group: so root, or a cluster, hands it to a service.
    """
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    me = os.geteuid()
    if found.st_uid not in (me, 0):
        return f"it belongs to user {found.st_uid}, not to user {me}"
    allowed = 0o700 if found.st_uid == me else 0o740
    if stat.S_IMODE(found.st_mode) & ~allowed & 0o777:
        return f"others can read or write it (its mode is {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _id(key: bytes) -> str:
    return hashlib.sha256(b"outlast key id\0" + key).hexdigest()[:16]


def _wrong(path: str, problem: str, hint: str = _HINT) -> UsageError:
    return UsageError(field=f"key file {path}", problem=problem, hint=hint)
