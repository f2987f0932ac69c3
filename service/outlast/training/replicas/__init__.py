"""Data-parallel training: the replicas of a model, their steps, values and strategy."""
