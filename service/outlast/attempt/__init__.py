"""The training process, without TensorFlow: context, signals, seeding and output."""
