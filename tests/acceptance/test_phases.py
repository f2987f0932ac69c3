"""Hyperparameter searches, killed with SIGKILL: trials that are pruned, skipped or named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.acceptance import forked
from tests.acceptance.jobs import PATH, outlast

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SEARCH = """
import json, os, sys, keras, numpy as np
from outlast import fit

class Pruned(Exception): pass

class Prune(keras.callbacks.Callback):
    def __init__(self, trial):
        super().__init__()
        self.trial = trial
    def on_epoch_end(self, epoch, logs=None):
        if self.trial == 1 and epoch == 1:
            raise Pruned(f"after {epoch}")
        if self.trial == 2 and epoch == 2 and "between" not in sys.argv:
            die()

def die():
    if not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), 9)

names, book = "names" in sys.argv, {}
if "book" in sys.argv and os.path.exists("book.json"):
    book = json.load(open("book.json"))
x = np.random.default_rng(1).random((64, 6)).astype("float32")
keras.utils.set_random_seed(7)
for trial in range(4):
    if str(trial) in book:
        continue
    if "once" not in sys.argv:
        keras.utils.set_random_seed(trial)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1 / 10**trial if "alike" not in sys.argv else 0.01), "mse")
    try:
        name = f"trial {trial}" if names else None
        done = fit(model, x, x.sum(1), epochs=4, verbose=0, callbacks=[Prune(trial)], name=name)
        book[str(trial)] = done.history["loss"]
    except Pruned as error:
        book[str(trial)] = str(error)
    with open("book.json", "w") as file:
        json.dump(book, file)
    if "between" in sys.argv and trial == 0:
        die()
print("BOOK", json.dumps(book))
"""


def search(folder: Path, *arguments: str, die: bool, cold: bool = False) -> tuple[int, str, str]:
    """Run the search as a job; return the exit code, the book's line and all output.

    cold: each attempt is a new interpreter. Otherwise it has imported TensorFlow and Outlast before
    it is an attempt, as a warm spare has.
    """
    folder.mkdir()
    (folder / "search.py").write_text(SEARCH)
    if not die:
        (folder / "died").touch()
    options = ["--root", "jobs", "--seed", "1", "--save-every", "2", "--backoff", "0"]
    command = ["run", *options, "search.py", *arguments]
    env = {**os.environ, "PYTHONPATH": PATH}
    if cold:
        done = outlast(*command, cwd=folder, env=env)
        code, out = done.returncode, done.stdout + done.stderr
    else:
        code, out = forked.run(command, folder, env)
    book = [line for line in out.splitlines() if line.startswith("BOOK")]
    assert (folder / "died").exists()
    return code, book[-1] if book else "", out


def test_a_search_with_a_pruned_trial_ends_as_untouched(tmp_path: Path) -> None:
    code, whole, out = search(tmp_path / "whole", die=False, cold=True)
    assert (code, '"1": "after 1"' in whole) == (0, True), out
    for number, arguments in enumerate([(), ("book",), ("names", "book")]):
        code, parts, out = search(tmp_path / str(number), *arguments, die=True)
        assert code == 0, out
        assert parts == whole, arguments
        assert "1 restart" in out


def test_a_search_that_passes_over_its_trials_ends_as_untouched(tmp_path: Path) -> None:
    """The trials differ in nothing but the random numbers since the one seed at the top."""
    code, whole, out = search(tmp_path / "whole", "alike", "once", die=False, cold=True)
    assert code == 0, out
    for when, cold in (("between", True), ("between", False), ("within", False)):
        folder = tmp_path / f"{when} {cold}"
        code, parts, out = search(folder, "alike", "once", "book", when, die=True, cold=cold)
        assert (code, parts) == (0, whole), out
        assert "1 restart" in out
        assert "phases_passed_over" not in out
