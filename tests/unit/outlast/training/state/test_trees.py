"""Constant parts of documents, which must be readable without the arrays of their file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from outlast.training.state import trees


def test_a_constant_part_needs_no_arrays() -> None:
    value = {
        "class_weight": {"0": np.float64(0.25), "1": np.float32(0.5)},
        "steps": np.int64(3),
        "flag": np.bool_(True),
        "boundaries": [0.5] * trees.MANY,
    }
    text = trees.json_of({"fingerprint": trees.Constant(value).document})
    assert trees.decode(json.loads(text), {})["fingerprint"] == {
        "class_weight": {"0": 0.25, "1": 0.5},
        "steps": 3,
        "flag": True,
        "boundaries": [0.5] * trees.MANY,
    }


@pytest.mark.parametrize("value", [np.zeros(2), np.longdouble(1), np.complex64(1)])
def test_a_constant_part_has_no_array(value: object) -> None:
    with pytest.raises(trees.NotPlain):
        trees.Constant({"x": value})
