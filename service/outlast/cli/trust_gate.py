"""Asks before a job runs that this user has not submitted on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from outlast.cli.job_address import Place, job_reference
from outlast_checkpoints.printable import printable

if TYPE_CHECKING:
    from outlast.job.spec import JobSpec


trust_option: Final = click.option(
    "--trust",
    is_flag=True,
    help="Run jobs that you have not submitted on this machine, and remember them. Use it if "
    "only people you trust can write to the root.",
)


def check_trusted(place: Place, root: str, *, trust: bool, verb: str = "resume") -> None:
    """Refuse a job of another user, and a job that this user has neither submitted nor trusted.

    With a key, the key is the trust: a job that its holders have signed needs no other.

    Args:
        place: Place of the job.
        root: The root of the command line, for the hint.
        trust: Whether the user says now that the job may run. That is remembered.
        verb: The command that takes --trust, for the hint.

    Raises:
        JobForeign: the job's folder belongs to another user.
        JobNotTrusted: the job was submitted elsewhere or by somebody else, and `trust` is False.
        NotAuthentic: a key is set, and no holder of it wrote the job's spec or journal.
    """
    from outlast.errors import JobNotTrusted, JobUnknown
    from outlast.job import spec as specs
    from outlast.job import trust as trusted
    from outlast.job.journal_evidence import check_complete
    from outlast_checkpoints.errors import NotFound
    from outlast_checkpoints.format import layout
    from outlast_checkpoints.storage.documents import is_signed, read_document

    trusted.check_owner(place.storage, place.name)
    try:
        document = read_document(place.storage, layout.SPEC)
    except NotFound as error:
        raise JobUnknown(root=place.storage.root) from error
    if is_signed(place.storage):  # whoever holds the key is trusted
        check_complete(place.storage)
        return
    if trusted.is_trusted(document):
        return
    spec = specs.decode(document)
    if not trust:
        raise JobNotTrusted(
            job=place.name,
            what=what_would_run(spec),
            command=f"{verb} {job_reference(place, root)}",
        )
    trusted.remember(document, place.url)


def what_would_run(spec: JobSpec) -> str:
    """Return all that a spec has run on this machine, a line each."""
    from outlast.job.spec import interpreter

    options = " ".join(f"{name}={value}" for name, value in spec.engine_options.items())
    fields = {
        "python": interpreter(spec),
        "runs": spec.runs,
        "folder": spec.cwd or ".",
        **{f"env {name}": value for name, value in sorted(spec.env.items())},
        "engine": f"{spec.engine} {options}".rstrip(),
        "backend": spec.backend,
    }
    width = max(map(len, fields))
    return "\n".join(f"  {name.ljust(width)}  {printable(value)}" for name, value in fields.items())
