"""What the user asked `fit` for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outlast.training.data.permutation import Shuffle


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of one `fit` call, as they were given."""

    x: Any
    y: Any
    sample_weight: Any
    batch_size: int | None
    epochs: int
    initial_epoch: int
    verbose: str | int
    callbacks: Any
    validation_split: float
    validation_data: Any
    validation_steps: int | None
    validation_batch_size: int | None
    validation_freq: int | list[int]
    shuffle: Shuffle
    class_weight: dict[int, float] | None
    steps_per_epoch: int | None
    max_queue_size: int
    view_metrics: bool
    jit_compile: bool | str | None
    seed: int | None
    name: str | None
