"""The demonstration: a training killed twice ends as one that nobody touched, byte for byte."""
