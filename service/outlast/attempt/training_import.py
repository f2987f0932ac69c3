"""What an attempt does when its script imports the training room, which loads TensorFlow."""

from __future__ import annotations

from typing import Any

from outlast.attempt.seeding import after_import
from outlast.job.spec import JobSpec


def prepare_training(spec: JobSpec) -> None:
    """Watch turns, and train with the job's replicas, once the script imports the training room.

    A warm spare has imported it before it was this attempt, so that is now.
    """

    def prepare(training: Any) -> None:
        training.watch_turns()
        training.use_replicas(spec.replicas)

    after_import({"outlast.training": prepare})
