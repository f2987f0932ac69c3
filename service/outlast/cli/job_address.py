"""Finds a job by its name below the root, or by its folder or URL."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlast.errors import JobNotFound
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage

DEFAULT_ROOT = "./outlast-jobs"


@dataclass(frozen=True)
class Place:
    """The place of a job."""

    storage: Storage
    """Storage of the job."""
    url: str
    """Folder (absolute) or URL of the job."""
    name: str
    """Name of the job."""


def absolute(url: str) -> str:
    """Return the absolute path of a folder, or the normal form of a URL."""
    from outlast_checkpoints.storage.address import normal

    return normal(url)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Let an error about a folder or URL name the option or argument that gave it."""
    try:
        yield
    except UsageError as error:
        if error.fields["field"] != "storage":
            raise
        raise UsageError(**{**error.fields, "field": field}) from None


def below(root: str, name: str) -> Place:
    """Return the place of the job `name` below `root`; the job need not exist."""
    from outlast_checkpoints.storage import open_storage

    with naming("--root"):
        url = f"{absolute(root).rstrip('/')}/{layout.check_name('--name', name)}"
        return Place(open_storage(url), url, name)


def is_job(storage: Storage) -> bool:
    """Return whether the storage holds a job."""
    return storage.exists(layout.SPEC)


def jobs_below(url: str) -> list[Place]:
    """Return the places of all jobs below a root, sorted by name; damaged jobs included."""
    from outlast.job import listing
    from outlast_checkpoints.storage import open_storage

    with naming("--root"):
        home = absolute(url).rstrip("/") or "/"
        root = open_storage(home)
    names = [found.name for found in listing.listed(root)]
    return [Place(root.sub(name), f"{home.rstrip('/')}/{name}", name) for name in names]


def find_job(root: str, job: str) -> Place:
    """Return the place of an existing job.

    Raises:
        JobNotFound: there is no such job; the message suggests similar names.
    """
    from outlast_checkpoints.storage import open_storage

    candidates = []
    if "://" not in job and "/" not in job and not job.startswith((".", "~")):
        with naming("--root"):
            candidates.append(f"{absolute(root).rstrip('/')}/{job}")
    with naming("JOB"):
        candidates.append(absolute(job).rstrip("/"))
    for url in candidates:
        with naming("JOB" if url == candidates[-1] else "--root"):
            storage = open_storage(url)
        if is_job(storage):
            return Place(storage, url, url.rsplit("/", 1)[-1])
    home, _, name = candidates[0].rpartition("/")
    others = [other for other in open_storage(home or "/").list("") if other != name]
    near = difflib.get_close_matches(name, others, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise JobNotFound(job=name, root=home or "/", hint=hint)


def job_reference(place: Place, root: str) -> str:
    """Return the argument JOB that names this job in a further command."""
    below = f"{absolute(root).rstrip('/')}/{place.name}"
    if below == place.url and absolute(root) == absolute(DEFAULT_ROOT):
        return place.name
    return shlex.quote(place.url)
