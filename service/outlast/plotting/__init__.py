"""Learning curves, reduced to a few thousand points and drawn as a PNG."""
