"""`kept.h5`: the files of the script that a checkpoint contains; see `outlast.keep`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outlast.attempt import kept_files
from outlast.attempt.context import AttemptContext
from outlast.attempt.kept_path import Changes
from outlast.training.state import document
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.layout import KEPT_FILE
from outlast_checkpoints.format.snapshot import Snapshot


def with_kept_files(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with what has changed in kept files since the phase began."""
    changes = kept_files.changes()
    if not changes:
        return snapshot
    kept = [
        {
            "path": path,
            "files": [[name, np.frombuffer(data, np.uint8)] for name, data in found.files.items()],
            "gone": found.gone,
        }
        for path, found in changes.items()
    ]
    return replace(snapshot, files={**snapshot.files, KEPT_FILE: document.pack({"kept": kept}, {})})


def put_back_files(files: Mapping[str, Mapping[str, Any]], ctx: AttemptContext) -> None:
    """Put back the kept files that a checkpoint with these array files contains."""
    if KEPT_FILE not in files:
        return
    plain, _ = document.unpack(files[KEPT_FILE], KEPT_FILE)
    try:
        changes = {
            one["path"]: Changes(
                {name: bytes(data) for name, data in one["files"]}, list(one["gone"])
            )
            for one in plain["kept"]
        }
        kept_files.put_back(changes, ctx)
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, OSError) or hasattr(error, "fields"):
            raise
        raise FormatError(path=KEPT_FILE, reason=str(error)) from error
