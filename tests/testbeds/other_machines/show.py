"""`make other-machines`: does a job that moves between machines end with the same bytes?

Each kind of model is trained undisturbed, with `--intra-op-threads 2 --cpu-isa avx2`, and once
more killed at every second step, with its supervisor, and resumed on "another machine" each time:
pinned to one CPU, with other inter-op threads, under a CPU limit of a control group. Prints what
each attempt ran on and whether the ends are equal. What this machine does not have is left out.

With `--qemu A B`, both trainings run on processors that QEMU emulates: the undisturbed one on A,
the other one on A and B in turns (slow; apt-get install qemu-user). An emulated processor and this
one are not compared: they approximate reciprocals differently, as CPUs of two vendors do.

    python tests/testbeds/other_machines/show.py --qemu EPYC Haswell --kind dense
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
KINDS = ("dense", "cnn", "lstm", "transformer")
JOB = ("--root", ".", "--name", "job", "--seed", "1", "--save-every", "1")
SAME = ("--intra-op-threads", "2", "--cpu-isa", "avx2", "--stall-timeout", "3h")
GROUPS = Path("/sys/fs/cgroup")
# The command line, with another interpreter for the attempts.
COMMAND = "import sys; sys.executable = sys.argv.pop(1); from outlast.cli import main; main()"


@dataclass(frozen=True)
class Machine:
    """What an attempt runs on."""

    name: str
    before: Callable[[], None] | None = None
    """Called in the process before it starts."""
    environ: dict[str, str] = field(default_factory=dict)
    processor: str | None = None
    """Model of processor that QEMU emulates."""


def one_cpu() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def group(controller: str, **limits: str) -> Callable[[], None]:
    """Return what puts a process into a new control group with these limits (version 1 or 2)."""

    def enter() -> None:
        root = GROUPS / controller if (GROUPS / controller).is_dir() else GROUPS
        folder = root / f"outlast-{os.getpid()}"
        folder.mkdir()
        for name, value in limits.items():
            (folder / name.replace("__", ".")).write_text(value)
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    return enter


def machines() -> list[Machine]:
    """Return the machines that there are here; print what is left out."""
    found = [
        Machine("one CPU", one_cpu),
        Machine("1 inter-op thread", environ={"TF_NUM_INTEROP_THREADS": "1"}),
        Machine("16 inter-op threads", environ={"TF_NUM_INTEROP_THREADS": "16"}),
    ]
    if (GROUPS / "cpu/cpu.cfs_quota_us").exists() and os.access(GROUPS / "cpu", os.W_OK):
        quota = group("cpu", cpu__cfs_quota_us="30000")
        one = group("cpuset", cpuset__cpus="0", cpuset__mems="0")
        found += [Machine("0.3 CPUs (cgroup)", quota), Machine("CPU set 0 (cgroup)", one)]
    elif (GROUPS / "cgroup.controllers").exists() and os.access(GROUPS, os.W_OK):
        found.append(Machine("0.3 CPUs (cgroup)", group("", cpu__max="30000 100000")))
    else:
        print("left out: control groups cannot be written here")
    return found


def emulated(one: str, two: str) -> list[Machine]:
    """Return the first processor, and the ones to move to."""
    if shutil.which("qemu-x86_64") is None:
        sys.exit("qemu-x86_64 is not installed: apt-get install qemu-user")
    return [Machine(f"{name} (emulated)", processor=name) for name in (one, two, one)]


class Job:
    """A folder with the training; each call is one life of the job."""

    def __init__(self, folder: Path, deaths: list[int]) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copy(HERE / "train.py", folder)
        (folder / "deaths").write_text(" ".join(map(str, deaths)))

    def call(self, machine: Machine, *arguments: str) -> None:
        interpreter = sys.executable
        if machine.processor is not None:
            wrapper = self.folder / "python"
            real = Path(sys.executable)
            wrapper.write_text(
                f"#!/bin/sh\nPYTHONPATH={os.pathsep.join(sys.path[1:])} "
                f'exec qemu-x86_64 -cpu {machine.processor} {real.resolve()} "$@"\n'
            )
            wrapper.chmod(0o700)
            interpreter = str(wrapper)
        with (self.folder / "output").open("ab") as output:
            subprocess.run(
                [sys.executable, "-c", COMMAND, interpreter, *arguments],
                cwd=self.folder, env={**os.environ, **machine.environ},
                preexec_fn=machine.before, stdout=output, stderr=output, check=False,
            )  # fmt: skip

    @property
    def digest(self) -> str | None:
        path = self.folder / "digest"
        return path.read_text() if path.exists() else None

    def steps(self) -> str:
        manifests = sorted((self.folder / "job/checkpoints").glob("*/manifest.json"))
        return manifests[-1].parent.name if manifests else "none"

    def changes(self) -> list[str]:
        logs = sorted((self.folder / "job/attempts").glob("*/log.jsonl"))
        lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        return [str(line) for line in lines if line["event"] == "machine_changed"]


def show(kind: str, folder: Path, here: Machine, others: list[Machine]) -> bool:
    """Train both jobs of a kind; return whether they end alike."""
    untouched = Job(folder / f"{kind}-untouched", [])
    untouched.call(here, "run", *JOB, *SAME, "train.py", kind)
    moved = Job(folder / f"{kind}-moved", list(range(2, 2 * len(others) + 1, 2)))
    moved.call(here, "run", *JOB, *SAME, "train.py", kind)
    for machine in others:
        print(f"{kind}: {machine.name}, from checkpoint {moved.steps()}", flush=True)
        moved.call(machine, "resume", "--root", ".", "job")
    equal = moved.digest is not None and moved.digest == untouched.digest
    for change in moved.changes():
        print(f"{kind}: {change}")
    said = "equal" if equal else "DIFFERENT"
    print(f"{kind}: {said}: {untouched.digest} untouched, {moved.digest} moved", flush=True)
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qemu", nargs=2, metavar="CPU", help="two models of processors")
    parser.add_argument("--kind", action="append", choices=KINDS)
    given = parser.parse_args()
    here, *others = emulated(*given.qemu) if given.qemu else [Machine("this one"), *machines()]
    with tempfile.TemporaryDirectory(prefix="other-machines-") as folder:
        ends = [show(kind, Path(folder), here, others) for kind in given.kind or KINDS]
    return 0 if all(ends) else 1


if __name__ == "__main__":
    sys.exit(main())
