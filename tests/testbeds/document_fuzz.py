"""Changed documents of jobs and of states: `python -m tests.testbeds.document_fuzz --cases 100000`.

A case changes one document of a job (its values or bytes; its checksum is made to fit) and reads it
in every way that the product does, or changes the document of a state and unpacks it. No case may
end a process, take 5 s or more, or raise anything but one of our errors.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from outlast.training.state import trees
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from tests.property import test_hostile_documents as documents
from tests.property import test_hostile_trees as states
from tests.testbeds.array_fuzz import blocks
from tests.unit.outlast.cli.test_hostile_files import make

_BLOCK = 2_000  # cases of a process
_CHANGES = 3  # at most, in one case


def changed_value(chance: random.Random, plain: Any, values: list[Any]) -> Any:
    """Return JSON data with other values at one to three places; some are of the same data."""
    for _ in range(chance.randint(1, _CHANGES)):
        at = chance.choice(states.places(plain))
        new = chance.choice(values)
        if chance.random() < 0.3:
            new = plain
            for key in chance.choice(states.places(plain)):
                new = new[key]
        plain = states.put(plain, at, new)
    return plain


def changed_bytes(chance: random.Random, text: bytes) -> bytes:
    """Return the text with bytes replaced, removed or repeated at one to three places."""
    found = bytearray(text)
    for _ in range(chance.randint(1, _CHANGES)):
        start = chance.randrange(len(found) + 1)
        end = min(len(found), start + chance.randrange(12))
        again = bytes(found[start:end]) * chance.randint(2, 9)
        new = chance.choice([b"", chance.randbytes(chance.randrange(6)), again])
        found[start:end] = new
    return bytes(found)


def read_job(chance: random.Random, storage: Storage) -> str:
    """Change and read one document of a job; return which kind it was."""
    what = chance.choice(sorted(documents.PATHS))
    path = documents.PATHS[what](storage)
    content = storage.read(path)
    body = documents.body_of(path, content)
    if chance.random() < 0.5:
        text = json.dumps(changed_value(chance, body, documents.VALUES)).encode()
    else:
        text = changed_bytes(chance, json.dumps(body).encode())
    with documents.changed(storage, path, documents.written(path, content, text)):
        documents.look(storage, what)
    return what


def read_state(chance: random.Random) -> str:
    """Change and unpack the document of a state."""
    arrays: dict[str, Any] = {}
    forms = chance.sample(states.FORMS, 2)
    plain = trees.encode({"a": forms[0], "b": forms[1]}, arrays, "tree")
    for name in arrays:
        if chance.random() < 0.1:
            size = chance.choice([0, 1, 5, 700])
            arrays[name] = np.full(size, chance.choice([0, -1, 2**31, np.nan]))
    states.unpacked(changed_value(chance, plain, states.VALUES), arrays)
    return "state"


def read(storage: Storage, case: int) -> str:
    chance = random.Random(case)
    return read_state(chance) if case % 2 else read_job(chance, storage)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    memory = Path("/dev/shm")  # thousands of changes, and none of them has to last
    folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
    try:
        storage = open_storage(make(Path(folder), "job"))
        began, told = time.monotonic(), Counter[str]()
        for done, found in blocks(given.first, given.cases, partial(read, storage), _BLOCK):
            told += found
            print(f"{done:,} of {given.cases:,} in {time.monotonic() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"no signal, hang or other error in {given.cases:,} cases: {dict(told)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
