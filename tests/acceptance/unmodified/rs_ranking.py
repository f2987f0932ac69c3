"""Listwise ranking with a loss and a metric of keras-rs, after its example."""

import keras
import keras_rs
import numpy as np
import tensorflow as tf
from ending import report

keras.utils.set_random_seed(5)
USERS, MOVIES, LENGTH = 20, 30, 5


class Ranking(keras.Model):
    def __init__(self):
        super().__init__()
        self.users = keras.layers.Embedding(USERS, 8)
        self.movies = keras.layers.Embedding(MOVIES, 8)
        self.cross = keras_rs.layers.FeatureCross()
        self.score = keras.Sequential(
            [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)]
        )

    def call(self, inputs):
        users = keras.ops.expand_dims(self.users(inputs["user_id"]), 1)
        users = keras.ops.repeat(users, LENGTH, axis=1)
        both = keras.ops.concatenate([users, self.movies(inputs["movie_ids"])], axis=2)
        return keras.ops.squeeze(self.score(self.cross(both)), axis=-1)


lists = (
    {
        "user_id": np.random.randint(0, USERS, 128),
        "movie_ids": np.random.randint(0, MOVIES, (128, LENGTH)),
    },
    np.random.randint(1, 6, (128, LENGTH)).astype("float32"),
)
data = tf.data.Dataset.from_tensor_slices(lists)
train, test = data.take(96).shuffle(96, seed=3).batch(12), data.skip(96).batch(12)
model = Ranking()
model.compile(
    loss=keras_rs.losses.PairwiseHingeLoss(),
    metrics=[keras_rs.metrics.NDCG(k=3, name="ndcg")],
    optimizer=keras.optimizers.Adagrad(learning_rate=0.1),
)
history = model.fit(train, validation_data=test, epochs=3, verbose=0)
report(model, history)
