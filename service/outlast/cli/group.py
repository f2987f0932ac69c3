"""The command `outlast`: the table of its commands, and how errors end it."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from outlast.exit_codes import DONE, FAILED, INTERRUPTED
from outlast_checkpoints.errors import OutlastError

# section -> command -> (module:function below cli.commands, one line of help). The help lines are
# here, so that `outlast --help` need not import the modules.
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "run": (
            "run:run",
            "Run a script under supervision in the foreground.",
        ),
        "submit": ("submit:submit", "Run a script under supervision, detached or on a cluster."),
        "resume": (
            "resume:resume",
            "Resume a job from its last checkpoint.",
        ),
        "stop": ("stop:stop", "Save and stop a job."),
    },
    "Look": {
        "list": ("list:list_jobs", "List the jobs below the root."),
        "status": ("status:status", "Show the state and progress of a job."),
        "logs": (
            "logs:logs",
            "Show the log of a job, or the output of its script.",
        ),
        "history": ("history:history", "Show, plot or export the metrics of a job."),
    },
    "Keep": {
        "checkpoints": (
            "checkpoints:checkpoints",
            "List the checkpoints of a job.",
        ),
        "verify": (
            "verify:verify",
            "Verify every stored byte of one job or of all jobs.",
        ),
        "prune": ("prune:prune", "Delete checkpoints that retention does not keep."),
        "copy": ("copy:copy", "Copy a job to another folder or bucket."),
        "export": ("export:export", "Export a checkpoint as a Keras file."),
    },
    "Try": {
        "demo": (
            "demo:demo",
            "Train, get killed twice, and prove that nothing is lost.",
        ),
    },
}


@dataclass
class Face:
    """State that the commands of one command line share."""

    debug: bool = False
    """Whether to show stack traces."""


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Face).debug = True


def debug_option() -> click.Option:
    """Return a new option `--debug`; `outlast` and all its commands accept it."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        envvar="OUTLAST_DEBUG",
        help="Show stack traces of errors.",
    )


class Verb(click.Command):
    """A command of `outlast`; it accepts `--debug` too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(debug_option())


class LazyGroup(click.Group):
    """A group of commands that imports the module of a command on first use."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [verb for verbs in VERBS.values() for verb in verbs]

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        for verbs in VERBS.values():
            if cmd_name in verbs:
                module, _, attribute = verbs[cmd_name][0].partition(":")
                command: click.Command = getattr(
                    importlib.import_module(f"outlast.cli.commands.{module}"), attribute
                )
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, verbs in VERBS.items():
            with formatter.section(section):
                formatter.write_dl(
                    [(f"{verb:<11}", line) for verb, (_, line) in verbs.items()], col_spacing=1
                )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would report a failure
            return _unread()

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "outlast",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line `args` (default: `sys.argv`) and exit with its exit code."""
        face = Face()
        call = partial(super().main, args, prog_name, complete_var, False, **{"obj": face, **extra})
        if not standalone_mode:
            return call()
        sys.exit(_guarded(call, face))


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("outlast")
    except metadata.PackageNotFoundError:
        version = "(not installed: running from source)"
    click.echo(f"outlast {version}")
    ctx.exit()


def _guarded(call: Callable[[], Any], face: Face) -> int:
    """Return the exit code of `call`. An error prints one message on stderr.

    With --debug, the stack trace is printed too.
    """
    try:
        outcome = call()
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except OutlastError as error:
        if face.debug:
            _show_trace()
        click.echo(f"outlast: {error}", err=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - last resort: a message instead of a trace
        if face.debug:
            _show_trace()
        said = " ".join(str(error).split())
        click.echo(
            f"outlast: unexpected {type(error).__name__}{': ' if said else ''}{said} "
            "(run again with --debug for the stack trace)",
            err=True,
        )
        return FAILED
    return outcome if isinstance(outcome, int) else DONE


def _unread() -> int:
    """End without an error after the reader of stdout (head, less) has gone."""
    # Discard what is still buffered, so that the flush at exit does not fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _show_trace() -> None:
    import traceback

    traceback.print_exc()


main = LazyGroup(
    "outlast",
    help="Fault-tolerant Keras training: supervision, exact checkpoints, exact resume.\n\n"
    "JOB is the name of a job below the root, or the folder or URL of the job. The root is --root, "
    "else $OUTLAST_ROOT, else ./outlast-jobs.",
    epilog="Run `outlast COMMAND --help` for details. Start with: outlast run train.py",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        debug_option(),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ],
)
