"""The command `outlast`: the table of its commands, and how errors end it."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from outlast.attempt.safe_output import Output, guard_output
from outlast.cli.display.say import say
from outlast.exit_codes import DONE, FAILED, INTERRUPTED
from outlast.job import standard_streams
from outlast_checkpoints.errors import OutlastError

KEY_FILE = "OUTLAST_KEY_FILE"  # of outlast_checkpoints.storage.key_file, which is imported late

# Commands that do something: words that are lost, as on a full disk, do not make them fail.
WORK = frozenset(
    {"run", "submit", "resume", "stop", "prune", "copy", "fork", "rm", "export", "key", "demo"}
)

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
        "fork": ("fork:fork", "Start a new job from a checkpoint of another one."),
    },
    "Inspect": {
        "list": ("list:list_jobs", "List the jobs below the root."),
        "status": ("status:status", "Show the state and progress of a job."),
        "logs": (
            "logs:logs",
            "Show the log of a job, or the output of its script.",
        ),
        "events": ("events:events", "Show what happened to a job, when, and who did it."),
        "history": ("history:history", "Show, plot or export the metrics of a job."),
    },
    "Maintain": {
        "checkpoints": (
            "checkpoints:checkpoints",
            "List the checkpoints of a job.",
        ),
        "verify": (
            "verify:verify",
            "Verify every stored byte of one job or of all jobs.",
        ),
        "audit": (
            "audit:audit",
            "Train the last interval of a job again, and compare.",
        ),
        "key": ("key:key", "Make and replace the keys that authenticate jobs."),
        "prune": ("prune:prune", "Delete checkpoints that retention does not keep."),
        "rm": ("rm:remove", "Delete jobs that have ended."),
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
class CliState:
    """State that the commands of one command line share."""

    debug: bool = False
    """Whether to show stack traces."""
    alone: bool = False
    """Whether this process is the command and ends with it."""
    verb: str = ""
    """The command."""


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(CliState).debug = True


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


def _use_key_file(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value:  # the processes that this command starts get the path, never a key
        os.environ[KEY_FILE] = str(Path(value).expanduser().absolute())


class Verb(click.Command):
    """A command of `outlast`; it accepts `--key-file` and `--debug` too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        key_option = click.Option(
            ["--key-file"],
            metavar="FILE",
            envvar=KEY_FILE,
            expose_value=False,
            callback=_use_key_file,
            help="Sign and verify jobs with the keys of this file; see `outlast key`.",
        )
        self.params += [key_option, debug_option()]


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
        ctx.ensure_object(CliState).verb = args[0] if args else ""
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
        state = CliState(alone=args is None)
        printed = _prepare_streams() if state.alone else None
        call = partial(
            super().main, args, prog_name, complete_var, False, **{"obj": state, **extra}
        )
        if not standalone_mode:
            return call()
        code = _guarded(call, state)
        if printed is not None and printed.lost and code == DONE and state.verb not in WORK:
            standard_streams.say(
                f"outlast: {printed.lost} bytes of the output could not be written, because the "
                "disk is full"
            )
            code = FAILED
        sys.exit(code)


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("outlast")
    except metadata.PackageNotFoundError:
        version = "(not installed: running from source)"
    say(f"outlast {version}")
    ctx.exit()


def _prepare_streams() -> Output | None:
    """Make prints harmless where they cannot be written; return the file below stdout."""
    standard_streams.open_closed()
    outputs = guard_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return next((output for output in outputs if output.fileno() == 1), None)


def _guarded(call: Callable[[], Any], state: CliState) -> int:
    """Return the exit code of `call`. An error prints one message on stderr.

    With --debug, the stack trace is printed too.
    """
    try:
        outcome = call()
        sys.stdout.flush()  # a reader that is gone is no failure
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except OutlastError as error:
        if state.debug:
            _show_trace()
        say(f"outlast: {error}", err=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - last resort: a message instead of a trace
        if state.debug:
            _show_trace()
        said = " ".join(str(error).split())
        say(
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
