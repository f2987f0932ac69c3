"""`state.h5`: a JSON document of plain state, with its arrays and further variables.

The dataset "document" contains the JSON as bytes (uint8). "variables/<i>" are the variables that
Keras' weights file lacks. "tree/…" are the arrays that the document names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from outlast.training.state import trees
from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.snapshot import ArrayFile

DOCUMENT = "document"
_ROOM = 1024  # bytes
_WRONG = (
    *(LookupError, ValueError, TypeError),
    *(AttributeError, ArithmeticError, RecursionError),
)


def pack(plain: Mapping[str, Any], variables: Mapping[str, Any]) -> ArrayFile:
    """Return the array file of `plain` (see `trees.encode`) and the variables.

    Arrays in `plain` are copied, because their owner may change them during the write.
    """
    arrays: dict[str, Any] = {}
    document = trees.encode(dict(plain), arrays, "tree")
    text = trees.json_of(document)
    # Pad with blanks, so that a number with one more digit does not change the file's layout.
    text = text.ljust(-(-len(text) // _ROOM) * _ROOM)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    arrays[DOCUMENT] = np.frombuffer(text, np.uint8)
    return ArrayFile({**arrays, **variables})


def unpack(arrays: Mapping[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plain state, and the variables by name. `path` names the file in errors."""
    try:
        document = json.loads(bytes(arrays[DOCUMENT]))
        plain = trees.decode(document, arrays)
    except _WRONG as error:
        raise FormatError(path=path, reason=f"cannot read its document ({error})") from error
    if not isinstance(plain, dict):
        raise FormatError(path=path, reason="its document is not an object")
    variables = {n: a for n, a in arrays.items() if n.startswith("variables/")}
    return plain, variables
