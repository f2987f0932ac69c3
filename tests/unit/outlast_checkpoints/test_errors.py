"""Errors say what to do, carry their fields, and can be pickled."""

from __future__ import annotations

import errno
import pickle

import pytest

from outlast_checkpoints import errors
from outlast_checkpoints.errors import NotFound, OutlastError, StorageError, StorageFull


def kinds(kind: type[OutlastError] = OutlastError) -> list[type[OutlastError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in kinds(child))]


def test_the_docstring_is_the_message() -> None:
    error = StorageFull(action="create", path="/x/y", reason="disk full", errno=errno.ENOSPC)
    assert str(error).startswith("No space left to create '/x/y': disk full.")
    assert "\n" not in str(error)
    assert (error.path, error.errno) == ("/x/y", errno.ENOSPC)  # type: ignore[attr-defined]


def test_errors_derive_from_the_matching_builtin_errors() -> None:
    assert issubclass(StorageError, OSError)
    assert issubclass(NotFound, FileNotFoundError)
    with pytest.raises(OSError, match="gone"):
        raise NotFound(path="gone", root="r")


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.__module__ == errors.__name__])
def test_every_error_has_a_message_and_an_exit_code(kind: type[OutlastError]) -> None:
    error = kind(path="p")
    assert str(error)
    assert 0 < kind.exit_code < 256
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.fields == {"path": "p"}
