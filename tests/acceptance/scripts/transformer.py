"""A small transformer, which reads an image line by line, under AdamW with averaged weights."""

import keras
from keras import layers, ops
from moments import Moments, digits, stop_late, write_history

from outlast import fit


class Position(layers.Layer):
    """Adds what is learnt of each place in the sequence."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal", name="table")

    def call(self, inputs):
        return inputs + ops.expand_dims(self.table, 0)


def block(x):
    attended = layers.MultiHeadAttention(2, 16, dropout=0.1)(x, x)
    x = layers.LayerNormalization()(x + attended)
    inner = layers.Dense(64, activation="gelu")(x)
    return layers.LayerNormalization()(x + layers.Dropout(0.1)(layers.Dense(32)(inner)))


x, y, *validation = digits()
inputs = layers.Input((8, 8))
outputs = block(Position()(layers.Dense(32)(inputs)))
outputs = layers.Dense(10)(layers.GlobalAveragePooling1D()(outputs))
model = keras.Model(inputs, outputs)
model.compile(
    keras.optimizers.AdamW(2e-3, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=50),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
)
write_history(
    fit(
        model,
        x,
        y,
        batch_size=32,
        epochs=40,
        validation_data=tuple(validation),
        class_weight={digit: 1.0 + digit / 10 for digit in range(10)},
        callbacks=[*stop_late(), Moments()],
    )
)
