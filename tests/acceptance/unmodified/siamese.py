"""Pairs through one shared encoder with a contrastive loss, after keras.io's siamese nets."""

import keras
import numpy as np
from ending import report
from keras import layers, ops

keras.utils.set_random_seed(7)
rng = np.random.default_rng(7)
points, classes = rng.random((160, 2, 10), dtype="float32"), rng.integers(0, 4, (160, 2))
same = (classes[:, 0] != classes[:, 1]).astype("float32")

inputs = keras.Input((10,))
encoder = keras.Model(
    inputs, layers.Dense(6, activation="tanh")(layers.BatchNormalization()(inputs))
)
first, second = keras.Input((10,)), keras.Input((10,))


def distance(vectors):
    x, y = vectors
    total = ops.sum(ops.square(x - y), axis=1, keepdims=True)
    return ops.sqrt(ops.maximum(total, keras.backend.epsilon()))


merged = layers.Lambda(distance, output_shape=(1,))([encoder(first), encoder(second)])
outputs = layers.Dense(1, activation="sigmoid")(layers.BatchNormalization()(merged))
siamese = keras.Model([first, second], outputs)


def contrastive(y_true, y_pred, margin=1.0):
    near, far = ops.square(y_pred), ops.square(ops.maximum(margin - y_pred, 0))
    return ops.mean((1 - y_true) * near + y_true * far)


siamese.compile(loss=contrastive, optimizer="RMSprop", metrics=["accuracy"])
pairs = [points[:, 0], points[:, 1]]
held_out = ([points[:32, 0], points[:32, 1]], same[:32])
history = siamese.fit(
    pairs, same, validation_data=held_out, batch_size=16, epochs=3, verbose=0, shuffle=False
)
report(siamese, history)
