"""Opens what lies below a folder: no link is followed, no pipe or device is waited for.

Whoever can write a job's folder could otherwise have its reader wait for ever at a FIFO, read
another file's content, or change another folder. openat2(2) (Linux 5.6) resolves a whole path in
one call, so that nothing can be swapped meanwhile. Elsewhere each part is looked at first.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from contextlib import suppress
from typing import Final

_OPENAT2: Final = 437  # the number of the system call on every architecture
_NO_SYMLINKS, _BENEATH = 0x04, 0x08  # RESOLVE_* of linux/openat2.h
_NOT_THERE: Final = frozenset({errno.ENOSYS, errno.EPERM})  # an old kernel, or a filter


class _How(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_file(base: str, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open the regular file `path` below the folder `base`; return its descriptor.

    `base` itself may be or contain links.

    Raises:
        OSError: a part of the path is a link (ELOOP), or it is not a regular file (EINVAL).
    """
    file = _open_below(base, path, flags | os.O_NONBLOCK, mode)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "it is not a regular file")


def stat_of(base: str, path: str) -> os.stat_result:
    """Return the status of what `path` names below `base`. Errors are those of `open_file`."""
    file = _open_below(base, path, os.O_PATH)
    try:
        return os.fstat(file)
    finally:
        os.close(file)


def check_folders(base: str, path: str) -> None:
    """Refuse a path below `base` that goes through a link. Its last part may be anything.

    Raises:
        OSError: one of its folders is a link (ELOOP).
    """
    folder = path.rpartition("/")[0]
    if folder:
        with suppress(FileNotFoundError):
            os.close(_open_below(base, folder, os.O_PATH))


def _open_below(base: str, path: str, flags: int, mode: int = 0) -> int:
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if (file := _openat2(folder, path, flags, mode)) is not None:
            return file
        return _part_by_part(folder, path, flags, mode)
    finally:
        os.close(folder)


def _openat2(folder: int, path: str, flags: int, mode: int) -> int | None:
    """Return the descriptor; None where the kernel does not have the call."""
    call = _system_call()
    if call is None:
        return None
    how = _how(flags, mode)
    while True:
        file: int = call(_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if file >= 0:
            return file
        number = ctypes.get_errno()
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, _reason(number))


@functools.cache
def _how(flags: int, mode: int) -> _How:
    return _How(flags, mode, _NO_SYMLINKS | _BENEATH)


@functools.cache
def _system_call() -> ctypes._FuncPointer | None:
    """Return libc's syscall(2), if this kernel has openat2."""
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_long
    call.argtypes = (
        *(ctypes.c_long, ctypes.c_int, ctypes.c_char_p),
        *(ctypes.POINTER(_How), ctypes.c_size_t),
    )
    how = _How(os.O_PATH | os.O_CLOEXEC, 0, _BENEATH)
    file = call(_OPENAT2, -100, b".", ctypes.byref(how), ctypes.sizeof(how))  # -100: AT_FDCWD
    if file < 0:
        return None
    os.close(file)
    return call


def _part_by_part(folder: int, path: str, flags: int, mode: int) -> int:
    *above, name = path.split("/")
    opened: list[int] = []
    try:
        for part in above:
            folder = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            opened.append(folder)
            if stat.S_ISLNK(os.fstat(folder).st_mode):
                raise OSError(errno.ELOOP, _reason(errno.ELOOP))
        file = os.open(name, flags, mode, dir_fd=folder)
        if stat.S_ISLNK(os.fstat(file).st_mode):  # O_PATH opens the link itself
            os.close(file)
            raise OSError(errno.ELOOP, _reason(errno.ELOOP))
        return file
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, _reason(errno.ELOOP)) from error
        raise
    finally:
        for one in opened:
            os.close(one)


def _reason(number: int) -> str:
    if number in (errno.ELOOP, errno.EXDEV):
        return "a part of the path is a symbolic link, and links in a job are not followed"
    return os.strerror(number)
