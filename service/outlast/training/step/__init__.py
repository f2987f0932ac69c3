"""The compiled training step: K steps a call, and how that call is compiled."""
