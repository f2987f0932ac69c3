"""EarlyStopping, ReduceLROnPlateau and CSVLogger on a regression."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(10)
x = np.random.rand(160, 5).astype("float32")
y = x @ np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + np.random.normal(0, 0.3, 160)

model = keras.Sequential([keras.Input((5,)), layers.Dense(12, activation="relu"), layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.2, momentum=0.9), "mse")
callbacks = [
    keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True),
    keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
    keras.callbacks.CSVLogger("log.csv"),
]
history = model.fit(
    x, y, epochs=12, batch_size=20, validation_split=0.2, callbacks=callbacks, verbose=0
)
with open("log.csv") as file:
    report(model, history, rows=file.read().splitlines(), stopped=callbacks[0].stopped_epoch)
