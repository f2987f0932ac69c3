"""Reading array files: by their array table, without HDF5's library.

A file without a table (of an older Outlast, or foreign) is parsed in a limited child process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from outlast_checkpoints.arrays import array_table, hdf5_child
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.format.snapshot import ArrayFile
from outlast_checkpoints.storage.base import Storage

_END = 64 << 10  # bytes read at a file's end: most array tables are smaller


def read_file(
    content: memoryview, fetch: Callable[[], AbstractContextManager[Path]], path: str
) -> ArrayFile:
    """Return all arrays of a file by path, and the text attributes of its groups.

    The file's array table says where they are. A file without one is parsed by HDF5's library in
    a limited child process.

    Args:
        content: The file's bytes; the arrays are views of it.
        fetch: Yields the file itself, if it has to be parsed.
        path: Its name, for errors.

    Raises:
        FormatError: The table or the child refuses the file. An array that is compressed, linked
            or stored elsewhere is refused, and so are arrays that claim the same bytes or bytes
            that the file does not have.
        StorageError: The child could not be started.
    """
    size = len(content)
    length = array_table.claimed(content[-array_table.FRAME :], size, path)
    table = None
    if length is not None:
        text = content[size - length : size - array_table.FRAME]
        table = array_table.decode(text, size - length, path)
    if table is None:
        with fetch() as local:
            table = hdf5_child.table_of(local, size, path)
    return array_table.taken_from(content, table)


def check_file(storage: Storage, path: str, entry: FileEntry) -> None:
    """Raise `FormatError` for a stored file that `read_file` would refuse.

    entry: its manifest entry, which it matches. Only the array table is read, if there is one.
    Raises `NotFound` and `StorageError`, too.
    """
    name, size = entry.name, entry.size
    end = storage.read_range(path, max(0, size - _END), size)
    length = array_table.claimed(end, size, name)
    if length is not None:
        if length > len(end):
            end = storage.read_range(path, size - length, size)
        text = memoryview(end)[-length : -array_table.FRAME]
        if array_table.decode(text, size - length, name) is not None:
            return
    with storage.fetch(path) as local:
        hdf5_child.table_of(local, size, name)
