"""The training process, apart from TensorFlow: context, signals, seeding, output."""
