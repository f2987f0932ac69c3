"""A frozen base, then fine-tuning with a lower rate: two fits, after keras.io's guide."""

import keras
import numpy as np
import tensorflow as tf
from ending import report
from keras import layers

keras.utils.set_random_seed(9)
images = np.random.rand(96, 16, 16, 3).astype("float32") * 255
labels = np.random.randint(0, 2, 96)
train = tf.data.Dataset.from_tensor_slices((images[:72], labels[:72])).batch(8).cache().prefetch(2)
held_out = tf.data.Dataset.from_tensor_slices((images[72:], labels[72:])).batch(8)

base = keras.Sequential(
    [
        keras.Input((16, 16, 3)),
        layers.Conv2D(6, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
    ]
)
base.trainable = False
inputs = keras.Input((16, 16, 3))
x = layers.RandomFlip("horizontal")(inputs)
x = base(layers.Rescaling(1 / 127.5, -1)(x), training=False)
x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
model = keras.Model(inputs, layers.Dense(1)(x))

loss = keras.losses.BinaryCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(), loss, metrics=[keras.metrics.BinaryAccuracy()])
top = model.fit(train, epochs=2, validation_data=held_out, verbose=0)

base.trainable = True
model.compile(keras.optimizers.Adam(1e-5), loss, metrics=[keras.metrics.BinaryAccuracy()])
whole = model.fit(train, epochs=2, validation_data=held_out, verbose=0)
report(model, top, whole)
