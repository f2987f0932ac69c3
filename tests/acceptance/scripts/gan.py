"""A hand-written GAN: two models, two optimizers, a separate noise generator, and no `fit`."""

import keras
import numpy as np
from keras import layers
from moments import Moments, digits, write_history

from outlast import Loop

x, *_ = digits()
moments = Moments()
noise = np.random.default_rng(5)

critic = keras.Sequential(
    [layers.Input((64,)), layers.Dense(32, "relu"), layers.Dropout(0.3), layers.Dense(1)]
)
artist = keras.Sequential(
    [layers.Input((8,)), layers.Dense(32, "relu"), layers.BatchNormalization(), layers.Dense(64)]
)
both = keras.Sequential([artist, critic])
loss = keras.losses.BinaryCrossentropy(from_logits=True)
critic.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
critic.optimizer.build(critic.trainable_variables)
critic.trainable = False  # only in what is compiled from here on
both.compile(keras.optimizers.Adam(1e-3, beta_1=0.5), loss)

state = {"critic": critic, "artist": artist, "both": both, "noise": noise}
loop = Loop(state, x.reshape(-1, 64), batch_size=32, epochs=12)
for real in loop:
    if loop.batch == 0:
        moments.on_epoch_begin(loop.epoch)
    size = len(real)
    fake = artist(noise.normal(size=(size, 8)))
    critic.trainable = True
    on_real = critic.train_on_batch(real, np.ones((size, 1)), return_dict=True)
    on_fake = critic.train_on_batch(fake, np.zeros((size, 1)), return_dict=True)
    critic.trainable = False
    fooled = both.train_on_batch(noise.normal(size=(size, 8)), np.ones((size, 1)))
    loop.log(critic=on_real["loss"] + on_fake["loss"], accuracy=on_fake["accuracy"], artist=fooled)
    if loop.last_batch:
        spread = np.std(artist(noise.normal(size=(50, 8))), axis=0).mean()
        loop.log_epoch(spread=spread)
        moments.on_epoch_end(loop.epoch)
write_history(loop.history)
