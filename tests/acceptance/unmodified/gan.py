"""A GAN with two optimizers in its train_step, after keras.io's DCGAN."""

import keras
import numpy as np
import tensorflow as tf
from ending import report
from keras import layers

keras.utils.set_random_seed(6)
LATENT = 4

discriminator = keras.Sequential(
    [keras.Input((8,)), layers.Dense(16), layers.LeakyReLU(), layers.Dropout(0.2), layers.Dense(1)]
)
generator = keras.Sequential(
    [keras.Input((LATENT,)), layers.Dense(16, activation="relu"), layers.Dense(8)]
)


class GAN(keras.Model):
    def __init__(self, discriminator, generator):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.d_loss = keras.metrics.Mean(name="d_loss")
        self.g_loss = keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def train_step(self, real):
        size = tf.shape(real)[0]
        fake = self.generator(keras.random.normal((size, LATENT), seed=self.seed_generator))
        both = tf.concat([fake, real], axis=0)
        labels = tf.concat([tf.ones((size, 1)), tf.zeros((size, 1))], axis=0)
        labels += 0.05 * tf.random.uniform(tf.shape(labels))
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both, training=True))
        grads = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply(grads, self.discriminator.trainable_weights)
        noise = keras.random.normal((size, LATENT), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            guesses = self.discriminator(self.generator(noise), training=True)
            g_loss = self.loss_fn(tf.zeros((size, 1)), guesses)
        grads = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply(grads, self.generator.trainable_weights)
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


class Monitor(keras.callbacks.Callback):
    """Draws samples after each epoch, and keeps their means."""

    def __init__(self):
        super().__init__()
        self.means = []
        self.seeds = keras.random.SeedGenerator(42)

    def on_epoch_end(self, epoch, logs=None):
        noise = keras.random.normal((6, LATENT), seed=self.seeds)
        self.means.append(float(np.mean(self.model.generator(noise))))


gan = GAN(discriminator, generator)
gan.compile(
    keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3),
    keras.losses.BinaryCrossentropy(from_logits=True),
)  # fmt: skip
data = tf.data.Dataset.from_tensor_slices(np.random.rand(128, 8).astype("float32"))
monitor = Monitor()
data = data.shuffle(128).batch(16)
history = gan.fit(data, epochs=3, callbacks=[monitor], verbose=0)
report([discriminator, generator, gan.d_optimizer, gan.g_optimizer], history, means=monitor.means)
