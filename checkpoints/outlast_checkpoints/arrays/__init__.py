"""Arrays in files: HDF5 in Keras' layout, direct I/O, hashing, and which arrays changed."""
