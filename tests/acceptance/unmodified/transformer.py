"""A transformer block for text, after keras.io's text classification with transformer."""

import keras
import numpy as np
from ending import report
from keras import layers, ops

keras.utils.set_random_seed(19)


class Block(layers.Layer):
    def __init__(self, size, heads, inner):
        super().__init__()
        self.attention = layers.MultiHeadAttention(num_heads=heads, key_dim=size)
        self.inner = keras.Sequential([layers.Dense(inner, activation="relu"), layers.Dense(size)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.dropouts = [layers.Dropout(0.1) for _ in range(2)]

    def call(self, x):
        x = self.norms[0](x + self.dropouts[0](self.attention(x, x)))
        return self.norms[1](x + self.dropouts[1](self.inner(x)))


class Embedding(layers.Layer):
    def __init__(self, length, words, size):
        super().__init__()
        self.tokens = layers.Embedding(words, size)
        self.places = layers.Embedding(length, size)

    def call(self, x):
        return self.tokens(x) + self.places(ops.arange(0, ops.shape(x)[-1]))


inputs = keras.Input((10,))
x = Block(8, 2, 8)(Embedding(10, 40, 8)(inputs))
x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
x_train, y_train = np.random.randint(0, 40, (128, 10)), np.random.randint(0, 2, 128)
history = model.fit(
    x_train, y_train, batch_size=16, epochs=3, validation_split=0.25, verbose=0, shuffle=False
)
report(model, history)
