"""Checkpoints on a storage: commit, background writing, spool, copying, verifying."""
