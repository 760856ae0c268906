"""EfficientNet-Lite0 (Tan and Le 2019, Liu 2020) up to its last block, with weights that ship with the house.

A 3x3 stem and 16 blocks: a 1x1 convolution that expands, a depthwise one, a 1x1 that projects, each followed
by batch normalisation, the first two by ReLU6 too; no squeeze-and-excite. Where a block keeps its shape, its
input is added. Weights: data_tools/efficientnet.py makes the file; its source: efficientnet_lite0/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from pdm_tf.weights import read_arrays

WEIGHTS = Path(__file__).parent / "efficientnet_lite0" / "weights.npz"
SIZE = 224
RESIZE = f"{SIZE}x{SIZE} bilinear, antialiased"
# Repeats, kernel, stride of the first, factor of the expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
EPSILON = 1e-3


def blocks() -> Iterator[tuple[str, int, int, bool]]:
    """Name, stride and expansion of each block, and whether its input is added."""
    number = 0
    before = STEM_CHANNELS
    for repeats, _, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            first = repeat == 0
            yield f"block_{number}", stride if first else 1, expansion, not first and before == channels
            number += 1
            before = channels


def network() -> Callable[[tf.Tensor], tuple[tf.Tensor, None, None]]:
    """A function from uint8 images (B, H, W, 3) to block 15 averaged over positions, float32 (B, 320)."""
    convolutions = folded(read_arrays(WEIGHTS))

    @tf.function
    def pooled(images: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        return tf.reduce_mean(block_15(convolutions, scaled(images)), axis=[1, 2]), None, None

    return pooled


def scaled(images: tf.Tensor) -> tf.Tensor:
    """uint8 images (B, H, W, 3) -> the network's input, float32 (B, 224, 224, 3) in [-1, 1]."""
    resized = tf.image.resize(tf.cast(images, tf.float32), (SIZE, SIZE), antialias=True)
    return (resized - 127.0) / 128.0


def folded(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The file's arrays -> kernel and bias of each convolution, its batch normalisation multiplied in.

    "<convolution>/kernel" is (h, w, in, out), or (h, w, channels, 1) where it is depthwise;
    "<convolution>/norm" (4, out): gain, offset, mean and variance.
    """
    result = {}
    for name in (key.rpartition("/")[0] for key in arrays if key.endswith("/kernel")):
        kernel = arrays[f"{name}/kernel"].astype(np.float64)
        gain, offset, mean, variance = arrays[f"{name}/norm"].astype(np.float64)
        scale = gain / np.sqrt(variance + EPSILON)
        axis = (-1, 1) if kernel.shape[-1] == 1 else (1, -1)
        kernel = kernel * scale.reshape(axis)
        result[name] = kernel.astype(np.float32), (offset - mean * scale).astype(np.float32)
    return result


def block_15(convolutions: Mapping[str, tuple[np.ndarray, np.ndarray]], x: tf.Tensor) -> tf.Tensor:
    """Float32 (B, 224, 224, 3) -> (B, 7, 7, 320)."""

    def convolve(name: str, x: tf.Tensor, stride: int = 1) -> tf.Tensor:
        kernel, bias = convolutions[name]
        strides = [1, stride, stride, 1]
        depthwise = kernel.shape[-1] == 1
        convolution = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
        return tf.nn.bias_add(convolution(x, kernel, strides, "SAME"), bias)

    x = tf.nn.relu6(convolve("stem", x, stride=2))
    for name, stride, expansion, keeps_shape in blocks():
        before = x
        if expansion != 1:
            x = tf.nn.relu6(convolve(f"{name}/expand", x))
        x = tf.nn.relu6(convolve(f"{name}/depthwise", x, stride))
        x = convolve(f"{name}/project", x)
        if keeps_shape:
            x += before
    return x
