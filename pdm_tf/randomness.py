"""Randomness as a pure function of (seed, purpose, indices): nothing random ever needs saving.

Every image has a random stream of its own, keyed by its index in the global batch (training) or in the
run (sampling). So the numbers do not depend on how images are spread over batches, replicas or workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import tensorflow as tf


def stream(seed: tf.Tensor | int, purpose: str, *indices: tf.Tensor | int) -> tf.Tensor:
    """The key of one random stream, int32 (2,), for the `tf.random.stateless_*` functions.

    Args:
      seed: the run's seed, an int32 scalar.
      purpose: what the numbers are for; different purposes never share numbers.
      *indices: integer scalars, such as a step or an image's index.
    """
    key = tf.stack(
        [tf.cast(seed, tf.int32), tf.constant(zlib.crc32(purpose.encode()) & 0x7FFFFFFF, tf.int32)]
    )
    for index in indices:
        key = tf.random.experimental.stateless_fold_in(key, tf.cast(index, tf.int32))
    return key


def draw_each(
    key: tf.Tensor, indices: tf.Tensor, draw: Callable[[tf.Tensor], tf.Tensor], signature
) -> tf.Tensor:
    """Calls `draw(key of image)` for each image, of index int (B,), and stacks the results.

    Args:
      key: int32 (2,), shared by the images.
      draw: makes one image's random tensors, of static shapes, from its key.
      signature: the tf.TensorSpec(s) of what `draw` returns.
    """
    fold_in = tf.random.experimental.stateless_fold_in
    return tf.map_fn(
        lambda index: draw(fold_in(key, index)), tf.cast(indices, tf.int32), fn_output_signature=signature
    )


def normal_each(
    seed: tf.Tensor | int, purpose: str, indices: tf.Tensor, shape: Sequence[int], *numbers: tf.Tensor | int
) -> tf.Tensor:
    """Standard normal noise, float32 (B, *shape), one stream an image, whose index, int (B,), comes last.

    `seed` is int32 (), or (B,), each image's; `purpose` and `numbers` are as for `stream`.
    """
    indices = tf.cast(indices, tf.int32)
    return tf.map_fn(
        lambda each: tf.random.stateless_normal(shape, stream(each[0], purpose, *numbers, each[1])),
        (tf.broadcast_to(seed, tf.shape(indices)), indices),
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
    )
