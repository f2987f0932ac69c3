"""Models of KerasHub and keras-rs under `run --adopt`, killed; `make libraries` installs these.

A task of KerasHub has a fit of its own, which prepares strings and images, and ends in Keras' fit.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.acceptance import adopted

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("keras_hub") and find_spec("keras_rs")), reason="make libraries installs it"
    ),
]


@pytest.mark.parametrize("script", adopted.OF_LIBRARIES, ids=lambda script: script.stem)
def test_a_model_of_a_library_killed_ends_as_untouched(tmp_path: Path, script: Path) -> None:
    untouched = adopted.run(script, tmp_path / "untouched")
    killed = adopted.run(script, tmp_path / "killed", kills="5,9")
    assert (untouched.attempts, killed.attempts) == (1, 3)
    assert killed.differences(untouched) == []
    # None of the scripts shuffles arrays, so plain Keras comes to the same.
    assert adopted.plainly(script, tmp_path / "plain") == untouched.end


def test_a_task_is_trained_on_strings_by_our_fit(tmp_path: Path) -> None:
    """`outlast.fit(task, …)` goes through the preprocessor, for the validation data too."""
    script = adopted.SCRIPTS / "hub_text_classifier.py"
    ours = tmp_path / "ours.py"
    called = script.read_text().replace("classifier.fit(", "outlast.fit(classifier, ")
    ours.write_text("import outlast\n" + called)
    shutil.copy(adopted.SCRIPTS / "ending.py", tmp_path)
    end = adopted.run(ours, tmp_path / "ours", kills="5,9").end
    assert end == adopted.plainly(script, tmp_path / "plain")
    (history,) = json.loads(end.removeprefix("END "))["histories"]
    assert history["val_accuracy"][-1] == 1.0
