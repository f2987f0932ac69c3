"""Augmentation in the pipeline and in the model, with BatchNormalization."""

import keras
import numpy as np
import tensorflow as tf
from ending import report
from keras import layers

keras.utils.set_random_seed(2)
images = np.random.rand(128, 12, 12, 3).astype("float32")
labels = np.random.randint(0, 3, 128)

augment = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
train = tf.data.Dataset.from_tensor_slices((images[:96], labels[:96]))
train = train.shuffle(96).map(lambda x, y: (tf.image.random_brightness(x, 0.2), y)).batch(8)
held_out = tf.data.Dataset.from_tensor_slices((images[96:], labels[96:])).batch(8)

inputs = keras.Input((12, 12, 3))
x = augment(inputs)
x = layers.Conv2D(8, 3, padding="same")(x)
x = layers.BatchNormalization()(x)
x = layers.ReLU()(x)
x = layers.GlobalAveragePooling2D()(x)
model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(train, validation_data=held_out, epochs=3, verbose=0)
report(model, history)
