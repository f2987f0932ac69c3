"""Train a small network on handwritten digits (the UCI digits of scikit-learn).

It is plain Keras, except for `fit(model, …)` in place of `model.fit(…)`.
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

from outlast import fit

images, digits = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16.0

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
        layers.Conv2D(48, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Conv2D(96, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(96, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.4),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(
    optimizer=keras.optimizers.AdamW(learning_rate=1e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
fit(
    model,
    images,
    digits,
    batch_size=32,
    epochs=8,
    validation_split=0.2,
    callbacks=[keras.callbacks.ReduceLROnPlateau(patience=2)],
    verbose=2,
)
