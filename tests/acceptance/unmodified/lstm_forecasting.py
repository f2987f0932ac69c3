"""Forecasting with an LSTM on windows of a series, after keras.io's weather example."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(4)
time = np.arange(300, dtype="float32")
series = np.stack([np.sin(time / 9), np.cos(time / 5)], axis=1) + np.random.rand(300, 2) * 0.1

train = keras.utils.timeseries_dataset_from_array(
    series[:240], series[10:240, :1], sequence_length=10, batch_size=16, shuffle=True, seed=1
)
held_out = keras.utils.timeseries_dataset_from_array(
    series[240:], series[250:, :1], sequence_length=10, batch_size=16
)
model = keras.Sequential([keras.Input((10, 2)), layers.LSTM(8, dropout=0.2), layers.Dense(1)])
model.compile(keras.optimizers.Adam(0.01, clipnorm=1.0), "mse", metrics=["mae"])
history = model.fit(train, epochs=3, validation_data=held_out, verbose=0)
report(model, history)
