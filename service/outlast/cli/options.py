"""The options that verbs share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from outlast.cli.config import as_defaults, read_config
from outlast.cli.job_address import DEFAULT_ROOT
from outlast_checkpoints.errors import OutlastError

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str | float) -> float:
    """Return seconds: "90", "90s", "30m", "1.5h", "1d"; "off" is 0."""
    said = str(text).strip().lower()
    if said == "off":
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", said)
    if match is None:
        raise click.BadParameter(f"{text!r} is no time. Write it like 90, 90s, 30m, 1.5h or 1d.")
    return float(match.group(1)) * _UNITS[match.group(2) or "s"]


def pair(text: str) -> tuple[str, str]:
    """Return NAME and VALUE of "NAME=VALUE"."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise click.BadParameter(f"{text!r} is not NAME=VALUE.")
    return name.strip(), value


def cadence(text: str) -> str:
    """Return `text` when it says when to save."""
    from outlast.job.save_schedule import SaveEvery

    return _checked(text, SaveEvery.parse)


def share(text: str) -> str:
    """Return `text`, a percentage, as the automatic cadence spells it."""
    from outlast.job.save_schedule import SaveEvery

    spelled = f"{text.removesuffix('%').strip()}%"
    _checked(f"auto:{spelled}", SaveEvery.parse)
    return spelled


def retention(text: str) -> str:
    """Return `text` when it says what to keep."""
    from outlast_checkpoints.format.retention import Keep

    return _checked(text, Keep.parse)


def _checked(text: str, parse: Callable[[str], object]) -> str:
    try:
        parse(text)
    except OutlastError as error:
        raise click.BadParameter(str(error.fields.get("problem", error))) from error
    return text


class Section(click.Option):
    """An option that stands under a heading of its own in `--help`."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(
    name: str, *more: str, section: str = "Options", in_environment: bool = True, **kwargs: Any
) -> Callable[[F], F]:
    """Declare an option that the variable OUTLAST_<NAME> sets as well."""
    if in_environment:
        first = name.split("/")[0].lstrip("-").replace("-", "_").upper()
        kwargs.setdefault("envvar", f"OUTLAST_{first}")
    return click.option(name, *more, cls=Section, section=section, **kwargs)


def root_option(section: str = "Options") -> Callable[[F], F]:
    return option(
        "--root",
        section=section,
        default=DEFAULT_ROOT,
        show_default=True,
        metavar="FOLDER|URL",
        help="Where the jobs are.",
    )


def job_argument(function: F) -> F:
    """Declare JOB and the root it is looked for in."""
    return click.argument("job", metavar="JOB")(root_option()(function))


def json_option(what: str = "Print JSON.") -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=what)


def _use_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        # click looks into default_map after the environment and before the defaults.
        ctx.default_map = as_defaults(value, read_config(value), ctx)
    return value


def cluster_options(function: F) -> F:
    """Declare what a cluster is asked for."""
    for declare in reversed(_CLUSTER_OPTIONS):
        function = declare(function)
    return function


def chosen(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Take the cluster's options out of `options`; return those that were given."""
    found = [(name, options.pop(name)) for name in ("partition", "nodes", "gpus", "time", "sbatch")]
    return [(name, list(v) if isinstance(v, tuple) else v) for name, v in found if v]


def job_options(function: F) -> F:
    """Declare everything that a new job is made of."""
    for declare in reversed(_JOB_OPTIONS):
        function = declare(function)
    return function


_CLUSTER_OPTIONS: list[Callable[[Any], Any]] = [
    option("--partition", section="Slurm", metavar="NAME", help="Partition to queue in."),
    option("--nodes", section="Slurm", metavar="N", help="Nodes to ask for: 1."),
    option("--gpus", section="Slurm", metavar="N|TYPE:N", help="GPUs to ask for."),
    option(
        "--time",
        section="Slurm",
        metavar="LIMIT",
        help="Time slot, as sbatch takes it; a longer training takes several.",
    ),
    option(
        "--sbatch",
        section="Slurm",
        multiple=True,
        in_environment=False,
        metavar="KEY=VALUE",
        help="Any other option of sbatch; can be repeated.",
    ),
]

_JOB_OPTIONS: list[Callable[[Any], Any]] = [
    root_option("Job"),
    option("--name", section="Job", metavar="JOB", help="Name of the job.  [default: a new one]"),
    option(
        "--resume-if-exists",
        section="Job",
        is_flag=True,
        help="Resume the job of that name where there is one (for restart loops of clusters): its "
        "own options stay, SCRIPT and ARGS must be the same, and finished is success.",
    ),
    option(
        "--config",
        section="Job",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_use_config,
        help="TOML file with these options by name, in [job] or at the top, and script (or "
        "module) and args. The command line and OUTLAST_* variables go before it.",
    ),
    option(
        "--module",
        "-m",
        section="Job",
        is_flag=True,
        in_environment=False,
        help="SCRIPT is a module's name, as with python -m.",
    ),
    option(
        "--save-every",
        section="Saving",
        type=cadence,
        default="auto",
        show_default=True,
        metavar="WHEN",
        help="Steps (100), a time (30s, 5m), 'epoch', several with commas, 'never', or 'auto': as "
        "often as it pays. What is going to be stopped is always saved.",
    ),
    option(
        "--max-overhead",
        section="Saving",
        type=share,
        metavar="PERCENT",
        help="With --save-every auto: the share of the time that saves may take.  [default: 1%]",
    ),
    option(
        "--keep",
        section="Saving",
        type=retention,
        default="last:3",
        show_default=True,
        metavar="WHICH",
        help="Checkpoints to keep: last:N, every:STEPS, best:METRIC[:min|max[:N]], several with "
        "commas, or 'all'.",
    ),
    option(
        "--on-save-error",
        section="Saving",
        type=click.Choice(["continue", "stop"]),
        default="continue",
        show_default=True,
        help="What a failed save does to the training.",
    ),
    option(
        "--seed",
        section="Exactness",
        type=click.IntRange(min=0, max=2**63 - 1),
        metavar="N",
        help="Seed of data order and generators.  [default: random, kept with the job]",
    ),
    option(
        "--deterministic/--no-deterministic",
        section="Exactness",
        default=True,
        show_default=True,
        help="Make TensorFlow's operations deterministic.",
    ),
    option(
        "--on-nan",
        section="Exactness",
        type=click.Choice(["ignore", "stop"]),
        default="ignore",
        show_default=True,
        help="What a loss that is not a number does to the training.",
    ),
    option(
        "--max-retries",
        section="Restarts",
        type=click.IntRange(min=0),
        metavar="N",
        default=3,
        show_default=True,
        help="Failed attempts in a row, without a new checkpoint, that are tried again.",
    ),
    option(
        "--backoff",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="1s",
        show_default=True,
        help="Wait before the first retry; it doubles, with jitter.",
    ),
    option(
        "--backoff-max",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="60s",
        show_default=True,
        help="The longest wait before a retry.",
    ),
    option(
        "--stall-timeout",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="30m",
        show_default=True,
        help="An attempt without a step for so long is killed, its stacks in the log; 'off'.",
    ),
    option(
        "--grace",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="30s",
        show_default=True,
        help="Time to save and leave when told to stop; then it is killed. When given it goes "
        "before what a cloud's notice leaves, unless that is less.",
    ),
    option(
        "--preemption",
        section="Restarts",
        type=click.Choice(["auto", "gce", "aws", "azure", "none"]),
        default="auto",
        show_default=True,
        help="Whose notice that it takes this machine is listened to; auto: the cloud's that the "
        "machine's firmware names.",
    ),
    option(
        "--warm-spare/--no-warm-spare",
        section="Restarts",
        default=False,
        show_default=True,
        help="Keep a process ready that has imported TensorFlow: a restart then takes a fraction "
        "of the time, for some 0.25 GB of memory (the log tells how much).",
    ),
    option(
        "--heartbeat-every",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="2s",
        show_default=True,
        help="How often an attempt gives a sign of life.",
    ),
    option(
        "--lost-after",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="30s",
        show_default=True,
        help="An attempt elsewhere without a sign of life for so long is lost.",
    ),
    option(
        "--engine",
        section="Where",
        metavar="NAME",
        default="local",
        show_default=True,
        help="Where the supervisor runs: local; with `outlast submit` also slurm or kubernetes.",
    ),
    option(
        "--engine-option",
        section="Where",
        type=pair,
        multiple=True,
        in_environment=False,
        metavar="NAME=VALUE",
        help="Option of the engine; can be repeated.",
    ),
    option(
        "--backend",
        section="Where",
        metavar="NAME",
        default="local",
        show_default=True,
        help="Plugin that launches the attempts beside the supervisor.",
    ),
    option(
        "--env",
        section="Where",
        type=pair,
        multiple=True,
        in_environment=False,
        metavar="NAME=VALUE",
        help="A variable for the script; can be repeated.",
    ),
    option(
        "--cwd",
        section="Where",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder that the script starts in.  [default: here]",
    ),
    option(
        "--python",
        section="Where",
        metavar="FILE",
        help="Python to start it with.  [default: this one]",
    ),
]
