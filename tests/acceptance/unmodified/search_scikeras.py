"""scikeras in a Pipeline, in cross_val_score and in GridSearchCV."""

import keras
import numpy as np
from ending import report
from keras import layers
from scikeras.wrappers import KerasClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

keras.utils.set_random_seed(23)
x = np.random.rand(72, 4).astype("float32")
y = (x[:, 0] * x[:, 1] > 0.25).astype("int64")


def build(units=4):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(units, "relu"), layers.Dropout(0.1)])
    model.add(layers.Dense(1, "sigmoid"))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


classifier = KerasClassifier(build, units=4, epochs=2, batch_size=8, verbose=0, shuffle=False)
pipeline = make_pipeline(StandardScaler(), classifier)
scores = cross_val_score(pipeline, x, y, cv=3)
search = GridSearchCV(pipeline, {"kerasclassifier__units": [4, 8]}, cv=2)
search.fit(x, y)
found = {name: search.cv_results_[name] for name in ("mean_test_score", "rank_test_score")}
best = search.best_estimator_[-1]
report(
    best.model_,
    scores=scores.tolist(),
    found={name: values.tolist() for name, values in found.items()},
    best=search.best_params_,
    history=best.history_,
)
