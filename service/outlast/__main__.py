"""Runs `python -m outlast` as `outlast`."""

from outlast.cli import main

main()
