"""The machine as far as it decides how numbers are rounded: threads per op and instruction set.

TensorFlow splits an op between its intra-op threads, and oneDNN and XLA compile for the instruction
set they find. Both change the order in which numbers are added. A job therefore keeps the threads
of its first attempt, and every attempt compares the rest. The number of CPUs and the inter-op
threads do not matter (measured: an MLP, a CNN with BatchNormalization and a transformer end with
the same bytes with 2 threads on 2 CPUs, on 1, and with 4 inter-op threads).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from outlast.errors import SpecInvalid
from outlast_checkpoints.errors import AlreadyExists, NotFound
from outlast_checkpoints.format.layout import MACHINE
from outlast_checkpoints.format.sealed_json import seal, unseal
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document

FORMAT: Final = 1
THREADS: Final = "TF_NUM_INTRAOP_THREADS"
_XLA_FLAGS: Final = "XLA_FLAGS"


@dataclass(frozen=True)
class _Cap:
    """A limit of the instruction set: what a CPU needs for it, and how libraries call it."""

    flags: frozenset[str]
    xla: str
    variables: Mapping[str, str]


# NumPy knows its sets by other names from 2.4 on; it warns of unknown ones in silence.
_NUMPY_NEWER: Final = "AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
_CAPS: Final[Mapping[str, _Cap]] = {
    "avx2": _Cap(
        frozenset({"avx2", "fma"}),
        "AVX2",
        {
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "NPY_DISABLE_CPU_FEATURES": f"AVX512F AVX512CD AVX512_SKX {_NUMPY_NEWER} X86_V4",
            "OPENBLAS_CORETYPE": "Haswell",
        },
    ),
    "avx512": _Cap(
        frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
        "AVX512",
        {
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
            "NPY_DISABLE_CPU_FEATURES": _NUMPY_NEWER,
            "OPENBLAS_CORETYPE": "SkylakeX",
        },
    ),
}
# The flags by which oneDNN and XLA choose their kernels.
_CHOSEN_BY: Final = frozenset(
    {
        *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq"),
        *("avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8"),
        *("amx_bf16", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
    }
)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What of a machine decides the bytes of a training's result."""

    format: int = FORMAT
    """Version of the format of machine.json."""
    intra_op_threads: int
    """Threads that TensorFlow may use for one op."""
    architecture: str
    """Architecture of the CPU: "x86_64", "aarch64"."""
    cpu_flags: list[str] = []
    """CPU features that oneDNN and XLA choose their kernels by, sorted; capped by `--cpu-isa`."""
    cpu_vendor: str = ""
    """Vendor of the CPU: "AuthenticAMD", "GenuineIntel"; "" if unknown."""
    cpu_caches: list[str] = []
    """Sizes of the data caches from the first level on: ["32K", "1024K", "32768K"]."""
    accelerator: str = ""
    """Kind of the GPU; "" without one."""


def cpus() -> int:
    """Return how many CPUs this process may use: TensorFlow's default for intra-op threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def here(threads: int, isa: str, accelerator: str = "") -> Machine:
    """Return this machine, for a training with so many intra-op threads.

    isa: cap of the instruction set: "native", "avx2" or "avx512".
    """
    flags = _flags()
    if isa in _CAPS and _CAPS[isa].flags <= flags:
        flags = _CAPS[isa].flags
    return Machine(
        intra_op_threads=threads,
        architecture=platform.machine(),
        cpu_flags=sorted(flags),
        cpu_vendor=_cpuinfo("vendor_id"),
        cpu_caches=_caches(),
        accelerator=accelerator,
    )


def differences(first: Machine, now: Machine) -> dict[str, str]:
    """Return what differs between two machines, by field: "2, now 1"."""
    found = {}
    for name in ("intra_op_threads", "architecture", "accelerator"):
        before, after = getattr(first, name), getattr(now, name)
        if before != after:
            found[name] = f"{before or 'none'}, now {after or 'none'}"
    for name, before, after in (
        ("cpu_vendor", first.cpu_vendor, now.cpu_vendor),
        ("cpu_caches", " ".join(first.cpu_caches), " ".join(now.cpu_caches)),
    ):
        if before and after and before != after:
            found[name] = f"{before}, now {after}"
    lost = sorted(set(first.cpu_flags) - set(now.cpu_flags))
    new = sorted(set(now.cpu_flags) - set(first.cpu_flags))
    if lost or new:
        found["cpu_flags"] = ", ".join(
            [*(f"no {name}" for name in lost), *(f"{n} is new" for n in new)]
        )
    return found


def load(storage: Storage) -> Machine | None:
    """Return the machine of the job's first training attempt; None before there was one."""
    try:
        return unseal(read_document(storage, MACHINE), MACHINE, Machine, FORMAT)
    except NotFound:
        return None


def keep(storage: Storage, machine: Machine) -> Machine:
    """Store the machine of a job unless one is stored; return the stored one."""
    try:
        storage.create(MACHINE, seal(machine))
    except AlreadyExists:
        return load(storage) or machine
    return machine


def set_variables(
    environ: MutableMapping[str, str], threads: int | None, isa: str
) -> dict[str, str]:
    """Set the variables that TensorFlow and NumPy read at their start; return those that were set.

    threads: intra-op threads, None to leave them to the machine. isa: cap of the instruction set.
    """
    wanted = {}
    if threads is not None:
        wanted[THREADS] = str(threads)
    if isa in _CAPS:
        wanted.update(_CAPS[isa].variables)
        flags = environ.get(_XLA_FLAGS, "")
        if "--xla_cpu_max_isa" not in flags:
            wanted[_XLA_FLAGS] = f"{flags} --xla_cpu_max_isa={_CAPS[isa].xla}".strip()
    environ.update(wanted)
    return wanted


def threads_in(environ: Mapping[str, str]) -> int | None:
    """Return the intra-op threads that the environment asks for. Raises `SpecInvalid`."""
    given = environ.get(THREADS)
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise SpecInvalid(field=THREADS, problem=f"{given!r} must be a positive integer")
    return int(given)


def _flags() -> frozenset[str]:
    return _CHOSEN_BY & frozenset(_cpuinfo("flags", "Features").split())


def _cpuinfo(*names: str) -> str:
    """Return the value of the first field with one of the names, or ""."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _caches() -> list[str]:
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    found = []
    for folder in folders:
        with suppress(OSError):
            if (folder / "type").read_text().strip() != "Instruction":
                found.append((folder / "size").read_text().strip())
    return found
