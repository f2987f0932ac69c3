"""Two towers with keras-rs, after its basic retrieval example."""

import keras
import keras_rs
import numpy as np
import tensorflow as tf
from ending import report

keras.utils.set_random_seed(4)
USERS, MOVIES = 20, 30


class Retrieval(keras.Model):
    def __init__(self):
        super().__init__()
        self.users = keras.layers.Embedding(USERS, 8)
        self.movies = keras.layers.Embedding(MOVIES, 8)
        self.retrieval = keras_rs.layers.BruteForceRetrieval(k=3, return_scores=False)
        self.loss_fn = keras.losses.MeanSquaredError()

    def build(self, input_shape):
        self.users.build(input_shape)
        self.movies.build(input_shape)
        self.retrieval.candidate_embeddings = self.movies.embeddings
        self.retrieval.build(input_shape)
        super().build(input_shape)

    def call(self, inputs, training=False):
        embeddings = self.users(inputs)
        result = {"user_embeddings": embeddings}
        if not training:
            result["predictions"] = self.retrieval(embeddings)
        return result

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        labels = keras.ops.expand_dims(y["rating"], -1)
        products = y_pred["user_embeddings"] * self.movies(y["movie_id"])
        return self.loss_fn(labels, keras.ops.sum(products, axis=1, keepdims=True), sample_weight)


data = tf.data.Dataset.from_tensor_slices(
    (
        np.random.randint(0, USERS, 160),
        {
            "movie_id": np.random.randint(0, MOVIES, 160),
            "rating": np.random.rand(160).astype("float32"),
        },
    )
).shuffle(160, seed=42, reshuffle_each_iteration=False)
train, test = data.take(128).batch(16).cache(), data.skip(128).batch(16).cache()
model = Retrieval()
model.compile(optimizer=keras.optimizers.Adagrad(learning_rate=0.5))
history = model.fit(train, validation_data=test, validation_freq=2, epochs=4, verbose=0)
found = model.predict(np.array([1, 2]), verbose=0)["predictions"]
report(model, history, found=np.asarray(found).tolist())
