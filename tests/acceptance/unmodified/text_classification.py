"""Text with TextVectorization in the pipeline, after keras.io's text classification."""

import random

import keras
import tensorflow as tf
from ending import report
from keras import layers

keras.utils.set_random_seed(3)
words = {0: ["bad", "poor", "dull", "slow", "weak"], 1: ["good", "great", "fine", "rich", "warm"]}
labels = [random.randint(0, 1) for _ in range(160)]
texts = [" ".join(random.choices(words[label] + ["film", "plot", "a"], k=8)) for label in labels]

vectorize = layers.TextVectorization(max_tokens=50, output_sequence_length=10)
vectorize.adapt(texts)
data = tf.data.Dataset.from_tensor_slices((texts, labels))
train = data.take(128).shuffle(128, seed=5).batch(16).map(lambda x, y: (vectorize(x), y))
held_out = data.skip(128).batch(16).map(lambda x, y: (vectorize(x), y))

model = keras.Sequential(
    [
        layers.Embedding(50, 8),
        layers.Dropout(0.3),
        layers.Conv1D(8, 3, activation="relu"),
        layers.GlobalMaxPooling1D(),
        layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
history = model.fit(train, validation_data=held_out, epochs=4, verbose=0)
report(model, history)
