"""`outlast` itself: the table of verbs, and what becomes of an error."""

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

# section -> command -> (module:function below cli.commands, one line of help). The lines stand
# here as well, so that `outlast --help` loads none of the modules.
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "run": (
            "run:run",
            "Run a script under supervision, in the foreground.",
        ),
        "submit": ("submit:submit", "Run a script under supervision, detached."),
        "resume": (
            "resume:resume",
            "Go on with a job that ended or was left.",
        ),
        "stop": ("stop:stop", "Save and stop a job."),
    },
    "Look": {
        "list": ("list:list_jobs", "List the jobs below the root."),
        "status": ("status:status", "Show how a job stands."),
        "logs": (
            "logs:logs",
            "Show what happened, and the script's own output.",
        ),
        "history": ("history:history", "Show, plot or export the metrics."),
    },
    "Keep": {
        "checkpoints": (
            "checkpoints:checkpoints",
            "List a job's checkpoints.",
        ),
        "verify": (
            "verify:verify",
            "Check every byte that a job, or all, stored.",
        ),
        "prune": ("prune:prune", "Delete checkpoints that need not be kept."),
        "copy": ("copy:copy", "Copy a job to another folder or bucket."),
        "export": ("export:export", "Write a checkpoint as a Keras file."),
    },
    "Try": {
        "demo": (
            "demo:demo",
            "Train, be killed twice, and prove nothing was lost.",
        ),
    },
}


@dataclass
class Face:
    """What all verbs of one command line share. debug: show stack traces."""

    debug: bool = False


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Face).debug = True


def debug_option() -> click.Option:
    """Return a new `--debug`, which every verb and `outlast` itself take."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        envvar="OUTLAST_DEBUG",
        help="Show the stack trace of an error.",
    )


class Verb(click.Command):
    """A command that takes `--debug` beside its own options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(debug_option())


class LazyGroup(click.Group):
    """A group that loads the module of a verb when the verb is used, and not before."""

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
        except BrokenPipeError:  # click would make it a failure
            return _unread()

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "outlast",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Do what `args` (default: this process's) say and exit with the verb's code."""
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
        version = "(not installed: run from its source)"
    click.echo(f"outlast {version}")
    ctx.exit()


def _guarded(call: Callable[[], Any], face: Face) -> int:
    """Return the exit code of `call`: errors become one message on stderr.

    A stack trace appears only with --debug.
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
    except Exception as error:  # noqa: BLE001 - the last resort: a message, not a trace
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
    """The reader (head, less) has gone, which is no failure: there is nothing more to say."""
    # What is still buffered goes nowhere, so that the flush at exit does not complain either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _show_trace() -> None:
    import traceback

    traceback.print_exc()


main = LazyGroup(
    "outlast",
    help="Keras trainings that survive: exact checkpoint and resume under supervision.\n\n"
    "JOB is a job's name below the root, or a job's own folder or URL. The root is --root, "
    "else $OUTLAST_ROOT, else ./outlast-jobs.",
    epilog="`outlast VERB --help` says more. Start with: outlast run train.py",
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
