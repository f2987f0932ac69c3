"""Checkpoints on a storage: committing, background writing, spool, copying, verifying."""
