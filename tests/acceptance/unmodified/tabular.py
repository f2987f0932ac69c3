"""Columns of a table with Normalization and StringLookup, after keras.io's structured data."""

import keras
import numpy as np
import tensorflow as tf
from ending import report
from keras import layers

keras.utils.set_random_seed(20)
size = 160
table = {
    "age": np.random.randint(20, 80, size).astype("float32"),
    "rate": np.random.normal(5, 2, size).astype("float32"),
    "kind": np.random.choice(["normal", "fixed", "reversible"], size),
}
target = (table["age"] > 50).astype("float32")

encoded, inputs = [], {}
for name in ("age", "rate"):
    inputs[name] = keras.Input((1,), name=name)
    normal = layers.Normalization(axis=None)
    normal.adapt(table[name])
    encoded.append(normal(inputs[name]))
lookup = layers.StringLookup(output_mode="one_hot")
lookup.adapt(table["kind"])
inputs["kind"] = keras.Input((4,), name="kind")
encoded.append(inputs["kind"])
x = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(layers.concatenate(encoded)))
model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])


def encode(row, label):
    row = {name: tf.expand_dims(value, -1) for name, value in row.items()}
    return {**row, "kind": lookup(row["kind"])}, label


data = tf.data.Dataset.from_tensor_slices((table, target)).shuffle(size, seed=3)
train = data.skip(40).batch(12).map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
held_out = data.take(40).batch(12).map(encode)
history = model.fit(train, epochs=4, validation_data=held_out, verbose=0)
report(model, history)
