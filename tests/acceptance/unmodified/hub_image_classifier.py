"""A KerasHub image classifier with its preprocessor."""

import keras
import keras_hub
import numpy as np
from ending import report

keras.utils.set_random_seed(3)
images = np.random.randint(0, 256, (48, 20, 20, 3)).astype("float32")
labels = np.random.randint(0, 2, 48)
backbone = keras_hub.models.ResNetBackbone(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[3],
    stackwise_num_filters=[64],
    stackwise_num_blocks=[1],
    stackwise_num_strides=[1],
    block_type="basic_block",
    image_shape=(16, 16, 3),
)
converter = keras_hub.layers.ResNetImageConverter(image_size=(16, 16), scale=1 / 255)
preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
classifier = keras_hub.models.ResNetImageClassifier(
    backbone=backbone, num_classes=2, preprocessor=preprocessor
)
classifier.compile(
    keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"]
)
history = classifier.fit(images, labels, batch_size=8, epochs=3, validation_split=0.25, verbose=0)
report(classifier, history)
