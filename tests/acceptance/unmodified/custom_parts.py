"""A loss, a metric, a layer and a callback of the script's own."""

import keras
import numpy as np
from ending import report
from keras import layers, ops

keras.utils.set_random_seed(15)


class Huber(keras.losses.Loss):
    def call(self, y_true, y_pred):
        error = ops.abs(y_true - y_pred)
        return ops.mean(ops.where(error < 1, 0.5 * error**2, error - 0.5), axis=-1)


class Largest(keras.metrics.Metric):
    def __init__(self, name="largest", **kwargs):
        super().__init__(name=name, **kwargs)
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(ops.maximum(self.value, ops.max(ops.abs(y_true - y_pred))))

    def result(self):
        return self.value


class Noisy(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if not training:
            return x
        self.seen.assign_add(1.0)
        return x + keras.random.normal(ops.shape(x), stddev=0.1, seed=self.seeds)


class Smoothed(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.value, self.batches, self.best = 0.0, 0, None

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self.value = 0.9 * self.value + 0.1 * logs["loss"]

    def on_epoch_end(self, epoch, logs=None):
        self.best = self.model.get_weights()
        self.model.optimizer.learning_rate = 0.01 / (epoch + 2)


x = np.random.rand(120, 4).astype("float32")
y = x[:, :1] * 3 - x[:, 1:2]
model = keras.Sequential([keras.Input((4,)), Noisy(), layers.Dense(8, "tanh"), layers.Dense(1)])
model.compile(keras.optimizers.Adam(0.01), Huber(), metrics=[Largest()])
smoothed = Smoothed()
history = model.fit(x, y, epochs=3, batch_size=12, callbacks=[smoothed], verbose=0, shuffle=False)
sums = [float(np.sum(w)) for w in smoothed.best]
report(model, history, value=smoothed.value, batches=smoothed.batches, sums=sums)
