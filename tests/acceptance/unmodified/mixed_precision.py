"""mixed_float16 with loss scaling and a learning rate schedule."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(13)
keras.mixed_precision.set_global_policy("mixed_float16")
x = np.random.rand(160, 16).astype("float32")
y = np.random.randint(0, 4, 160)

inputs = keras.Input((16,))
hidden = layers.Dense(16, activation="relu")(inputs)
outputs = layers.Activation("softmax", dtype="float32")(layers.Dense(4)(hidden))
model = keras.Model(inputs, outputs)
rate = keras.optimizers.schedules.CosineDecay(1e-2, 30)
adam, loss = keras.optimizers.AdamW(rate), "sparse_categorical_crossentropy"
model.compile(adam, loss, metrics=["accuracy"])
history = model.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
report(model, history)
