"""`outlast audit`: train an interval of a job again, and compare it with what the job saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import job_argument, json_option
from outlast.cli.trust_gate import check_trusted, trust_option
from outlast.exit_codes import DONE, NOT_EXACT

if TYPE_CHECKING:
    from outlast.audit.interval import Interval
    from outlast.audit.verdict import Verdict

_SHOWN = 3  # differences of each part


@click.command("audit", cls=Verb)
@job_argument
@click.option(
    "--at",
    default="latest",
    show_default=True,
    metavar="WHICH",
    help="Interval to train again: 'latest', 'step:N' for the one that contains step N, or "
    "'phase:N' for the newest one of that phase.",
)
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    metavar="PATH",
    help="Value to leave out of the comparison, with everything below it, as a difference names "
    "it; repeatable. Use it for durations, which differ in every run.",
)
@trust_option
@json_option()
def audit(
    root: str, job: str, at: str, ignored: tuple[str, ...], trust: bool, as_json: bool
) -> int:
    """Check that JOB is exact: train its last interval again, and compare every byte.

    A second process runs the script on this machine. It resumes from a checkpoint, trains to the
    next checkpoint of the same phase, and stops there. Weights, optimizer, all other state and the
    history must then be equal to those that the job saved. If not, a resume of this training is not
    exact, and the differences say which state is not kept.

    JOB may be running, and is only read; the outcome is added to its journal. The script runs with
    OUTLAST_AUDIT=1 in its environment. Files of Keras' callbacks go to a temporary folder, but
    other files that the script writes are written again.

    The script of a job that you have not submitted on this machine runs only with --trust.

    The exit code is 67 when something differs.
    """
    from outlast.audit.audit import audit as train_again
    from outlast.audit.interval import At

    place = find_job(root, job)
    wanted = At.parse(at)
    check_trusted(place, root, trust=trust, verb="audit")

    def begin(found: Interval) -> None:
        say(f"training {found} of {place.name} again …", err=True)

    verdict = train_again(place.storage, at=wanted, ignored=ignored, on_begin=begin)
    if as_json:
        print_json(_fields(verdict))
    else:
        _print(verdict)
    return DONE if verdict.exact else NOT_EXACT


def _fields(verdict: Verdict) -> dict[str, Any]:
    import msgspec

    found = verdict.interval
    return {
        "job": verdict.job,
        "exact": verdict.exact,
        "first": str(found.first),
        "last": str(found.last),
        "steps": found.last.step - found.first.step,
        "compared": verdict.compared,
        "seen_at": verdict.seen_at,
        "differences": msgspec.to_builtins(verdict.differences),
        "machine_changed": verdict.machine_changed,
        "written": verdict.written,
        "seconds": verdict.seconds,
    }


def _print(verdict: Verdict) -> None:
    found = verdict.interval
    took = f"{verdict.seconds:.1f} s"
    if verdict.exact:
        say(
            f"exact    {verdict.job}  {found}: {units.number(verdict.compared)} arrays and values, "
            f"and the history, are equal ({took})"
        )
    else:
        say(f"DIFFERS  {verdict.job}  {found}, first in {verdict.differences[0]} ({took})")
        if verdict.seen_at is not None:
            say(f"The history differs from {verdict.seen_at} on.")
        for part, differences in verdict.by_part.items():
            say(f"{part}: {units.count(len(differences), 'difference')}")
            for one in differences[:_SHOWN]:
                say(f"  {one.path}: {one.how}")
            if len(differences) > _SHOWN:
                say(f"  and {len(differences) - _SHOWN} more; --json lists all")
    if found.first.step == 0:
        say(
            "The interval begins where its phase begins, so it cannot show state that a resume "
            "loses. Audit a later one: save more often, and keep more checkpoints."
        )
    if verdict.written:
        more = f" and {len(verdict.written) - _SHOWN} more" if verdict.written[_SHOWN:] else ""
        say(f"The script wrote again: {', '.join(verdict.written[:_SHOWN])}{more}.")
    if verdict.machine_changed is not None:
        say(
            f"This machine differs from that of the first attempt ({verdict.machine_changed}), "
            "which alone can change the last digits."
        )
