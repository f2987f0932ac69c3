"""Slurm: the supervisor runs in a batch job that is requeued until the training is done.

It is started by srun, for the signals of preemption reach only the processes of job steps within
the grace time of a partition (PreemptMode, GraceTime: slurm.conf(5)). No accounting is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from outlast.backends.local import source_path
from outlast.engines.base import Handle, Standing
from outlast.errors import EngineFailed, SpecInvalid
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage

WITHIN: Final = 60.0  # seconds for one of Slurm's commands
# Slurm sends the signal up to a minute early: sbatch(1), --signal. So that is not part of the time.
EARLY: Final = 60
_OPTIONS: Final = ("partition", "nodes", "gpus", "time")
_OURS: Final = frozenset(
    {"signal", "requeue", "no-requeue", "output", "error", "open-mode", "chdir", "job-name", "wrap"}
)
_ONE: Final = frozenset({"nodes", "ntasks", "ntasks-per-node"})  # a training is one process
_SEVERAL: Final = "a training on several nodes or in several processes is not supported yet"
# Which sbatch takes before what the script says (and hands on, from one array to the next job): of
# these it would not be the job that was meant.
_VARIABLES: Final = re.compile(
    "SBATCH_(ARRAY_INX|REQUEUE|NO_REQUEUE|SIGNAL|OPEN_MODE|OUTPUT|ERROR|WAIT)|SLURM_ARRAY_.*"
)
_LIMIT: Final = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_LEAVING: Final = ("RUNNING", "PREEMPTED")  # states from which being requeued is what is wanted


class SlurmEngine:
    """Submits by sbatch, looks by squeue, stops by scancel, comes back by scontrol requeue."""

    def plan(self, spec: JobSpec, storage: Storage) -> str:
        return script(spec, storage)

    def launch(self, spec: JobSpec, storage: Storage) -> Handle:
        text = script(spec, storage)
        storage.replace(layout.BATCH_SCRIPT, text.encode())
        return _submit(text)

    def poll(self, handle: Handle) -> Standing | None:
        answer = _call("look for the job", "squeue", "-h", "-j", handle["id"], "-o", "%T|%r|%N")
        if not (line := answer.strip()):
            return None
        state, reason, nodes = line.splitlines()[0].split("|", 2)
        if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return Standing("queued", f"{state}, {reason}")
        return Standing("running", f"{state} on {nodes}" if nodes else state)

    def stop(self, handle: Handle) -> None:
        _call("cancel the job", "scancel", handle["id"])

    def again(self, handle: Handle, storage: Storage) -> Handle | None:
        if _state(handle["id"]) not in _LEAVING:
            return None  # cancelled
        try:
            _call("requeue the job", "scontrol", "requeue", handle["id"])
            return handle
        except EngineFailed:
            # A cluster may forbid it (JobRequeue=0, or the queue is full): another job then.
            text = storage.read(layout.BATCH_SCRIPT).decode()
            return _submit(text, f"--dependency=afterany:{handle['id']}")


def script(spec: JobSpec, storage: Storage) -> str:
    """Return the batch script of a job. Raises `SpecInvalid` naming the option."""
    options = _options(spec)
    given: dict[str, str | None] = {
        "job-name": spec.job,
        **{name: options[name] for name in _OPTIONS if name in options},
        "nodes": "1",
        "ntasks": "1",
        "requeue": None,
        "signal": f"USR1@{_margin(spec)}",
        "chdir": spec.cwd or None,
        "open-mode": "append",
    }
    if (place := storage.local_path(layout.SUPERVISOR_OUTPUT)) is not None:
        given["output"] = str(place).replace("\\", "\\\\").replace("%", "%%")
    given |= _more(options.get("sbatch", []))
    lines = [
        "#!/bin/bash",
        f"# {spec.runs.splitlines()[0] if spec.runs else spec.job}",
        *(f"#SBATCH {shlex.quote(_flag(name, value))}" for name, value in given.items()),
        "",
        "# It saves and is requeued when its time is nearly up or it is preempted.",
    ]
    if (source := source_path()) is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(source)}${{PYTHONPATH:+:$PYTHONPATH}}")
    command = [sys.executable, "-P", "-m", "outlast.engines.cluster_main", storage.root]
    cpus = "${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}"
    lines.append(f"exec srun --ntasks=1 {cpus} {shlex.join(command)}")
    return "\n".join(lines) + "\n"


def _flag(name: str, value: str | None) -> str:
    return f"--{name}" if value is None else f"--{name}={value}"


def _margin(spec: JobSpec) -> int:
    """Return how many seconds before its time is up the job is told."""
    return int(spec.grace) + EARLY


def _options(spec: JobSpec) -> dict[str, Any]:
    options = spec.engine_options
    for name in options:
        if name not in (*_OPTIONS, "sbatch"):
            raise SpecInvalid(
                field=f"engine_options.{name}",
                problem=f"Slurm has {', '.join(_OPTIONS)} here; all else goes by --sbatch {name}=…",
            )
    if (nodes := str(options.get("nodes", "1"))) != "1":
        raise SpecInvalid(
            field="engine_options.nodes", problem=f"{nodes} nodes: {_SEVERAL}. Leave it at 1"
        )
    if (limit := options.get("time")) is not None:
        seconds = _seconds(str(limit))
        if seconds <= _margin(spec):
            raise SpecInvalid(
                field="engine_options.time",
                problem=f"{limit} is no longer than the {_margin(spec)} s before its end in which "
                "the job saves and leaves (--grace, and a minute). Give it more time",
            )
    return options


def _more(given: Iterable[str]) -> dict[str, str | None]:
    """Return sbatch's own options, "key=value" or "key"."""
    found: dict[str, str | None] = {}
    for one in given:
        name, equals, value = one.partition("=")
        name = name.strip().lstrip("-")
        if (problem := _refused(name, value)) is not None:
            raise SpecInvalid(field="engine_options.sbatch", problem=problem)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise SpecInvalid(
                field="engine_options.sbatch",
                problem=f"{one!r} is no long option of sbatch: write it as key=value",
            )
        if "\n" in value or "\0" in value:
            raise SpecInvalid(field="engine_options.sbatch", problem=f"{name} has several lines")
        found[name] = value if equals else None
    return found


def _refused(name: str, value: str) -> str | None:
    """Return why an option of sbatch's own is not for the user to set, None when it is."""
    if name == "array":
        return (
            f"array={value} would start one job several times over, and it runs once. Submit a "
            "job for each task, under names of their own"
        )
    if name in _ONE and value.strip() != "1":
        return f"{name}={value}: {_SEVERAL}. Leave it at 1"
    return f"{name!r} is set by Outlast itself" if name in _OURS else None


def _seconds(limit: str) -> float:
    """Return what a time limit of Slurm's says: "90", "1:30:00", "2-12" (sbatch(1), --time)."""
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    match = _LIMIT.fullmatch(limit)
    if match is None:
        raise SpecInvalid(
            field="engine_options.time",
            problem=f"{limit!r} is no time limit of Slurm's. Write 90 (minutes), 1:30:00 or 2-12",
        )
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is not None:
        return days * 86400.0 + (first or 0) * 3600.0 + (second or 0) * 60.0 + (third or 0)
    if third is not None:
        return (first or 0) * 3600.0 + (second or 0) * 60.0 + third
    return (first or 0) * 60.0 + (second or 0)


def _submit(text: str, *more: str) -> Handle:
    env = {name: value for name, value in os.environ.items() if not _VARIABLES.fullmatch(name)}
    answer = _call("submit the job", "sbatch", "--parsable", *more, stdin=text, env=env)
    number, _, cluster = answer.strip().splitlines()[-1].partition(";")
    return {"id": number, **({"cluster": cluster} if cluster else {})}


def _state(number: str) -> str:
    answer = _call("look for the job", "scontrol", "show", "job", "-o", number)
    match = re.search(r"\bJobState=(\w+)", answer)
    return match[1] if match else ""


def _call(action: str, *command: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """Return what a command of Slurm's prints; "" for a job that it does not know any more."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=WITHIN, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineFailed(engine="slurm", action=action, reason=str(error)) from error
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr or done.stdout).strip()
    if "Invalid job id specified" in said:
        return ""
    reason = said or f"{command[0]} ended with {done.returncode}"
    raise EngineFailed(engine="slurm", action=action, reason=reason)
