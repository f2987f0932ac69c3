"""Architectures on images: convolutions, normalisations, merges, augmentation, patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tests.support.training_harness import Script

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(48, 16, 16, 3)).astype("float32")
CLASSES = RNG.integers(0, 4, 48)
FIT: dict[str, Any] = {"x": IMAGES, "y": CLASSES, "batch_size": 16, "epochs": 8}


def classifier(
    body: Callable[[Any], Any], optimizer: Any = "adam", flat: bool = False, **options: Any
) -> Callable[[], Any]:
    """Return a function that builds a classifier of images with this body."""

    def build() -> Any:
        image = layers.Input((16, 16, 3))
        h = body(image)
        h = h if flat else layers.GlobalAveragePooling2D()(h)
        model = keras.Model(image, layers.Dense(4)(h))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made = optimizer() if callable(optimizer) else optimizer
        model.compile(made, loss, metrics=["accuracy"], **options)
        return model

    return build


def conv(filters: int, size: int = 3, strides: int = 1) -> Callable[[Any], Any]:
    def apply(h: Any) -> Any:
        h = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(h)
        return layers.ReLU()(layers.BatchNormalization()(h))

    return apply


def residual(h: Any) -> Any:
    h = conv(8)(h)
    for filters in (8, 16, 16):
        strides = 1 if h.shape[-1] == filters else 2
        short = h if strides == 1 else layers.Conv2D(filters, 1, strides)(h)
        h = layers.Conv2D(filters, 3, padding="same")(conv(filters, strides=strides)(h))
        h = layers.ReLU()(layers.Add()([short, layers.BatchNormalization()(h)]))
    return h


def dense_net(h: Any) -> Any:
    for _ in range(5):
        h = layers.Concatenate()([h, conv(6)(h)])
    return layers.AveragePooling2D(2)(conv(12, 1)(h))


def inception(h: Any) -> Any:
    for _ in range(2):
        pooled = layers.MaxPooling2D(3, 1, padding="same")(h)
        parts = [conv(4, 1)(h), conv(4, 3)(conv(4, 1)(h)), conv(4, 5)(h), conv(4, 1)(pooled)]
        h = layers.Concatenate()(parts)
    return h


def mobile(h: Any) -> Any:
    h = layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2)(h)
    for _ in range(2):
        wide = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(24, 1)(h)))
        wide = layers.DepthwiseConv2D(3, padding="same")(wide)
        h = h + layers.Conv2D(8, 1)(layers.ReLU(6.0)(layers.BatchNormalization()(wide)))
    return h


def squeezed(h: Any) -> Any:
    """EfficientNet's blocks: swish, squeeze and excitation, dropped blocks."""
    h = layers.Conv2D(8, 3, padding="same")(h)
    for _ in range(3):
        inner = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(16, 1)(h))
        inner = layers.Activation("swish")(layers.BatchNormalization()(inner))
        scale = layers.GlobalAveragePooling2D(keepdims=True)(inner)
        scale = layers.Conv2D(16, 1, activation="sigmoid")(
            layers.Conv2D(4, 1, activation="swish")(scale)
        )
        inner = layers.Conv2D(8, 1)(inner * scale)
        h = h + layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(inner)
    return h


def conv_next(h: Any) -> Any:
    h = layers.LayerNormalization()(layers.Conv2D(12, 2, 2)(h))
    for _ in range(2):
        inner = layers.LayerNormalization()(layers.DepthwiseConv2D(7, padding="same")(h))
        h = h + layers.Dense(12)(layers.Activation("gelu")(layers.Dense(24)(inner)))
    return h


def grouped(h: Any) -> Any:
    for _ in range(3):
        h = layers.Conv2D(8, 3, groups=1 if h.shape[-1] == 3 else 2, padding="same")(h)
        h = layers.Activation("elu")(layers.GroupNormalization(4)(h))
    return h


def augmented(h: Any) -> Any:
    for layer in (
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.RandomZoom(0.2),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomContrast(0.2),
        layers.GaussianNoise(0.1),
    ):
        h = layer(h)
    return conv(8)(h)


class Tokens(layers.Layer):
    """Patches with a class token and positions in front of a transformer."""

    def build(self, shape: Any) -> None:
        self.first = self.add_weight((1, 1, shape[-1]), name="first")
        self.places = self.add_weight((1, shape[1] + 1, shape[-1]), name="places")

    def call(self, x: Any) -> Any:
        first = ops.broadcast_to(self.first, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([first, x], axis=1) + self.places


def vision_transformer(h: Any) -> Any:
    h = Tokens()(layers.Reshape((16, 12))(layers.Conv2D(12, 4, 4)(h)))
    for _ in range(2):
        normal = layers.LayerNormalization()(h)
        h = h + layers.MultiHeadAttention(3, 4, dropout=0.1)(normal, normal)
        inner = layers.Dense(24, "gelu")(layers.LayerNormalization()(h))
        h = h + layers.Dropout(0.1)(layers.Dense(12)(inner))
    return h[:, 0]


def mixer(h: Any) -> Any:
    h = layers.Reshape((16, 12))(layers.Conv2D(12, 4, 4)(h))
    for _ in range(2):
        mixed = layers.Permute((2, 1))(layers.LayerNormalization()(h))
        h = h + layers.Permute((2, 1))(layers.Dense(16)(layers.Dense(16, "gelu")(mixed)))
        h = h + layers.Dense(12)(layers.Dense(24, "gelu")(layers.LayerNormalization()(h)))
    return layers.GlobalAveragePooling1D()(h)


def many_branches(h: Any) -> Any:
    return layers.Add()([layers.Conv2D(6, 1 + i % 3, padding="same")(h) for i in range(10)])


def merges(h: Any) -> Any:
    a, b, c = (layers.Conv2D(6, 3, padding="same")(h) for _ in range(3))
    kinds = (layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Add)
    return layers.Concatenate()([*(kind()([a, b, c]) for kind in kinds), layers.Subtract()([a, b])])


def pools(h: Any) -> Any:
    h = layers.MaxPooling2D(2)(layers.LeakyReLU()(layers.Conv2D(8, 3, dilation_rate=2)(h)))
    return layers.Concatenate()(
        [layers.GlobalMaxPooling2D()(h), layers.GlobalAveragePooling2D()(h), layers.Flatten()(h)]
    )


def normalised(h: Any) -> Any:
    h = layers.SpectralNormalization(layers.Conv2D(8, 3))(h)
    h = layers.UnitNormalization()(layers.RMSNormalization()(layers.PReLU(shared_axes=[1, 2])(h)))
    return layers.BatchNormalization(renorm=False, center=False)(layers.ZeroPadding2D()(h))


def volume(h: Any) -> Any:
    h = layers.Reshape((16, 16, 3, 1))(h)
    h = layers.Conv3D(4, 3, padding="same", activation="relu")(h)
    return layers.GlobalAveragePooling3D()(layers.MaxPooling3D((2, 2, 1))(h))


def regularised(h: Any) -> Any:
    for kind in ("l1", "l2", keras.regularizers.L1L2(0.01, 0.01)):
        h = layers.Conv2D(
            6, 3, kernel_regularizer=kind, bias_regularizer="l2", activity_regularizer="l2"
        )(h)
    return h


def u_net() -> Any:
    image = layers.Input((16, 16, 3))
    down = [conv(6)(image)]
    for filters in (8, 12):
        down.append(conv(filters)(layers.MaxPooling2D()(down[-1])))
    h = down.pop()
    for filters in (8, 6):
        h = layers.Conv2DTranspose(filters, 2, 2)(h)
        h = conv(filters)(layers.Concatenate()([h, down.pop()]))
    h = layers.UpSampling2D(2, interpolation="bilinear")(layers.AveragePooling2D(2)(h))
    model = keras.Model(image, layers.Conv2D(1, 1)(h))
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), metrics=["mae"])
    return model


def siamese() -> Any:
    body = keras.Sequential(
        [layers.Input((16, 16, 3)), layers.Conv2D(6, 3), layers.BatchNormalization(),
         layers.Flatten(), layers.Dense(8)]
    )  # fmt: skip
    three = [layers.Input((16, 16, 3)) for _ in range(3)]
    a, b, c = map(body, three)
    model = keras.Model(three, layers.Dense(1)(ops.abs(a - b) + ops.abs(b - c)))
    model.compile("rmsprop", "mse")
    return model


def four_outputs() -> Any:
    image = layers.Input((16, 16, 3))
    h, outputs = image, []
    for i in range(4):
        h = conv(6)(h)
        outputs.append(layers.Dense(4, name=f"out{i}")(layers.GlobalMaxPooling2D()(h)))
    model = keras.Model(image, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("nadam", [loss] * 4, loss_weights=[1, 0.7, 0.4, 0.3], metrics=[["accuracy"]] * 4)
    return model


def wide_cnn() -> Any:
    """Large enough for every op to be split between threads."""
    parts = [
        layers.Input((32, 32, 3)), layers.Conv2D(32, 3, activation="relu"),
        layers.BatchNormalization(), layers.Conv2D(64, 3, activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(1),
    ]  # fmt: skip
    model = keras.Sequential(parts)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


WIDE = RNG.standard_normal((96, 32, 32, 3)).astype("float32")
BODIES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "residual": (residual, False),
    "dense blocks": (dense_net, False),
    "inception": (inception, False),
    "separable and depthwise": (mobile, False),
    "squeeze and excitation": (squeezed, False),
    "convnext": (conv_next, False),
    "group normalisation": (grouped, False),
    "augmentation": (augmented, False),
    "vision transformer": (vision_transformer, True),
    "mlp mixer": (mixer, True),
    "add of ten branches": (many_branches, False),
    "merging layers": (merges, False),
    "pooling": (pools, True),
    "spectral and unit norms": (normalised, False),
    "3d convolution": (volume, True),
    "regularisers": (regularised, False),
}
SCRIPTS: dict[str, Script] = {
    **{name: Script(classifier(body, flat=flat), FIT) for name, (body, flat) in BODIES.items()},
    "u-net": Script(u_net, {**FIT, "y": (IMAGES.mean(-1, keepdims=True) > 0).astype("float32")}),
    "siamese": Script(siamese, {**FIT, "x": [IMAGES, IMAGES[::-1], -IMAGES], "y": CLASSES * 1.0}),
    "four outputs": Script(
        four_outputs, {**FIT, "y": [CLASSES] * 4, "validation_split": 0.25}
    ),
    "wide cnn": Script(
        wide_cnn, {"x": WIDE, "y": WIDE.mean((1, 2, 3)), "batch_size": 32, "epochs": 4}
    ),
}  # fmt: skip
