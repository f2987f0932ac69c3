"""The Slurm engine: a batch job runs the supervisor and is requeued until the job is done.

The supervisor is started by srun, because preemption signals reach only job steps within the grace
time of a partition (PreemptMode, GraceTime: slurm.conf(5)). No accounting database is needed.
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
from outlast.engines.base import Handle, QueueState
from outlast.errors import EngineFailed, SpecInvalid
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format import layout
from outlast_checkpoints.printable import printable
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.key_file import KEY_FILE

TIMEOUT: Final = 60.0  # seconds for one of Slurm's commands
# Slurm may send the signal up to a minute early (sbatch(1), --signal).
EARLY: Final = 60
_OPTIONS: Final = ("partition", "nodes", "gpus", "time")
_RESERVED: Final = frozenset(
    {
        "signal",
        "requeue",
        "no-requeue",
        "output",
        "error",
        "open-mode",
        "chdir",
        "job-name",
        "wrap",
        "comment",
    }
)
_MUST_BE_ONE: Final = frozenset({"nodes", "ntasks", "ntasks-per-node"})  # a training is one process
_ONLY_ONE: Final = "training on several nodes or in several processes is not supported yet"
# sbatch prefers these variables to the options in the script, and passes them on from one array to
# the next job. They would change the job, so they are removed.
_VARIABLES: Final = re.compile(
    "SBATCH_(ARRAY_INX|REQUEUE|NO_REQUEUE|SIGNAL|OPEN_MODE|OUTPUT|ERROR|WAIT)|SLURM_ARRAY_.*"
)
_LIMIT: Final = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_REQUEUABLE: Final = ("RUNNING", "PREEMPTED")  # states in which a requeue is wanted


class SlurmEngine:
    """Uses sbatch, squeue, scancel and scontrol requeue."""

    def plan(self, spec: JobSpec, storage: Storage) -> str:
        return script(spec, storage)

    def launch(self, spec: JobSpec, storage: Storage) -> Handle:
        text = script(spec, storage)
        storage.replace(layout.BATCH_SCRIPT, text.encode())
        return _submit(text)

    def poll(self, handle: Handle) -> QueueState | None:
        answer = _call("look for the job", "squeue", "-h", "-j", _number(handle), "-o", "%T|%r|%N")
        if not (line := answer.strip()):
            return None
        state, reason, nodes = line.splitlines()[0].split("|", 2)
        if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return QueueState("queued", f"{state}, {reason}")
        return QueueState("running", f"{state} on {nodes}" if nodes else state)

    def stop(self, handle: Handle, storage: Storage) -> None:
        number = _number(handle)
        answer = _call("look for the job", "squeue", "-h", "-j", number, "-o", "%k")
        if not (comments := answer.strip().splitlines()):
            return
        if comments[0] != _comment(storage):
            raise EngineFailed(
                engine="slurm",
                action="cancel the job",
                reason=f"job {number} of Slurm does not belong to {storage.root}, so it was left "
                "alone. The journal of that job names it: somebody may have changed the journal",
            )
        _call("cancel the job", "scancel", number)

    def requeue(self, handle: Handle, storage: Storage) -> Handle | None:
        number = _number(handle)
        if _state(number) not in _REQUEUABLE:
            return None  # cancelled
        try:
            _call("requeue the job", "scontrol", "requeue", number)
            return handle
        except EngineFailed:
            # If the cluster refuses (JobRequeue=0, or a full queue), submit another job.
            # It is made anew: whoever can write the job could have changed the stored one.
            text = script(load_spec(storage), storage)
            return _submit(text, f"--dependency=afterany:{number}")


def script(spec: JobSpec, storage: Storage) -> str:
    """Return the batch script of a job.

    Raises:
        SpecInvalid: an option is unknown or invalid, or contains a control character.
    """
    options = _options(spec)
    given: dict[str, str | None] = {
        "job-name": spec.job,
        "comment": _comment(storage),
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
    given |= _sbatch_options(options.get("sbatch", []))
    for name, value in given.items():
        if value is not None and printable(value) != value:
            field = {"chdir": "cwd", "job-name": "job"}.get(name, f"engine_options.{name}")
            raise SpecInvalid(
                field=field,
                problem=f"{value!r} contains a control character, which could begin another line "
                "of the batch script. Remove it",
            )
    lines = [
        "#!/bin/bash",
        f"# {printable(spec.runs)}",
        *(f"#SBATCH {shlex.quote(_flag(name, value))}" for name, value in given.items()),
        "",
        "# Near its time limit or when preempted, the job saves its state and is requeued.",
    ]
    if (source := source_path()) is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(source)}${{PYTHONPATH:+:$PYTHONPATH}}")
    if key_file := os.environ.get(KEY_FILE):  # the path only; the node must have the file
        lines.append(f"export {KEY_FILE}={shlex.quote(key_file)}")
    command = [sys.executable, "-P", "-m", "outlast.engines.cluster_main", storage.root]
    cpus = "${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}"
    lines.append(f"exec srun --ntasks=1 {cpus} {shlex.join(command)}")
    return "\n".join(lines) + "\n"


def _comment(storage: Storage) -> str:
    """Return the comment by which Slurm's job is recognised as this job's."""
    return f"outlast {storage.root}"


def _number(handle: Handle) -> str:
    """Return the id of Slurm's job.

    Raises:
        FormatError: it is not an id. A file named it, and it could be an option of scancel.
    """
    number = handle.get("id")
    if not isinstance(number, str) or not re.fullmatch(r"\d+(_\d+)?", number):
        raise FormatError(path="events", reason=f"{number!r} is not the id of a job of Slurm")
    return number


def _flag(name: str, value: str | None) -> str:
    return f"--{name}" if value is None else f"--{name}={value}"


def _margin(spec: JobSpec) -> int:
    """Return how many seconds before its time limit the job gets its signal."""
    return int(spec.grace) + EARLY


def _options(spec: JobSpec) -> dict[str, Any]:
    options = spec.engine_options
    for name in options:
        if name not in (*_OPTIONS, "sbatch"):
            raise SpecInvalid(
                field=f"engine_options.{name}",
                problem=f"there is no such option. Use {', '.join(_OPTIONS)}, or --sbatch {name}=…",
            )
    if (nodes := str(options.get("nodes", "1"))) != "1":
        raise SpecInvalid(
            field="engine_options.nodes", problem=f"{nodes} nodes: {_ONLY_ONE}. Use 1"
        )
    if (limit := options.get("time")) is not None:
        seconds = _seconds(str(limit))
        if seconds <= _margin(spec):
            raise SpecInvalid(
                field="engine_options.time",
                problem=f"{limit} is too short: the job needs {_margin(spec)} s to save and leave "
                "(--grace and a minute). Use a longer time limit",
            )
    return options


def _sbatch_options(given: Iterable[str]) -> dict[str, str | None]:
    """Return the options given by --sbatch, "key=value" or "key"."""
    found: dict[str, str | None] = {}
    for one in given:
        name, equals, value = one.partition("=")
        name = name.strip().lstrip("-")
        if (problem := _why_refused(name, value)) is not None:
            raise SpecInvalid(field="engine_options.sbatch", problem=problem)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise SpecInvalid(
                field="engine_options.sbatch",
                problem=f"{one!r} is not a long option of sbatch. Use key=value",
            )
        found[name] = value if equals else None
    return found


def _why_refused(name: str, value: str) -> str | None:
    """Return why the user may not set an option of sbatch; None if they may."""
    if name == "array":
        return (
            f"array={value} would start the same job several times. Submit one job for each "
            "task, with different names"
        )
    if name in _MUST_BE_ONE and value.strip() != "1":
        return f"{name}={value}: {_ONLY_ONE}. Use 1"
    return f"Outlast sets {name!r} itself. Omit it" if name in _RESERVED else None


def _seconds(limit: str) -> float:
    """Return the seconds of a time limit such as "90", "1:30:00" or "2-12" (sbatch(1), --time)."""
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    match = _LIMIT.fullmatch(limit)
    if match is None:
        raise SpecInvalid(
            field="engine_options.time",
            problem=f"{limit!r} is not a time limit of Slurm. Use for example 90 (minutes), "
            "1:30:00 or 2-12",
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
    """Return the output of a Slurm command; "" when Slurm no longer knows the job."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineFailed(engine="slurm", action=action, reason=str(error)) from error
    if done.returncode == 0:
        return done.stdout
    message = (done.stderr or done.stdout).strip()
    if "Invalid job id specified" in message:
        return ""
    reason = message or f"{command[0]} ended with {done.returncode}"
    raise EngineFailed(engine="slurm", action=action, reason=reason)
