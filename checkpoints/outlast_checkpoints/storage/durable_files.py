"""The file operations under `LocalStorage`: each is durable, or leaves nothing, when it returns."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from contextlib import suppress
from pathlib import Path

from outlast_checkpoints.storage import confined

TEMPORARY = ".tmp-"  # how temporary files begin; readers do not see them
FILE_MODE, FOLDER_MODE = 0o600, 0o700  # for the user alone; the umask may take more away
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_CANNOT_KEEP = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_AT_FDCWD, _NOREPLACE = -100, 1  # of fcntl.h and stdio.h
_SMALL, _LARGE = 64 << 10, 4 << 20  # bytes of the first read, and of the largest
_CANNOT_SYNC_FOLDERS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})


def make_folder(folder: Path) -> None:
    """Create a folder and those above it. Raises `NotADirectoryError` if a file is in the way."""
    try:
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    except FileNotFoundError:
        make_folder(folder.parent)
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    except FileExistsError as error:
        # Callers take FileExistsError to mean that the file itself exists.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def read(base: str, path: str, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes of a file below `base` from `start` up to `end`, or up to its end."""
    file = confined.open_file(base, path)
    try:
        pieces = []
        size = _SMALL
        while piece := os.pread(
            file, size if end is None else max(0, min(_LARGE, end - start)), start
        ):
            pieces.append(piece)
            start += len(piece)
            size = _SMALL if len(piece) < size else min(2 * size, _LARGE)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(file)


def write_all(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def write_temporary(target: Path, data: bytes, *, durable: bool) -> Path:
    """Write a temporary file beside `target` and return its path."""
    temporary = target.with_name(f"{TEMPORARY}{os.urandom(8).hex()}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            write_all(file, data, 0)
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def publish(temporary: Path, target: Path) -> None:
    """Give a temporary file its final name. Raises `FileExistsError` if the name is taken.

    Without hard links a rename does it. Where the file system has no rename that fails if the name
    is taken, two processes that publish at the same moment may both succeed.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        with suppress(OSError):
            # Over NFS the answer to a successful link may be lost: the link count tells.
            if temporary.stat().st_nlink == 2:
                return
        if error.errno not in NO_LINKS:
            raise
        if not _renamed_exclusively(temporary, target):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            temporary.rename(target)


def publishes_exclusively(folder: Path) -> bool:
    """Return whether `publish` succeeds for exactly one of several processes in this folder."""
    one, two = (write_temporary(folder / "probe", b"", durable=False) for _ in "ab")
    try:
        os.link(one, two)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            return _renamed_exclusively(one, two)
        except FileExistsError:
            return True
    finally:
        for left in (one, two):
            with suppress(OSError):
                left.unlink()
    return False  # it has replaced the other


def _renamed_exclusively(source: Path, target: Path) -> bool:
    """Rename unless the new name is taken; return False where that cannot be done in one step."""
    if (rename := _renameat2()) is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_KEEP:
        return False
    raise OSError(number, os.strerror(number))


@functools.cache
def _renameat2() -> ctypes._FuncPointer | None:
    """Return libc's renameat2(2), if it has one."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths name the same existing file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def sync_file(path: Path) -> None:
    """Sync a file that other code has written, and make it private to its user."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        if mode & ~FILE_MODE:
            os.fchmod(file, mode & FILE_MODE)
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that names in it survive a power loss."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(file)
