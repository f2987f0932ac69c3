"""Optuna's studies in memory and in SQLite, with pruning."""

import sys

import keras
import numpy as np
import optuna
from ending import report
from keras import layers

keras.utils.set_random_seed(22)
x = np.random.rand(96, 4).astype("float32")
y = (x[:, 0] * x[:, 1] > 0.25).astype("float32")
models = {}


class Pruning(keras.callbacks.Callback):
    def __init__(self, trial):
        super().__init__()
        self.trial = trial

    def on_epoch_end(self, epoch, logs=None):
        self.trial.report(logs["val_loss"], epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"at epoch {epoch}")


def objective(trial):
    model = keras.Sequential([keras.Input((4,))])
    for i in range(trial.suggest_int("layers", 1, 2)):
        model.add(layers.Dense(trial.suggest_int(f"units {i}", 4, 12), "relu"))
    model.add(layers.Dropout(0.1))
    model.add(layers.Dense(1, "sigmoid"))
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    models[trial.number] = model
    history = model.fit(
        x[:72],
        y[:72],
        epochs=4,
        batch_size=12,
        validation_data=(x[72:], y[72:]),
        callbacks=[Pruning(trial)],
        shuffle=False,
        verbose=0,
    )
    return history.history["val_loss"][-1]


optuna.logging.set_verbosity(optuna.logging.WARNING)
if sys.argv[1] == "memory":
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=5, n_startup_trials=3),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
    )
else:
    study = optuna.create_study(
        storage="sqlite:///study.db",
        study_name="digits",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=5, n_startup_trials=3),
        pruner=optuna.pruners.HyperbandPruner(max_resource=4, reduction_factor=3),
    )
study.optimize(objective, n_trials=7 - len(study.trials))

trials = [[t.number, t.params, t.value, t.state.name, t.intermediate_values] for t in study.trials]
report(models[study.best_trial.number], trials=trials)
