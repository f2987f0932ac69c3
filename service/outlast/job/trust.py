"""Jobs that run without a question: those that this user submitted here, or trusted once.

A spec names a program and its environment, so whoever writes it runs code as the user who resumes
the job. The model is git's `safe.directory` (CVE-2022-24765) and ssh's known hosts.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from outlast.errors import JobForeign
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage


def remember(spec: bytes, url: str) -> None:
    """Trust this spec from now on. Where there is no writable home, nothing is remembered."""
    line = f"{_digest(spec)} {url!r}\n".encode()
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)


def is_trusted(spec: bytes) -> bool:
    """Return whether this user submitted exactly this spec on this machine, or trusted it."""
    wanted = _digest(spec)
    try:
        with _file().open(encoding="utf-8", errors="replace") as lines:
            return any(line.startswith(f"{wanted} ") for line in lines)
    except OSError:
        return False


def check_owner(storage: Storage, job: str) -> None:
    """Refuse a job whose folder, spec or journal belongs to another user. Buckets have no owner.

    A server may give to one user what another one creates there, as NFS does with root
    (root_squash). What belongs to the one that it gives this user's files to is this user's.

    Raises:
        JobForeign: it is neither this user's nor root's.
    """
    me = os.geteuid()
    for path in _owned(storage):
        try:
            owner = path.stat().st_uid
        except OSError:  # what uses it next says what is wrong with it
            continue
        if owner not in (me, 0) and owner != _owner_of_new_files(storage):
            raise JobForeign(job=job, path=str(path), owner=_name(owner), me=_name(me))


def _owner_of_new_files(storage: Storage) -> int | None:
    """Return to whom a file belongs that this process creates in the job; None if it cannot."""
    folder = storage.local_path("")
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_uid
    return None


def _owned(storage: Storage) -> Iterator[Path]:
    for name in ("", layout.SPEC, layout.JOURNAL):
        path = storage.local_path(name)
        if path is not None:
            yield path


def _digest(spec: bytes) -> str:
    return hashlib.sha256(spec).hexdigest()


def _file() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "outlast" / "trusted"


def _name(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user {uid}"
