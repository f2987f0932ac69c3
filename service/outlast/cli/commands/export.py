"""`outlast export`: write a checkpoint as a file that plain Keras can load."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from outlast.atomic_file import replacing
from outlast.cli import checkpoint_choice
from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import job_argument, json_option
from outlast_checkpoints.errors import CheckpointDamaged, UsageError
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.format.manifest import FileEntry, Manifest
    from outlast_checkpoints.storage.base import Storage

_WEIGHTS, _WHOLE = ".weights.h5", ".keras"


@click.command("export", cls=Verb)
@job_argument
@click.argument("dest", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--checkpoint",
    metavar="WHICH",
    default="latest",
    show_default=True,
    help=checkpoint_choice.HELP,
)
@json_option()
def export(root: str, job: str, dest: Path, checkpoint: str, as_json: bool) -> None:
    """Export a verified checkpoint of JOB to the file DEST.

    DEST must end in .keras (architecture, weights and optimizer, for keras.saving.load_model) or
    in .weights.h5 (for model.load_weights). An existing file is replaced atomically.
    """
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

    kind = _kind(dest)
    if not dest.absolute().parent.is_dir():
        raise UsageError(
            field="DEST",
            problem=f"there is no folder {str(dest.parent)!r}",
            hint="Create the folder first.",
        )
    place = find_job(root, job)
    store = CheckpointStore(place.storage)
    manifest = checkpoint_choice.select(store, checkpoint, lambda text: say(text, err=True))
    if kind == _WEIGHTS:
        _write_weights(place.storage, manifest, dest)
    else:
        _write_whole(place.storage, manifest, dest)
    size = dest.stat().st_size
    if as_json:
        print_json({"checkpoint": manifest.checkpoint, "file": str(dest), "size": size})
        return
    load = (
        f'keras.saving.load_model("{dest}")' if kind == _WHOLE else f'model.load_weights("{dest}")'
    )
    say(f"{dest}: {manifest.checkpoint}, {units.size(size)}. Load it with {load}")


def _kind(dest: Path) -> str:
    for ending in (_WEIGHTS, _WHOLE):
        if dest.name.endswith(ending) and dest.name != ending:
            return ending
    raise UsageError(
        field="DEST",
        problem=f"{dest.name!r} must end in .keras or .weights.h5",
        hint="Use for example model.keras (whole model) or model.weights.h5 (weights only).",
    )


def _entry(manifest: Manifest, name: str) -> FileEntry | None:
    return next((entry for entry in manifest.files if entry.name == name), None)


def _pieces(storage: Storage, manifest: Manifest) -> Iterator[bytes | bytearray | memoryview]:
    """Yield the weights file of a checkpoint, written anew from its arrays.

    So nothing of the stored file but its arrays gets into the exported one. Of a checkpoint that
    this version wrote it is the same file, byte for byte. Raises `CheckpointDamaged`.
    """
    from outlast_checkpoints.arrays import hdf5_file
    from outlast_checkpoints.store import files

    return hdf5_file.file_pieces(files.load_file(storage, manifest, layout.WEIGHTS_FILE))


def _model(storage: Storage, manifest: Manifest, entry: FileEntry) -> dict[str, Any]:
    """Return the description of the model. Raises `CheckpointDamaged`."""
    from outlast_checkpoints.store import files

    content = files.load_document(storage, manifest, entry)
    try:
        document = json.loads(content)
        return {"config": document["config"], "keras_version": str(document["keras_version"])}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(
            checkpoint=manifest.checkpoint,
            file=entry.name,
            reason=f"it does not describe a model ({error})",
        ) from error


def _write_weights(storage: Storage, manifest: Manifest, dest: Path) -> None:
    _require_weights(manifest)
    with replacing(dest) as file:
        for piece in _pieces(storage, manifest):
            file.write(piece)


def _require_weights(manifest: Manifest) -> None:
    if _entry(manifest, layout.WEIGHTS_FILE) is None:
        raise UsageError(
            field="--checkpoint",
            problem=f"{manifest.checkpoint} does not hold the weights of one model",
            hint=f"Its files: {', '.join(entry.name for entry in manifest.files)}.",
        )


def _write_whole(storage: Storage, manifest: Manifest, dest: Path) -> None:
    """Write a `.keras` file in Keras' format: a zip of two JSON documents and the weights."""
    _require_weights(manifest)
    entry = _entry(manifest, layout.MODEL_FILE)
    if entry is None:
        raise UsageError(
            field="DEST",
            problem=f"{manifest.checkpoint} has no description of the model, because get_config() "
            "of this custom model does not return one",
            hint="Export to a name that ends in .weights.h5, and load that file into the model "
            "that your script builds.",
        )
    document = _model(storage, manifest, entry)
    metadata = {
        "keras_version": document["keras_version"],
        "date_saved": time.strftime("%Y-%m-%d@%H:%M:%S", time.localtime(manifest.created)),
    }
    with replacing(dest) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("metadata.json", metadata),
            ("config.json", document["config"]),
        ):
            with _member(archive, name, 0) as member:
                member.write(json.dumps(content).encode())
        with _member(archive, layout.WEIGHTS_FILE, manifest.size) as member:
            for piece in _pieces(storage, manifest):
                member.write(piece)


def _member(archive: zipfile.ZipFile, name: str, size: int) -> IO[bytes]:
    # With the fixed date of ZipInfo the same checkpoint always gives the same bytes.
    info: Any = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return archive.open(info, "w", force_zip64=size >= zipfile.ZIP64_LIMIT)
