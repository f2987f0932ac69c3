"""The state of a training: taking it for a checkpoint, and restoring it."""
