"""Architectures on sequences and tables: recurrence, attention, embeddings, lookups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.support.training_harness import Script

RNG = np.random.default_rng(4)
LENGTH = 12
TOKENS = RNG.integers(0, 30, (48, LENGTH))
SERIES = RNG.normal(size=(48, LENGTH, 5)).astype("float32")
CLASSES = RNG.integers(0, 4, 48)
FIT: dict[str, Any] = {"batch_size": 16, "epochs": 8}
ON_TOKENS = {**FIT, "x": TOKENS, "y": CLASSES}
ON_SERIES = {**FIT, "x": SERIES, "y": CLASSES}
NEXT = {**FIT, "x": TOKENS[:, :-1], "y": TOKENS[:, 1:]}


def compiled(model: Any, optimizer: Any = "adam") -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def chain(*parts: Callable[[], Any], shape: tuple[int, ...] = (LENGTH, 5)) -> Callable[[], Any]:
    def build() -> Any:
        made = [layers.Input(shape), *(part() for part in parts), layers.Dense(4)]
        return compiled(keras.Sequential(made))

    return build


def embedding(**options: Any) -> Callable[[], Any]:
    return lambda: layers.Embedding(30, 8, **options)


class Places(layers.Layer):
    def build(self, shape: Any) -> None:
        self.places = self.add_weight(shape[1:], name="places")

    def call(self, x: Any) -> Any:
        return x + self.places


def encoder() -> Any:
    words = layers.Input((LENGTH,))
    h = Places()(layers.Embedding(30, 12, mask_zero=True)(words))
    for _ in range(2):
        h = layers.LayerNormalization()(h + layers.MultiHeadAttention(3, 4, dropout=0.1)(h, h))
        inner = layers.Dense(12)(layers.Dense(24, "relu")(h))
        h = layers.LayerNormalization()(h + layers.Dropout(0.1)(inner))
    return compiled(keras.Model(words, layers.Dense(4)(layers.GlobalAveragePooling1D()(h))))


class Tied(keras.Model):
    """A language model whose embedding is its output as well: sparse and dense gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words = layers.Embedding(30, 12)
        self.attention = layers.MultiHeadAttention(3, 4)
        self.normal, self.inner = layers.LayerNormalization(), layers.Dense(12, "gelu")

    def call(self, x: Any) -> Any:
        h = self.words(x)
        h = h + self.attention(h, h, use_causal_mask=True)
        h = h + self.inner(self.normal(h))
        return ops.matmul(h, ops.transpose(self.words.embeddings))


def sequence_to_sequence() -> Any:
    source, target = layers.Input((LENGTH,)), layers.Input((LENGTH - 1,))
    words = layers.Embedding(30, 8)
    out, state = layers.GRU(8, return_sequences=True, return_state=True)(words(source))
    h = layers.GRU(8, return_sequences=True)(words(target), initial_state=state)
    dot, added = layers.Attention(use_scale=True)([h, out]), layers.AdditiveAttention()([h, out])
    h = layers.Concatenate()([h, dot, added])
    return compiled(keras.Model([source, target], layers.Dense(30)(h)))


def grouped_queries() -> Any:
    words = layers.Input((LENGTH,))
    h = layers.Embedding(30, 8)(words)
    h = h + layers.GroupQueryAttention(4, 4, 2)(h, h)
    return compiled(keras.Model(words, layers.Dense(4)(h[:, -1])))


def towers() -> Any:
    """Two towers of embeddings whose ids repeat in a batch."""
    user, item = layers.Input((), dtype="int32"), layers.Input((), dtype="int32")
    vectors = [layers.Embedding(7, 6, embeddings_regularizer="l2")(part) for part in (user, item)]
    biases = [layers.Embedding(7, 1)(part) for part in (user, item)]
    score = layers.Dot(1)(vectors) + biases[0] + biases[1]
    model = keras.Model([user, item], score)
    model.compile(keras.optimizers.Adagrad(0.1), "mse")
    return model


def lookups() -> Any:
    number, code = layers.Input((1,)), layers.Input((1,), dtype="int64")
    bins = layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0], output_mode="one_hot")(number)
    hashed = layers.Hashing(16, output_mode="multi_hot")(code)
    known = layers.CategoryEncoding(30, output_mode="multi_hot")(code)
    normal = layers.Normalization(mean=0.1, variance=2.0)(number)
    wide = layers.Concatenate()([bins, hashed, known, normal])
    deep = layers.Dense(8, "relu")(wide)
    return compiled(
        keras.Model([number, code], layers.Dense(4)(layers.Concatenate()([wide, deep])))
    )


def gated_convolutions() -> Any:
    """WaveNet's: causal, dilated, gated, with the sum of all blocks as output."""
    series = layers.Input((LENGTH, 5))
    h, skips = layers.Conv1D(8, 1)(series), []
    for rate in (1, 2, 4, 8):
        gate = layers.Conv1D(8, 2, padding="causal", dilation_rate=rate, activation="sigmoid")(h)
        value = layers.Conv1D(8, 2, padding="causal", dilation_rate=rate, activation="tanh")(h)
        skips.append(layers.Conv1D(8, 1)(gate * value))
        h = h + skips[-1]
    h = layers.ReLU()(sum(skips[1:], start=skips[0]))
    return compiled(keras.Model(series, layers.Dense(4)(layers.GlobalMaxPooling1D()(h))))


def speech() -> Any:
    """Connectionist temporal classification."""
    model = keras.Sequential(
        [layers.Input((LENGTH, 5)), layers.Bidirectional(layers.LSTM(6, return_sequences=True)),
         layers.Dense(6)]
    )  # fmt: skip
    model.compile("adam", keras.losses.CTC())
    return model


class Experts(layers.Layer):
    """A mixture of experts: each row goes to its best two of four."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = layers.Dense(4)
        self.experts = [layers.Dense(8, "relu") for _ in range(4)]

    def call(self, x: Any) -> Any:
        weights, chosen = ops.top_k(ops.softmax(self.gate(x)), 2)
        sent = ops.sum(ops.one_hot(chosen, 4) * weights[..., None], axis=-2)
        return sum(expert(x) * sent[..., i : i + 1] for i, expert in enumerate(self.experts))


class Messages(keras.Model):
    """A graph network: messages along edges are summed and averaged by their target."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(5)
        self.edges = random.integers(0, LENGTH, (2, 40)).astype("int32")
        self.enter, self.send = layers.Dense(8), layers.Dense(8)
        self.keep, self.out = layers.Dense(8), layers.Dense(4)

    def call(self, x: Any) -> Any:
        h = self.enter(ops.transpose(x, (1, 0, 2)))
        for _ in range(2):
            sent = tf.gather(self.send(h), self.edges[0])
            total = tf.math.unsorted_segment_sum(sent, self.edges[1], LENGTH)
            mean = tf.math.unsorted_segment_mean(sent, self.edges[1], LENGTH)
            most = tf.math.unsorted_segment_max(sent, self.edges[1], LENGTH)
            h = ops.relu(self.keep(h) + total + mean + ops.maximum(most, -1.0))
        return self.out(ops.mean(h, axis=0))


def adapted() -> Any:
    """LoRA on frozen layers."""
    model = keras.Sequential([layers.Input((LENGTH,)), layers.Embedding(30, 8), layers.Flatten(),
                              layers.Dense(16, "relu"), layers.Dense(4)])  # fmt: skip
    for layer in (model.layers[0], model.layers[2]):
        layer.enable_lora(2)
    return compiled(model, keras.optimizers.AdamW(0.01))


def wide_transformer() -> Any:
    """Large enough for every op to be split between threads."""
    entry = layers.Input((64, 64))
    h = entry + layers.MultiHeadAttention(4, 16)(layers.LayerNormalization()(entry), entry)
    h = h + layers.Dense(64)(layers.Dense(256, "gelu")(layers.LayerNormalization()(h)))
    model = keras.Model(entry, layers.Dense(1)(layers.GlobalAveragePooling1D()(h)))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


def wide_vocabulary() -> Any:
    """A large embedding, with ids that repeat, and a large softmax."""
    parts = [layers.Input((LENGTH,)), layers.Embedding(20000, 32), layers.GlobalAveragePooling1D(),
             layers.Dense(20000)]  # fmt: skip
    return compiled(keras.Sequential(parts))


WIDE = RNG.standard_normal((128, 64, 64)).astype("float32")
MANY = RNG.zipf(1.3, (256, LENGTH)) % 20000
PAIRS = [TOKENS[:, 0] % 7, TOKENS[:, 1] % 7]
SCRIPTS: dict[str, Script] = {
    "lstm": Script(chain(lambda: layers.LSTM(8)), ON_SERIES),
    "lstm, unrolled": Script(chain(lambda: layers.LSTM(8, unroll=True)), ON_SERIES),
    "gru, masked": Script(
        chain(embedding(mask_zero=True), lambda: layers.GRU(8), shape=(LENGTH,)), ON_TOKENS
    ),
    "bidirectional gru": Script(
        chain(embedding(), lambda: layers.Bidirectional(layers.GRU(6)), shape=(LENGTH,)), ON_TOKENS
    ),
    "stacked lstm, recurrent dropout": Script(
        chain(
            lambda: layers.Bidirectional(layers.LSTM(6, return_sequences=True)),
            lambda: layers.LSTM(6, dropout=0.2, recurrent_dropout=0.2),
        ),
        ON_SERIES,
    ),
    "simple rnn, unrolled, time distributed": Script(
        chain(
            lambda: layers.TimeDistributed(layers.Dense(6, "relu")),
            lambda: layers.SimpleRNN(6, unroll=True),
        ),
        ON_SERIES,
    ),
    "convolutional lstm": Script(
        chain(
            lambda: layers.Reshape((LENGTH, 5, 1, 1)),
            lambda: layers.ConvLSTM2D(4, (3, 1), padding="same"),
            layers.Flatten,
        ),
        ON_SERIES,
    ),
    "text convolution": Script(
        chain(
            embedding(),
            lambda: layers.Conv1D(8, 3, activation="relu"),
            layers.GlobalMaxPooling1D,
            shape=(LENGTH,),
        ),
        ON_TOKENS,
    ),
    "encoder, masked": Script(encoder, ON_TOKENS),
    "language model, tied weights": Script(lambda: compiled(Tied()), NEXT),
    "sequence to sequence": Script(
        sequence_to_sequence, {**FIT, "x": [TOKENS, TOKENS[:, :-1]], "y": TOKENS[:, 1:]}
    ),
    "grouped queries": Script(grouped_queries, ON_TOKENS),
    "two towers": Script(towers, {**FIT, "x": PAIRS, "y": CLASSES * 1.0}),
    "lookups, wide and deep": Script(
        lookups, {**FIT, "x": [SERIES[:, 0, :1], TOKENS[:, :1]], "y": CLASSES}
    ),
    "gated convolutions": Script(gated_convolutions, ON_SERIES),
    "ctc": Script(speech, {**ON_SERIES, "y": RNG.integers(1, 6, (48, 3))}),
    "mixture of experts": Script(
        chain(layers.Flatten, lambda: layers.Dense(8), Experts), ON_SERIES
    ),
    "graph network": Script(lambda: compiled(Messages()), ON_SERIES),
    "lora": Script(adapted, ON_TOKENS),
    "wide transformer": Script(
        wide_transformer, {"x": WIDE, "y": WIDE.mean((1, 2)), "batch_size": 64, "epochs": 5}
    ),
    "wide vocabulary": Script(
        wide_vocabulary, {"x": MANY, "y": MANY[:, 0], "batch_size": 64, "epochs": 3}
    ),
}
