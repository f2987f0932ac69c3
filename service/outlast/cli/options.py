"""Command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from outlast.cli.config import as_defaults, read_config
from outlast.cli.job_address import DEFAULT_ROOT
from outlast.cli.sections import F, option
from outlast.cli.values import (
    adoption,
    audits,
    cadence,
    duration,
    pair,
    retention,
    rollbacks,
    share,
)


def root_option(section: str = "Options") -> Callable[[F], F]:
    """Declare --root."""
    return option(
        "--root",
        section=section,
        default=DEFAULT_ROOT,
        show_default=True,
        metavar="FOLDER|URL",
        help="Folder or URL that holds the jobs.",
    )


def job_argument(function: F) -> F:
    """Declare the argument JOB and the option --root."""
    return click.argument("job", metavar="JOB")(root_option()(function))


def json_option(what: str = "Print JSON.") -> Callable[[F], F]:
    """Declare --json with `what` as its help."""
    return click.option("--json", "as_json", is_flag=True, help=what)


def _use_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        # click looks into default_map after the environment and before the defaults.
        ctx.default_map = as_defaults(value, read_config(value), ctx)
    return value


def cluster_options(function: F) -> F:
    """Declare the options that describe a Slurm request."""
    for declare in reversed(_CLUSTER_OPTIONS):
        function = declare(function)
    return function


def chosen(options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Remove the Slurm options from `options`; return those that were given."""
    found = [(name, options.pop(name)) for name in ("partition", "nodes", "gpus", "time", "sbatch")]
    return [(name, list(v) if isinstance(v, tuple) else v) for name, v in found if v]


def job_options(function: F) -> F:
    """Declare all options of a new job."""
    for declare in reversed(_JOB_OPTIONS):
        function = declare(function)
    return function


def some_job_options(names: Collection[str]) -> list[click.Parameter]:
    """Return those options of a new job that have these names."""
    probe = click.command()(job_options(lambda: None))
    return [param for param in probe.params if param.name in names]


_SLURM = "Slurm (with --engine slurm)"

_CLUSTER_OPTIONS: list[Callable[[Any], Any]] = [
    option("--partition", section=_SLURM, metavar="NAME", help="Partition to submit to."),
    option("--nodes", section=_SLURM, metavar="N", help="Number of nodes; only 1 is supported."),
    option("--gpus", section=_SLURM, metavar="N|TYPE:N", help="GPUs to request."),
    option(
        "--time",
        section=_SLURM,
        metavar="LIMIT",
        help="Time limit of one allocation (4:00:00). A longer training uses several.",
    ),
    option(
        "--sbatch",
        section=_SLURM,
        multiple=True,
        in_environment=False,
        metavar="KEY=VALUE",
        help="Any other option of sbatch; repeatable.",
    ),
]

_JOB_OPTIONS: list[Callable[[Any], Any]] = [
    root_option("Job"),
    option("--name", section="Job", metavar="JOB", help="Name of the job.  [default: generated]"),
    option(
        "--tag",
        section="Job",
        type=pair,
        multiple=True,
        in_environment=False,
        metavar="NAME=VALUE",
        help="Tag of the job, for `outlast list --tag`; repeatable.",
    ),
    option(
        "--resume-if-exists",
        section="Job",
        is_flag=True,
        help="If the job --name exists, resume it with its own options instead of failing. "
        "SCRIPT and ARGS must be the same; a finished job counts as success. Use it on clusters "
        "that restart the command.",
    ),
    option(
        "--config",
        section="Job",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_use_config,
        help="TOML file with these options by name, and with script (or module) and args, at the "
        "top level or in [job]. The command line and OUTLAST_* variables override it.",
    ),
    option(
        "--module",
        "-m",
        section="Job",
        is_flag=True,
        in_environment=False,
        help="SCRIPT names a module, as with python -m.",
    ),
    option(
        "--adopt",
        section="Job",
        type=adoption,
        default="no",
        metavar="[=strict]",
        help="Make every keras.Model.fit of the script Outlast's, so that the script needs no "
        "change. What cannot be adopted trains as in plain Keras, and the log says so; with "
        "--adopt=strict it is an error.",
    ),
    option(
        "--save-every",
        section="Saving",
        type=cadence,
        default="auto",
        show_default=True,
        metavar="WHEN",
        help="When to save: every 100 steps (100), at an interval (30s, 5m), after each epoch "
        "(epoch), several of these separated by commas, as often as it pays off (auto), or never. "
        "A requested stop always saves.",
    ),
    option(
        "--max-overhead",
        section="Saving",
        type=share,
        metavar="PERCENT",
        help="With --save-every auto: share of the time that saving may cost.  [default: 1%]",
    ),
    option(
        "--keep",
        section="Saving",
        type=retention,
        default="last:3",
        show_default=True,
        metavar="WHICH",
        help="Checkpoints to keep: last:N, every:STEPS, best:METRIC[:min|max[:N]], several "
        "separated by commas, or 'all'.",
    ),
    option(
        "--on-save-error",
        section="Saving",
        type=click.Choice(["continue", "stop"]),
        default="continue",
        show_default=True,
        help="Continue the training after a failed save, or stop it.",
    ),
    option(
        "--seed",
        section="Exactness",
        type=click.IntRange(min=0, max=2**63 - 1),
        metavar="N",
        help="Seed of all random generators and of the data order.  [default: random, stored "
        "with the job]",
    ),
    option(
        "--deterministic/--no-deterministic",
        section="Exactness",
        default=True,
        show_default=True,
        help="Enable TensorFlow's op determinism: the same input gives the same bits.",
    ),
    option(
        "--replicas",
        section="Exactness",
        type=click.IntRange(min=1),
        metavar="N",
        help="Train N copies of the model on the parts of each batch, on as many GPUs; without "
        "GPUs, on parts of the CPU. Results depend on N, so it is fixed for the life of the job. "
        "[default: what the script's own strategy has, else the number of GPUs, else 1]",
    ),
    option(
        "--intra-op-threads",
        section="Exactness",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads that TensorFlow may use for one op. Results depend on it, so all attempts "
        "use the same number.  [default: the CPUs of the first attempt]",
    ),
    option(
        "--cpu-isa",
        section="Exactness",
        type=click.Choice(["native", "avx2", "avx512"]),
        default="native",
        show_default=True,
        help="Instruction set to compute with. Results depend on it; choose one that all machines "
        "of the job have.",
    ),
    option(
        "--audit-every",
        "--audit",
        "audit_every",
        section="Exactness",
        type=audits,
        default="never",
        show_default=True,
        metavar="EVERY",
        help="Audit the training while it runs: every 10 checkpoints (10), at an interval (30m), "
        "or never. A second process at low priority trains the steps between two checkpoints "
        "again, and compares; see `outlast audit`.",
    ),
    option(
        "--on-nan",
        section="Exactness",
        type=click.Choice(["ignore", "stop", "rollback"]),
        default="ignore",
        show_default=True,
        help="Ignore a loss that is NaN or infinite, stop at it, or roll back before it; see "
        "--rollback.",
    ),
    option(
        "--rollback",
        section="Exactness",
        type=rollbacks,
        metavar="POLICY",
        default="back:1,skip:1,max:3",
        show_default=True,
        help="With --on-nan rollback: go back to a checkpoint before the faulty batch, and leave "
        "out the `back` batches before it, and `skip` from it on. After `max` rollbacks at one "
        "place, one more fault there ends the job with exit code 65.",
    ),
    option(
        "--max-retries",
        section="Restarts",
        type=click.IntRange(min=0),
        metavar="N",
        default=3,
        show_default=True,
        help="Consecutive failed attempts without a new checkpoint to retry. An attempt is "
        "one run of the script's process.",
    ),
    option(
        "--backoff",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="1s",
        show_default=True,
        help="Delay before the first retry. It doubles with each retry and varies at random.",
    ),
    option(
        "--backoff-max",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="60s",
        show_default=True,
        help="Longest delay before a retry.",
    ),
    option(
        "--max-duration",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="off",
        show_default=True,
        help="Save and stop the job when its attempts have taken this long together. `outlast "
        "resume` gives it the same time again.",
    ),
    option(
        "--stall-timeout",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="30m",
        show_default=True,
        help="Kill an attempt that makes no progress for this long; 'off' disables it. The stacks "
        "of its threads go to its output.",
    ),
    option(
        "--grace",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="30s",
        show_default=True,
        help="Time that an attempt has to save and leave before it is killed. An explicit value "
        "is also an upper limit for the time that a cloud's preemption notice allows.",
    ),
    option(
        "--preemption",
        section="Restarts",
        type=click.Choice(["auto", "gce", "aws", "azure", "none"]),
        default="auto",
        show_default=True,
        help="Cloud whose preemption notices to watch for. 'auto' reads the cloud's name from "
        "the firmware of the machine (DMI).",
    ),
    option(
        "--warm-spare/--no-warm-spare",
        section="Restarts",
        default=False,
        show_default=True,
        help="Keep a process ready that has already imported TensorFlow. Restarts become faster, "
        "for about 0.25 GB of memory (the log has the exact size).",
    ),
    option(
        "--heartbeat-every",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="2s",
        show_default=True,
        help="Interval between two heartbeats of an attempt.",
    ),
    option(
        "--lost-after",
        section="Restarts",
        type=duration,
        metavar="TIME",
        default="30s",
        show_default=True,
        help="Consider an attempt on another machine lost after this long without a heartbeat.",
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
        help="Option of the engine; repeatable. docs/operations.md lists those of kubernetes.",
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
        help="Environment variable for the script; repeatable.",
    ),
    option(
        "--cwd",
        section="Where",
        type=click.Path(path_type=Path, file_okay=False),
        help="Working directory of the script.  [default: the current one]",
    ),
    option(
        "--python",
        section="Where",
        metavar="FILE",
        help="Python interpreter for the script.  [default: this one]",
    ),
]
