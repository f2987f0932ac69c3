"""A KerasHub language model in int8, fine-tuned by LoRA."""

import random

import keras
import keras_hub
import tensorflow as tf
from ending import report

keras.utils.set_random_seed(2)
letters = sorted(set("the quick brown fox jumps over lazy dog"))
vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "Ġ", *letters, "Ġt", "th"])}
tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["Ġ t", "t h"])
preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)
backbone = keras_hub.models.GPT2Backbone(
    vocabulary_size=len(vocabulary),
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    max_sequence_length=16,
)
model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)
model.backbone.quantize("int8")
model.backbone.enable_lora(rank=2)
model.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=keras.optimizers.AdamW(1e-2),
    weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
)
words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
texts = [" ".join(random.choices(words, k=4)) for _ in range(64)]
train = tf.data.Dataset.from_tensor_slices(texts).shuffle(64).batch(8)
history = model.fit(train, epochs=3, verbose=0)
report(model, history, trained=len(model.trainable_variables))
