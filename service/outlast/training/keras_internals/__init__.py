"""The private parts of Keras and TensorFlow that training uses, and no other room may use."""
