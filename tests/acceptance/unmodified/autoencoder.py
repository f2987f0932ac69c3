"""A denoising autoencoder with tied targets and regularisation, after keras.io's."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(18)
clean = np.random.rand(128, 8, 8, 1).astype("float32")
noisy = np.clip(clean + 0.3 * np.random.normal(size=clean.shape), 0, 1).astype("float32")

inputs = keras.Input((8, 8, 1))
x = layers.Conv2D(6, 3, activation="relu", padding="same")(inputs)
x = layers.MaxPooling2D(2, padding="same")(x)
x = layers.Conv2DTranspose(6, 3, strides=2, activation="relu", padding="same")(x)
x = layers.Conv2D(1, 3, activation="sigmoid", padding="same", kernel_regularizer="l2")(x)
autoencoder = keras.Model(inputs, x)
autoencoder.compile(optimizer="adam", loss="binary_crossentropy")
history = autoencoder.fit(
    noisy, clean, epochs=3, batch_size=16, shuffle=True, verbose=0,
    validation_data=(noisy[:16], clean[:16]),
)  # fmt: skip
report(autoencoder, history)
