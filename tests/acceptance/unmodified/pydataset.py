"""A PyDataset that shuffles itself, read by threads."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(11)


class Pieces(keras.utils.PyDataset):
    def __init__(self, x, y, size, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.size = x, y, size
        self.order = np.arange(len(x))

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        rows = self.order[index * self.size : (index + 1) * self.size]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


x = np.random.rand(128, 6).astype("float32")
y = np.random.randint(0, 3, 128)
model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3, "softmax")])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
train = Pieces(x[:96], y[:96], 8, workers=2, max_queue_size=4)
history = model.fit(train, epochs=3, validation_data=Pieces(x[96:], y[96:], 8), verbose=0)
report(model, history)
