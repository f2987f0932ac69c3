"""Audits: an interval of a training is trained again in another process, and compared."""
