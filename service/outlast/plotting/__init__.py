"""Learning curves: reduced to a few thousand points, drawn as a PNG."""
