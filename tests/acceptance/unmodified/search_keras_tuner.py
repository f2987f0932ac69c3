"""KerasTuner's searches with their defaults: they reload what they find in their folder."""

import sys

import keras
import keras_tuner
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(21)
x = np.random.rand(96, 4).astype("float32")
y = (x[:, 0] * x[:, 1] > 0.25).astype("float32")


def build(hp):
    model = keras.Sequential([keras.Input((4,))])
    model.add(layers.Dense(hp.Int("units", 4, 12, step=4), "relu"))
    model.add(layers.Dropout(hp.Choice("dropout", [0.0, 0.2])))
    model.add(layers.Dense(1, "sigmoid"))
    rate = hp.Float("rate", 1e-3, 1e-1, sampling="log")
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
    return model


common = {"objective": "val_loss", "seed": 3, "directory": "searches"}
if sys.argv[1] == "random":
    tuner = keras_tuner.RandomSearch(build, max_trials=4, executions_per_trial=2, **common)
elif sys.argv[1] == "bayesian":
    tuner = keras_tuner.BayesianOptimization(build, max_trials=5, num_initial_points=2, **common)
else:
    tuner = keras_tuner.Hyperband(build, max_epochs=4, factor=2, overwrite=True, **common)
tuner.search(
    x[:72],
    y[:72],
    epochs=2,
    batch_size=8,
    validation_data=(x[72:], y[72:]),
    shuffle=False,
    verbose=0,
)

trials = {
    name: [trial.hyperparameters.values, trial.score, trial.best_step, trial.status]
    for name, trial in sorted(tuner.oracle.trials.items())
}
report(tuner.get_best_models(2), trials=trials, order=tuner.oracle.end_order)
