"""ModelCheckpoint keeps the best model; the script loads and evaluates it."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(16)
x = np.random.rand(160, 6).astype("float32")
y = (x.sum(axis=1) > 3).astype("float32")

model = keras.Sequential([keras.Input((6,)), layers.Dense(10, "relu"), layers.Dense(1, "sigmoid")])
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
best = keras.callbacks.ModelCheckpoint("best.keras", monitor="val_loss", save_best_only=True)
history = model.fit(
    x, y, epochs=4, batch_size=16, validation_split=0.25, callbacks=[best], verbose=0
)
loaded = keras.saving.load_model("best.keras")
report([model, loaded], history, score=loaded.evaluate(x, y, verbose=0), best=float(best.best))
