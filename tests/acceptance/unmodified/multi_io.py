"""Two inputs and two outputs by name, after the functional API guide of keras.io."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(8)
title = keras.Input((None,), name="title", dtype="int32")
tags = keras.Input((6,), name="tags")
words = layers.LSTM(8)(layers.Embedding(30, 8)(title))
x = layers.concatenate([words, tags])
priority = layers.Dense(1, name="priority")(x)
department = layers.Dense(3, name="department")(x)
model = keras.Model([title, tags], {"priority": priority, "department": department})
model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3),
    loss={
        "priority": keras.losses.BinaryCrossentropy(from_logits=True),
        "department": keras.losses.CategoricalCrossentropy(from_logits=True),
    },
    loss_weights={"priority": 1.0, "department": 0.2},
    metrics={"department": ["accuracy"]},
)
samples = 96
history = model.fit(
    {
        "title": np.random.randint(30, size=(samples, 7)),
        "tags": np.random.randint(2, size=(samples, 6)).astype("float32"),
    },
    {
        "priority": np.random.random((samples, 1)),
        "department": keras.utils.to_categorical(np.random.randint(3, size=samples), 3),
    },
    epochs=3,
    batch_size=16,
    verbose=0,
)
report(model, history)
