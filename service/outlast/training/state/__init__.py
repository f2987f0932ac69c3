"""The state of a training: what is saved, and how it is put back."""
