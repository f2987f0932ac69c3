"""Files of the script that go back with the checkpoint, such as those of a search.

A restarted script runs from its top. Its finished phases return their results, so it writes the
same files again, except for what was written during a phase. So each attempt begins with the files
as the job has found them, and a phase brings back what had changed in them when it was saved.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from outlast.attempt import adoption, context
from outlast.attempt.context import AttemptContext
from outlast.attempt.kept_path import FORMAT, Changes, Content, KeptPath
from outlast.job.log_events import LogEvent
from outlast.job.spec import script_path
from outlast_checkpoints.errors import NotFound, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.sealed_json import seal, unseal
from outlast_checkpoints.storage.documents import read_document

_LARGEST: Final = 8 << 20  # bytes; as text it fits into a document

_owner: AttemptContext | None = None
_kept: dict[str, KeptPath] = {}  # those of the owner


def keep(path: str | os.PathLike[str], *, job_dir: str | os.PathLike[str] | None = None) -> None:
    """Keep a file or folder of the script with the checkpoints, so that it goes back with them.

    For files that the script reads again, and that change while a model trains: the folder of a
    KerasTuner, the SQLite file of an Optuna study, a table of results. Call it before anything
    opens or writes them. After a restart it puts them back to what the job has found at its start,
    and each finished or resumed phase brings back what had changed during it. So the script does
    not find what it did before the kill, and repeats it from its finished phases.

    A second call with the same path does nothing. The files must belong to this job alone: what
    others write there is lost. They may be SQLite databases that are open.

    Args:
        path: The file or folder; it need not exist.
        job_dir: Folder or URL of the job, in a script without `outlast run`; default: that of
            `outlast.adopt`.

    Raises:
        UsageError: There is no job; the path holds the script, the job, the current or the home
            folder; it already holds more than 8 MiB; or an audit runs the script.
        StorageError: The storage of the job cannot be read or written.

    Example:

    ```python
    import outlast

    outlast.keep("study.db")
    study = optuna.create_study(storage="sqlite:///study.db", load_if_exists=True)
    ```
    """
    keep_for(path, "the script", job_dir=job_dir)


def keep_for(
    path: str | os.PathLike[str], by: str, *, job_dir: str | os.PathLike[str] | None = None
) -> None:
    """Keep a file or folder, as `keep` does. `by` names who asks for it, for the log."""
    ctx = _context(job_dir)
    given = os.fspath(path)
    if given in _of(ctx):
        return
    if ctx.audit is not None:
        raise _refused(
            "an audit runs the script, and would change the files of the training",
            "Audit a job that keeps no files.",
        )
    place = Path(os.path.abspath(given))  # noqa: PTH100 - without following links
    _require_own(ctx, given, place)
    kept = KeptPath(given, place)
    name = layout.kept(hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()[:16])
    with _naming_databases(given):
        first = _first_content(ctx, name)
        if first is None:
            ctx.storage.create(name, seal(_small(kept.content())))
        else:
            ctx.fence()
            kept.rewind(first)
    _of(ctx)[given] = kept
    ctx.log.info(LogEvent.FILES_KEPT, path=given, by=by, put_back=first is not None)


def is_kept(path: str) -> bool:
    """Return whether this file, or a folder that it is in, is kept."""
    place = Path(path).absolute()
    return any(place.is_relative_to(Path(one).absolute()) for one in _of(context.current()))


def begin_phase() -> None:
    """Note that a phase begins: what changes from now on belongs to its checkpoints."""
    for given, kept in _of(context.current()).items():
        with _naming_databases(given):
            kept.begin()


def changes() -> dict[str, Changes]:
    """Return what has changed since the phase began, by path; empty if nothing is kept."""
    found = {}
    for given, kept in _of(context.current()).items():
        with _naming_databases(given):
            found[given] = kept.changes()
    return found


def put_back(changed: Mapping[str, Changes], ctx: AttemptContext) -> None:
    """Put back what a checkpoint of the phase has, which `changes` returned."""
    if changed:
        ctx.fence()
    for given, found in changed.items():
        kept = _of(ctx).get(given)
        if kept is not None:
            with _naming_databases(given):
                kept.put_back(found)
        else:
            ctx.log.warning(
                LogEvent.KEPT_FILES_IGNORED,
                path=given,
                why="the checkpoint has files of this path, but the script does not keep it now",
                instead="call outlast.keep with it before the first fit or Loop",
            )


def _of(ctx: AttemptContext | None) -> dict[str, KeptPath]:
    """Return the paths that this attempt keeps; those of an earlier one in the process are gone."""
    global _owner, _kept
    if ctx is not _owner:
        _owner, _kept = ctx, {}
    return _kept


def _context(job_dir: str | os.PathLike[str] | None) -> AttemptContext:
    ctx = context.current()
    if ctx is not None:
        return ctx
    adopted = adoption.current()
    if job_dir is None and adopted is not None:
        job_dir = adopted.job_dir
    if job_dir is None:
        raise UsageError(
            field="job_dir",
            problem="it is missing; it names the folder or URL of the job",
            hint="Pass keep(path, job_dir='my-job'), or start the script with `outlast run`.",
        )
    from outlast.attempt.bare import open_bare

    save_every, kept = (None, None) if adopted is None else (adopted.save_every, adopted.keep)
    return open_bare(job_dir, save_every=save_every, keep=kept)


def _first_content(ctx: AttemptContext, name: str) -> Content | None:
    try:
        return unseal(read_document(ctx.storage, name), name, Content, FORMAT)
    except NotFound:
        return None


def _require_own(ctx: AttemptContext, given: str, place: Path) -> None:
    """Raise `UsageError` for a path that cannot belong to this job alone."""
    script = script_path(ctx.spec)
    others = {"the current folder": Path.cwd(), "your home folder": Path.home()}
    if script is not None:
        others["the script"] = script.absolute()
    if ctx.local_dir is not None:
        others["the job"] = ctx.local_dir.absolute()
        own = [ctx.local_dir / name for name in (layout.ATTEMPTS, layout.CHECKPOINTS)]
        if any(place.is_relative_to(one.absolute()) for one in (*own, ctx.local_dir / "journal")):
            raise _refused(f"{given!r} is in the job's own files", "Keep another folder or file.")
    for what, where in others.items():
        if where.is_relative_to(place):
            raise _refused(
                f"{given!r} holds {what}, and everything in it would be put back or deleted",
                "Keep a file or folder that only this job writes.",
            )


def _small(content: Content) -> Content:
    size = sum(map(len, content.files.values()))
    if size > _LARGEST:
        raise _refused(
            f"{content.path!r} already holds {size >> 20} MiB; the job can keep up to "
            f"{_LARGEST >> 20} MiB that were there before it began",
            "Begin with an empty folder or file.",
        )
    return content


@contextmanager
def _naming_databases(given: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _refused(
            f"SQLite cannot read or write {given!r} ({error})",
            "Leave no transaction open while fit or a Loop runs.",
        ) from error


def _refused(problem: str, hint: str) -> UsageError:
    return UsageError(field="keep", problem=problem, hint=hint)
