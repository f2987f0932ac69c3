"""A training that goes back to an older checkpoint, and a fork of it, end as the untouched one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outlast_checkpoints.format.layout import Stage
from tests.acceptance.jobs import Training, assert_same, outlast

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]

SAVE = "--save-every 7,epoch --keep all"


def test_a_finished_training_goes_back_and_ends_the_same(
    train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    training = train("mlp", options=SAVE, forked=True)
    training.start()
    training.end()
    last = training.final()
    at = ("mlp", "--root", training.root)
    for wrong, code, said in (
        ("phase:7", 66, "phase:7"),
        ("best:nothing", 2, "Known metrics: "),
        ("yesterday", 2, "--from: invalid selection 'yesterday'"),
    ):
        answer = outlast("resume", *at, "--from", wrong)
        assert (answer.returncode, said in answer.stderr) == (code, True), answer.stderr
    assert training.job().state == "succeeded"

    chosen = max(one for one in training.store.ids() if one.step <= 40)
    assert chosen.step > 0
    training.resume("--from", "step:40")
    training.end()
    assert_same(training, untouched("mlp"))
    assert f"it continues from {chosen}" in training.output()
    outcomes = [one.attempt for one in training.store.ids() if one.stage is Stage.END]
    assert outcomes == [3]  # attempt 2 was the rewind

    assert training.committed(last)  # set aside, not deleted
    events = outlast("events", *at).stdout
    assert f"attempt 2 rewound, the job continues from {chosen}" in events
    training.resume("--from", str(last))
    training.end()
    assert training.final() == last
    assert_same(training, untouched("mlp"))
    assert outlast("prune", *at).returncode == 0
    assert outlast("verify", *at).returncode == 0

    options = ("--at", "step:40", "--keep", "2", "--tag", "x=1")
    forked = outlast("fork", "mlp", "twin", *at[1:], *options)
    assert forked.returncode == 0, forked.stderr
    events = outlast("events", *at[1:], "twin").stdout
    assert f"{chosen} of {training.folder}" in events
    assert outlast("rm", *at).returncode == 0  # its links keep the files
    twin = training.other("twin")
    twin.resume()
    twin.end()
    assert_same(twin, untouched("mlp"))
    assert "x=1" in outlast("list", *at[1:], "--tag", "x").stdout
    events = outlast("events", *at[1:], "twin").stdout
    assert f"{chosen} of {training.folder}" in events
