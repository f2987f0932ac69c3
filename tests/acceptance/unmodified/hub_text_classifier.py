"""A KerasHub text classifier, fitted on strings with its preprocessor."""

import random

import keras
import keras_hub
import numpy as np
from ending import report

keras.utils.set_random_seed(1)
words = {0: ["bad", "poor", "dull"], 1: ["good", "great", "fine"]}
labels = np.array([random.randint(0, 1) for _ in range(96)])
texts = [" ".join(random.choices([*words[int(k)], "a", "film"], k=5)) for k in labels]

vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", *words[0], *words[1]]
tokenizer = keras_hub.models.BertTokenizer(vocabulary=vocabulary)
preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
backbone = keras_hub.models.BertBackbone(
    vocabulary_size=len(vocabulary),
    num_layers=1,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=16,
    max_sequence_length=8,
)
classifier = keras_hub.models.BertTextClassifier(
    backbone=backbone, preprocessor=preprocessor, num_classes=2
)
classifier.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=keras.optimizers.Adam(2e-2),
    metrics=["accuracy"],
)
history = classifier.fit(
    x=texts[:80],
    y=labels[:80],
    batch_size=8,
    epochs=5,
    validation_data=(texts[80:], labels[80:]),
    verbose=0,
)
report(classifier, history)
