"""The commands of `outlast`, one file each; loaded when used."""
