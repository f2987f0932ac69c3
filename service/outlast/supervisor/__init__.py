"""The supervisor: starts attempts, watches them and decides what follows."""
