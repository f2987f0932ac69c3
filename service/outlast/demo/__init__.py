"""The demo: a training killed twice ends byte for byte like an undisturbed one."""
