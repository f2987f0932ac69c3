"""The commands of `outlast`, one file each, imported on first use."""
