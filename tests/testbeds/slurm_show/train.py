"""The training of `make slurm-show`: handwritten digits, no faster than so many seconds a step.

python train.py EPOCHS SECONDS_PER_STEP
"""

import sys
import time

import keras
from keras import layers
from sklearn.datasets import load_digits

from outlast import fit

epochs, pace = int(sys.argv[1]), float(sys.argv[2])
images, digits = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16.0
last = time.monotonic()


def keep_pace(batch, logs=None):  # type: ignore[no-untyped-def]
    """Wait until the step has taken its time."""
    global last
    time.sleep(max(0.0, last + pace - time.monotonic()))
    last = time.monotonic()


model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
        layers.Conv2D(48, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Conv2D(96, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(96, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dropout(0.4),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(
    optimizer=keras.optimizers.AdamW(learning_rate=1e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
fit(
    model,
    images,
    digits,
    batch_size=32,
    epochs=epochs,
    validation_split=0.2,
    callbacks=[
        keras.callbacks.LambdaCallback(on_train_batch_end=keep_pace),
        keras.callbacks.ReduceLROnPlateau(patience=5),
    ],
    verbose=0,
)
