"""Private parts of Keras and TensorFlow that training uses. No other room may reach for any."""
