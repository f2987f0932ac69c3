"""The order of an epoch takes nothing from the generators of the script."""

from __future__ import annotations

import numpy as np
import pytest

from outlast.attempt import fresh_seeds
from outlast.training.data.permutation import epoch_order


def test_the_order_is_that_of_a_generator_with_this_key() -> None:
    key = np.array([7, 3], np.uint64)
    wanted = np.random.Generator(np.random.Philox(key=key)).permutation(np.arange(1000))
    assert epoch_order(1000, 8, True, 7, 3).tolist() == wanted.tolist()


def test_an_order_that_is_computed_again_draws_no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    bit_generator = pytest.importorskip("numpy.random.bit_generator")
    monkeypatch.setattr(bit_generator, "randbits", bit_generator.randbits)
    monkeypatch.setattr(fresh_seeds, "_sequence", None)
    fresh_seeds.begin(5)
    np.random.default_rng()
    assert fresh_seeds.drawn() == 1
    epoch_order(1000, 8, True, 7, 3)
    epoch_order(1000, 8, "batch", 7, 3)
    assert fresh_seeds.drawn() == 1
