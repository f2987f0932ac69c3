"""What of a machine affects rounding: kept from the first attempt, set, and compared."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from outlast.errors import SpecInvalid
from outlast.job import machine
from outlast.job.machine import Machine
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.layout import MACHINE
from outlast_checkpoints.storage import open_storage


def of(threads: int = 2, flags: tuple[str, ...] = ("avx2", "fma"), gpu: str = "") -> Machine:
    return Machine(
        intra_op_threads=threads, architecture="x86_64", cpu_flags=[*flags], accelerator=gpu
    )


def test_the_first_machine_stays_the_jobs(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert machine.load(storage) is None
    assert machine.keep(storage, of(2)) == of(2)
    assert machine.keep(storage, of(1)) == of(2)
    assert machine.load(storage) == of(2)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    machine.keep(storage, of(2))
    data = (tmp_path / MACHINE).read_bytes()
    (tmp_path / MACHINE).write_bytes(data.replace(b"x86_64", b"x86-64"))
    with pytest.raises(FormatError, match="checksum"):
        machine.load(storage)


def test_equal_machines_have_no_differences() -> None:
    assert machine.differences(of(), of()) == {}


def test_each_difference_is_named() -> None:
    now = of(1, ("avx2", "avx512f"), gpu="NVIDIA L4")
    assert machine.differences(of(2), now) == {
        "intra_op_threads": "2, now 1",
        "accelerator": "none, now NVIDIA L4",
        "cpu_flags": "no fma, avx512f is new",
    }


def test_another_vendor_and_other_caches_are_named_if_both_are_known() -> None:
    def cpu(vendor: str, *caches: str) -> Machine:
        return Machine(
            intra_op_threads=2, architecture="x86_64", cpu_vendor=vendor, cpu_caches=[*caches]
        )

    one, two = cpu("AuthenticAMD", "32K", "512K"), cpu("GenuineIntel", "48K", "2048K")
    assert machine.differences(one, two) == {
        "cpu_vendor": "AuthenticAMD, now GenuineIntel",
        "cpu_caches": "32K 512K, now 48K 2048K",
    }
    assert machine.differences(one, cpu("")) == machine.differences(cpu(""), two) == {}


def test_this_machine_has_a_vendor_and_caches() -> None:
    found = machine.here(2, "native")
    assert found == machine.here(2, "native")
    assert found.cpu_vendor in Path("/proc/cpuinfo").read_text()
    kinds = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/type")]
    assert len(found.cpu_caches) == len(kinds) - kinds.count("Instruction\n")


def test_variables_for_threads_and_for_a_cap() -> None:
    environ = {"XLA_FLAGS": "--xla_dump_to=here"}
    found = machine.set_variables(environ, 3, "avx2")
    assert environ == found
    numpy = environ.pop("NPY_DISABLE_CPU_FEATURES").split()
    assert {"AVX512F", "AVX512_SKX", "X86_V4"} <= {*numpy}
    assert environ == {
        "TF_NUM_INTRAOP_THREADS": "3",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": "--xla_dump_to=here --xla_cpu_max_isa=AVX2",
    }
    assert machine.set_variables(environ, 3, "avx2")["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert environ["XLA_FLAGS"].count("xla_cpu_max_isa") == 1


def test_numpy_keeps_to_the_cap() -> None:
    """The exponential of doubles is another one with AVX-512."""
    environ = {**os.environ}
    machine.set_variables(environ, None, "avx2")
    code = "from numpy.lib.introspect import opt_func_info as of; print(of('^exp$'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    chosen = [kind["current"] for kind in ast.literal_eval(done.stdout)["exp"].values()]
    assert chosen
    assert not [name for name in chosen if name.startswith(("AVX512", "X86_V4"))]


def test_native_sets_no_limit() -> None:
    environ: dict[str, str] = {}
    assert machine.set_variables(environ, None, "native") == environ == {}


@pytest.mark.parametrize(("given", "threads"), [("4", 4), ("", None)])
def test_threads_of_the_environment(given: str, threads: int | None) -> None:
    assert machine.threads_in({"TF_NUM_INTRAOP_THREADS": given}) == threads


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5"])
def test_threads_that_are_no_number_are_refused_by_name(given: str) -> None:
    with pytest.raises(SpecInvalid, match="TF_NUM_INTRAOP_THREADS"):
        machine.threads_in({"TF_NUM_INTRAOP_THREADS": given})


def test_a_limit_hides_higher_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset({"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
    monkeypatch.setattr(machine, "_flags", lambda: flags | {"amx_tile"})
    newer = machine.here(2, "avx2")
    monkeypatch.setattr(machine, "_flags", lambda: frozenset({"avx", "avx2", "fma"}))
    older = machine.here(2, "avx2")
    assert machine.differences(newer, older) == {}


def test_a_machine_without_the_cap_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_flags", lambda: frozenset({"avx2", "fma"}))
    capped = machine.here(2, "avx2")
    monkeypatch.setattr(machine, "_flags", lambda: frozenset({"avx"}))
    assert "cpu_flags" in machine.differences(capped, machine.here(2, "avx2"))
