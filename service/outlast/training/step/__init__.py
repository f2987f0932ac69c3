"""The compiled training step: calls of K steps, and the program that runs them."""
