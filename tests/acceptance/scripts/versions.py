"""A loop and a fit whose numbers are exact on every machine: sums of few powers of two.

Its job is the folder that is given. If told, it asks itself to leave in the fit's second epoch.
"""

import os
import random
import signal
import sys

import keras
import numpy as np

from outlast import Loop, fit

keras.utils.set_random_seed(7)
folder, leaves = sys.argv[1], "leave" in sys.argv[2:]
total, dice = np.zeros(3), random.Random(5)
options = {"job_dir": folder, "save_every": 2, "verbose": 0, "seed": 5}
for step in (
    loop := Loop({"total": total, "dice": dice}, None, epochs=2, steps_per_epoch=4, **options)
):
    total += [step, dice.randrange(1000), np.random.default_rng(step).integers(1000)]
    loop.log(total=float(total.sum()))


class Leave(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if leaves and self.params and batch == 1 and self.model.optimizer.iterations == 6:
            os.kill(os.getpid(), signal.SIGTERM)


model = keras.Sequential(
    [keras.layers.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")]
)
model.compile(keras.optimizers.SGD(0.25, momentum=0.5), "mse")
x, y = np.ones((16, 1), "float32"), np.ones((16, 1), "float32")
fit(model, x, y, batch_size=4, epochs=3, shuffle=False, callbacks=[Leave()], **options)
