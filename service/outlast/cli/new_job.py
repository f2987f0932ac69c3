"""A new job, made of the options that `outlast run` and `outlast submit` share."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from outlast.cli.display.say import say
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, below, is_job
from outlast.cli.sections import Section
from outlast_checkpoints.errors import UsageError

if TYPE_CHECKING:
    from outlast.job.spec import JobSpec


class ScriptVerb(Verb):
    """A command whose options end at SCRIPT; everything after it belongs to the script."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**self.context_settings, "allow_interspersed_args": False}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; the value of --adopt is optional, so SCRIPT is never its value."""
        said = ["--adopt=yes" if arg == "--adopt" else arg for arg in args]
        if said != args:
            found, *_ = self.make_parser(ctx).parse_args(list(said))
            options = len(args) - len(found["command"])
            args = [*said[:options], *args[options:]]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below the headings of their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                heading = param.section if isinstance(param, Section) else "Other"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


command_argument = click.argument(
    "command", metavar="SCRIPT [ARGS]...", nargs=-1, type=click.UNPROCESSED
)


def named(
    ctx: click.Context, command: tuple[str, ...], options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the name of the job, and the fields of its spec that say what it runs."""
    from outlast.job.spec import new_job_id

    what = _what_to_run(ctx, command, options["module"])
    return options["name"] or new_job_id(what["script"] or what["module"]), what


def prepare(
    ctx: click.Context, command: tuple[str, ...], options: dict[str, Any]
) -> tuple[Place, bool]:
    """Create or find the job to supervise; return its place, and whether it is finished."""
    from outlast.cli.handover import plan
    from outlast.supervisor.supervisor import submit as submit_job
    from outlast_checkpoints.storage import open_storage

    name, what = named(ctx, command, options)
    place = below(options["root"], name)
    if options["resume_if_exists"] and options["name"] and is_job(place.storage):
        fixed = {} if options["replicas"] is None else {"replicas": options["replicas"]}
        return place, _resume_existing(place, options["root"], what, fixed)
    spec = new_spec(ctx, name, what, options)
    plan(place.storage, spec)  # rejects options that the engine does not know
    submit_job(open_storage(absolute(options["root"])), spec)
    return place, False


def _what_to_run(ctx: click.Context, command: tuple[str, ...], module: bool) -> dict[str, Any]:
    """Return script or module and args, from the command line or else from --config."""
    if command:
        key = "module" if module else "script"
        return {"script": None, "module": None, key: command[0], "args": list(command[1:])}
    found = ctx.default_map or {}
    if not (found.get("script") or found.get("module")):
        raise click.UsageError("Missing SCRIPT. Name the script to run.", ctx)
    return {
        "script": found.get("script"),
        "module": found.get("module"),
        "args": found.get("args", []),
    }


def _cadence(save_every: str, max_overhead: str | None) -> str:
    """Return the save cadence, with --max-overhead as the bound of its automatic part."""
    if max_overhead is None:
        return save_every
    parts = [part.strip() for part in save_every.split(",")]
    if "auto" not in parts:
        raise UsageError(
            field="--max-overhead",
            problem=f"it applies to --save-every auto only, and --save-every is {save_every!r}",
            hint="Omit one of the two, or use --save-every auto.",
        )
    return ",".join(f"auto:{max_overhead}" if part == "auto" else part for part in parts)


def new_spec(
    ctx: click.Context, name: str, what: dict[str, Any], options: dict[str, Any]
) -> JobSpec:
    """Return the spec of a new job made of the command line's options.

    Raises:
        UsageError: the script cannot be read, or two options contradict each other.
        SpecInvalid: a value is out of range.
    """
    from outlast.job.spec import JobSpec, spec_env

    cwd = options["cwd"].absolute() if options["cwd"] else Path.cwd()
    if options["engine"] == "kubernetes":
        cwd = options["cwd"] or Path()  # a path in the image; default: the image's own
    here = options["engine"] in ("local", "slurm")
    python = options["python"]
    if here:
        _check_can_run(cwd, what, python, dict(options["env"]))
    given = {"seed": options["seed"]} if options["seed"] is not None else {}
    policies = {
        key: options[key]
        for key in (
            "save_every", "keep", "on_save_error", "deterministic", "on_nan", "rollback",
            "max_retries", "adopt", "replicas", "intra_op_threads", "cpu_isa", "audit_every",
            "backoff", "backoff_max", "stall_timeout", "grace", "heartbeat_every", "lost_after",
            "engine", "backend", "warm_spare", "preemption",
            "max_duration",
        )
    }  # fmt: skip
    policies["grace_is_limit"] = ctx.get_parameter_source("grace") is not ParameterSource.DEFAULT
    policies["save_every"] = _cadence(options["save_every"], options["max_overhead"])
    return JobSpec(
        job=name,
        cwd="" if cwd == Path() else str(cwd),
        python=absolute(python) if python and os.sep in python else python,
        env=spec_env(dict(options["env"])),
        engine_options=dict(options["engine_option"]),
        tags=dict(options["tag"]),
        created=time.time(),
        **what,
        **policies,
        **given,
    )


def _check_can_run(
    cwd: Path, what: dict[str, Any], python: str | None, env: dict[str, str]
) -> None:
    """Raise `UsageError` unless the interpreter and the script or module exist on this machine."""
    if python is not None and not shutil.which(cwd / python if os.sep in python else python):
        raise UsageError(
            field="--python",
            problem=f"there is no program {python!r}",
            hint="Give the path of a Python interpreter, or the name of one in PATH.",
        )
    if what["script"]:
        _look_at(cwd, what["script"])
    elif what["module"] and python is None and not _finds(what["module"], cwd, env):
        raise UsageError(
            field="-m",
            problem=f"there is no module {what['module']!r} that python -m could run",
            hint=f"Check its name, and that it is installed or lies in {str(cwd)!r}.",
        )


def _finds(module: str, cwd: Path, env: dict[str, str]) -> bool:
    """Return whether `python -m` would find the module. Nothing is imported."""
    from importlib.machinery import PathFinder
    from importlib.util import find_spec

    top, *inner = module.split(".")
    own = env.get("PYTHONPATH", "").split(os.pathsep)
    spec = PathFinder.find_spec(top, [str(cwd), *filter(None, own)])
    if spec is None:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            return False
    name = top
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return False
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = PathFinder.find_spec(f"{name}.__main__", spec.submodule_search_locations)
    return spec is not None


def _look_at(cwd: Path, script: str) -> None:
    """Raise `UsageError` unless the script exists and can be read."""
    try:
        if (cwd / script).is_file():
            if os.access(cwd / script, os.R_OK):
                return
            raise PermissionError
    except PermissionError:
        raise UsageError(
            field="SCRIPT",
            problem=f"user {os.geteuid()} cannot read {str(cwd / script)!r}",
            hint="Make the file readable and the folders above it accessible.",
        ) from None
    raise UsageError(
        field="SCRIPT",
        problem=f"there is no file {script!r} in {str(cwd)!r}",
        hint="Check the path. Options of outlast must precede the script.",
    )


def _resume_existing(place: Place, root: str, what: dict[str, Any], fixed: dict[str, Any]) -> bool:
    """Make an existing job ready to be resumed; return whether it is finished.

    Raises:
        UsageError: the job runs another script, or has other arguments or another value of what is
            `fixed` for its life.
    """
    from outlast.cli.trust_gate import check_trusted
    from outlast.job.lifecycle import State
    from outlast.job.submission import load_spec
    from outlast.supervisor.supervisor import resume

    check_trusted(place, root, trust=False)
    stored = load_spec(place.storage)
    for field, wanted in what.items():
        if getattr(stored, field) != wanted:
            raise UsageError(
                field="--resume-if-exists",
                problem=f"job {place.name} runs {stored.runs!r}",
                hint="Use the same script and arguments, or another --name.",
            )
    for field, wanted in fixed.items():
        if (now := getattr(stored, field)) != wanted:
            raise UsageError(
                field=f"--{field}",
                problem=f"it is {wanted} here, and {now or 'not set'} in job {place.name}",
                hint=f"It is fixed for the life of a job. Omit --{field}, or use another --name.",
            )
    if resume(place.storage).state is State.SUCCEEDED:
        say(f"{place.name} has already succeeded; there is nothing to do.", err=True)
        return True
    return False
