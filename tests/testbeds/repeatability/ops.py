"""Which ops race? Calls each op again and again with op determinism on, and counts the results.

    python -m tests.testbeds.repeatability.ops --calls 60 --only bincount

The ops of `outlast.training.step.races` are expected to differ here and there; any other op that
does ends this with exit code 1. Beside other work, races are seen more often.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "4")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "4")

import numpy as np
import tensorflow as tf

RNG = np.random.default_rng(0)
Op = Callable[[], Any]


def normal(*shape: int) -> Any:
    return tf.constant(RNG.standard_normal(shape), tf.float32)


def ids(below: int, *shape: int) -> Any:
    return tf.constant(RNG.integers(0, below, shape), tf.int32)


def gradient(function: Callable[..., Any], *inputs: Any) -> Op:
    def call() -> Any:
        with tf.GradientTape() as tape:
            for one in inputs:
                tape.watch(one)
            found = function(*inputs)
            total = tf.reduce_sum(found * tf.stop_gradient(tf.cos(found) + 1.5))
        return tape.gradient(total, inputs)

    return call


A, V, WIDE, IMAGES = normal(512, 512), normal(200_000), normal(64, 20_000), normal(8, 48, 48, 8)
ROWS, ROW_IDS, MANY_IDS = normal(20_000, 16), ids(64, 20_000), ids(50, 200_000)
SORTED = tf.sort(ROW_IDS)
SPARSE = tf.sparse.from_dense(tf.where(A > 1.0, A, 0))
BAGS = tf.sparse.from_dense(ids(5000, 64, 30))
HERMITIAN = A @ tf.transpose(A) + 600 * tf.eye(512)
IMAGE_OPS = {
    "conv2d": lambda x: tf.nn.conv2d(x, KERNEL, 1, "SAME"),
    "dilated conv2d": lambda x: tf.nn.conv2d(x, KERNEL, 1, "SAME", dilations=2),
    "transposed conv2d": lambda x: tf.nn.conv2d_transpose(x, KERNEL_T, (8, 96, 96, 4), 2),
    "depthwise conv2d": lambda x: tf.nn.depthwise_conv2d(x, DEPTHWISE, (1, 1, 1, 1), "SAME"),
    "max pool": lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME"),
    "average pool": lambda x: tf.nn.avg_pool2d(x, 3, 1, "SAME"),
    "argmax pool": lambda x: tf.nn.max_pool_with_argmax(x, 3, 1, "SAME")[0],
    "local response": tf.nn.local_response_normalization,
    "batch norm": lambda x: tf.compat.v1.nn.fused_batch_norm(x, tf.ones(8), tf.zeros(8))[0],
    "bilinear": lambda x: tf.image.resize(x, (96, 70)),
    "bicubic": lambda x: tf.image.resize(x, (96, 70), "bicubic"),
    "nearest": lambda x: tf.image.resize(x, (96, 70), "nearest"),
    "antialiased": lambda x: tf.image.resize(x, (31, 70), antialias=True),
    "crop and resize": lambda x: tf.image.crop_and_resize(x, BOXES, BOX_OF, (20, 20)),
    "patches": lambda x: tf.image.extract_patches(
        x, [1, 3, 3, 1], [1, 1, 1, 1], [1, 1, 1, 1], "SAME"
    ),
    "total variation": tf.image.total_variation,
    "moments": lambda x: tf.nn.moments(x, (0, 1, 2))[1],
}
KERNEL, KERNEL_T, DEPTHWISE = normal(3, 3, 8, 16), normal(3, 3, 4, 8), normal(3, 3, 8, 2)
BOXES, BOX_OF = tf.abs(normal(200, 4)) % 1.0, ids(8, 200)
LABELS, SPOKEN = ids(20_000, 64), normal(16, 40, 12)
TARGETS = ids(10, 16, 6) + 1


@tf.function(autograph=False)
def accumulated() -> Any:
    parts = [tf.tanh(A), tf.sinh(A) * 0.01, tf.cosh(A) * 3.3, A @ A, tf.exp(A) * 7]
    return tf.raw_ops.AccumulateNV2(inputs=parts, shape=[512, 512])


@tf.function(autograph=False)
def raced() -> Any:
    a, b, c = tf.tanh(A), tf.sinh(A) * 0.1, tf.cosh(A) * 7.3
    return tf.add_n([a, b, c]), a @ A, b @ A, c @ A


@tf.function(autograph=False)
def stacked() -> Any:
    return tf.map_fn(lambda row: tf.reduce_sum(row), WIDE, parallel_iterations=10)


# AddN is what `sums.put_in_order` is for; it is raw here.
EXPECTED = {"AccumulateNV2", "AddN", "bincount of weights", "dense bincount of weights"}
OPS: dict[str, Op] = {
    "AccumulateNV2": accumulated,
    "AddN": raced,
    "bincount of weights": lambda: tf.math.bincount(MANY_IDS, weights=V, minlength=50),
    "dense bincount of weights": lambda: tf.raw_ops.DenseBincount(
        input=MANY_IDS, size=50, weights=V, binary_output=False
    ),
    "sparse bincount": lambda: tf.sparse.bincount(
        tf.reshape(MANY_IDS, (200, 1000)), weights=tf.reshape(V, (200, 1000)), axis=-1
    ).values,
    "map_fn": stacked,
    "matmul": lambda: A @ A @ A,
    "matmul, half": lambda: tf.cast(A, tf.float16) @ tf.cast(A, tf.float16),
    "matmul, double": lambda: tf.cast(A, tf.float64) @ tf.cast(A, tf.float64),
    "einsum": lambda: tf.einsum("ab,cb,ac->c", A, A, A),
    "sums and means": lambda: (tf.reduce_sum(WIDE), tf.reduce_mean(WIDE, 0)),
    "deviation": lambda: tf.math.reduce_std(WIDE),
    "logsumexp": lambda: tf.reduce_logsumexp(WIDE),
    "norms": lambda: (tf.nn.l2_loss(WIDE), tf.clip_by_global_norm([WIDE, A, V], 1.0)[0]),
    "cumulated": lambda: (tf.cumsum(WIDE, 1), tf.math.cumprod(1 + WIDE * 1e-4, 1)),
    "cross entropy": gradient(
        lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, x), WIDE
    ),
    "ctc": gradient(
        lambda x: tf.nn.ctc_loss(
            TARGETS, x, tf.fill((16,), 6), tf.fill((16,), 40), logits_time_major=False,
            blank_index=0,
        ),
        SPOKEN,
    ),
    "segment_sum": lambda: tf.math.segment_sum(ROWS, SORTED),
    "unsorted_segment_sum": lambda: tf.math.unsorted_segment_sum(ROWS, ROW_IDS, 64),
    "unsorted_segment_mean": lambda: tf.math.unsorted_segment_mean(ROWS, ROW_IDS, 64),
    "unsorted_segment_max": gradient(
        lambda x: tf.math.unsorted_segment_max(x, ROW_IDS, 64), ROWS
    ),
    "sparse.segment_sum": lambda: tf.sparse.segment_sum(ROWS, tf.range(20_000), SORTED),
    "scatter_nd": lambda: tf.scatter_nd(ROW_IDS[:, None], ROWS, (64, 16)),
    "tensor_scatter_nd_add": lambda: tf.tensor_scatter_nd_add(
        tf.zeros((64, 16)), ROW_IDS[:, None], ROWS
    ),
    "gather": gradient(lambda x: tf.gather(x, ROW_IDS) ** 2, normal(64, 16)),
    "gather_nd": gradient(lambda x: tf.gather_nd(x, ROW_IDS[:, None]) ** 2, normal(64, 16)),
    "embedding_lookup_sparse": gradient(
        lambda x: tf.nn.safe_embedding_lookup_sparse(x, BAGS, combiner="sum"), ROWS
    ),
    "sparse_dense_matmul": lambda: tf.sparse.sparse_dense_matmul(SPARSE, A),
    "sparse_dense_matmul, adjoint": lambda: tf.sparse.sparse_dense_matmul(
        SPARSE, A, adjoint_a=True
    ),
    "sparse.reduce_sum": lambda: tf.sparse.reduce_sum(SPARSE, 1),
    "ragged": lambda: tf.reduce_sum(tf.RaggedTensor.from_value_rowids(ROWS, SORTED), 1),
    "dynamic_stitch": gradient(
        lambda a, b: tf.dynamic_stitch([tf.range(512) % 300, tf.range(512) % 200], [a, b]), A, A
    ),
    "conv3d": gradient(
        lambda x: tf.nn.conv3d(x, normal(3, 3, 3, 4, 8) * 0 + 0.3, (1,) * 5, "SAME"),
        normal(4, 12, 12, 12, 4),
    ),
    "svd": lambda: tf.linalg.svd(A[:128, :128]),
    "eigh": lambda: tf.linalg.eigh(HERMITIAN[:128, :128]),
    "qr": lambda: tf.linalg.qr(A[:256, :256]),
    "cholesky": gradient(tf.linalg.cholesky, HERMITIAN[:256, :256]),
    "solve": lambda: (tf.linalg.inv(A), tf.linalg.solve(A, A)),
    "fft": lambda: tf.signal.fft2d(tf.cast(A, tf.complex64)),
    "rfft": gradient(lambda x: tf.abs(tf.signal.rfft(x)), WIDE[:, :4096]),
    "top_k": lambda: tf.math.top_k(WIDE, 50),
    "sort": lambda: tf.sort(WIDE),
    "unique": lambda: tf.unique_with_counts(MANY_IDS),
    "histogram": lambda: tf.histogram_fixed_width(V, [-1.0, 1.0], 100),
    "stateless random": lambda: (
        tf.random.stateless_normal((1_000_000,), (1, 2)),
        tf.random.stateless_gamma((100_000,), (1, 2), alpha=0.7),
        tf.random.stateless_categorical(WIDE[:, :500], 20, (1, 2)),
        tf.random.experimental.stateless_shuffle(V, (1, 2)),
    ),
    **{f"image: {name}": gradient(function, IMAGES) for name, function in IMAGE_OPS.items()},
}  # fmt: skip


def results(op: Op, calls: int) -> list[int]:
    """Return how often each distinct result came, the most frequent first."""
    found = Counter(
        b"".join(np.asarray(tf.convert_to_tensor(part)).tobytes() for part in tf.nest.flatten(op()))
        for _ in range(calls)
    )
    return sorted(found.values(), reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--only", action="append", help="ops whose names contain this")
    given = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(1)
    new = []
    for name, op in OPS.items():
        if any(part in name for part in given.only or [""]):
            found = results(op, given.calls)
            print(f"{name:40} {given.calls:5} calls, {len(found)} results", flush=True)
            if len(found) > 1 and name not in EXPECTED:
                new.append(name)
    print(f"racing, and not known: {', '.join(new) or 'none'}")
    return int(bool(new))


if __name__ == "__main__":
    sys.exit(main())
