"""Seccomp: leaves this process only the system calls with which it computes, reads and writes.

What a fault in HDF5's library could make the limited child do ends here: it can signal no process,
delete or rename no file, and start no program.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from typing import Final

_NO_NEW_PRIVILEGES: Final = 38  # PR_SET_NO_NEW_PRIVS of linux/prctl.h
_SET_FILTER: Final = 22, 2  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
_LOAD, _JUMP_IF, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET
_NUMBER, _ARCHITECTURE = 0, 4  # places in struct seccomp_data
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000

# By machine: AUDIT_ARCH_* of linux/audit.h, and the numbers of read, write, close, fstat,
# newfstatat, lseek, pread64, mmap, mprotect, munmap, mremap, madvise, brk, rt_sigaction,
# rt_sigprocmask, rt_sigreturn, sigaltstack, sched_yield, futex, getpid, clock_gettime,
# gettimeofday, getrusage, getrandom, exit, exit_group.
_MACHINES: Final = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 262, 8, 17, 9, 10, 11, 25, 28, 12, 13, 14, 15, 131, 24, 202, 39, 228, 96, 98,
         318, 60, 231),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 79, 62, 67, 222, 226, 215, 216, 233, 214, 134, 135, 139, 132, 124, 98, 172,
         113, 169, 165, 278, 93, 94),
    ),
}  # fmt: skip


class _Step(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        *(("code", ctypes.c_uint16), ("then", ctypes.c_uint8)),
        *(("otherwise", ctypes.c_uint8), ("value", ctypes.c_uint32)),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def confine() -> bool:
    """Refuse all other system calls from now on, with EPERM; return whether the system does so."""
    architecture, allowed = _MACHINES.get(platform.machine(), (0, ()))
    if not allowed:
        return False
    steps = [
        _Step(_LOAD, 0, 0, _ARCHITECTURE),
        _Step(_JUMP_IF, 1, 0, architecture),
        _Step(_RETURN, 0, 0, _KILL),
        _Step(_LOAD, 0, 0, _NUMBER),
        *(_Step(_JUMP_IF, len(allowed) - i, 0, number) for i, number in enumerate(allowed)),
        _Step(_RETURN, 0, 0, _REFUSE),
        _Step(_RETURN, 0, 0, _ALLOW),
    ]
    program = _Program(len(steps), (_Step * len(steps))(*steps))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    address = ctypes.addressof(program)
    return bool(prctl(*_SET_FILTER, address, 0, 0) == 0)
