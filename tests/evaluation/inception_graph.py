"""A graph file with the tensor names, and habits, of ADM's classify_image_graph_def.pb, of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

NORM = 0.2, 0.5, 0.1, 7.0  # mean, variance, offset, and a gain that is not used
SIDE, KERNEL, STRIDE, CHANNELS, CLASSES = 299, 11, 17, 12, 5


def weights(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel (11, 11, 3, 12) of the one convolution, matrix (12, 5) and bias (5,) of the classifier."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 0.1, (KERNEL, KERNEL, 3, CHANNELS))
    return tuple(a.astype(np.float32) for a in (kernel, rng.normal(0, 2, (CHANNELS, CLASSES)), np.arange(5)))


def write_graph(path: Path, seed: int = 0) -> None:
    """Writes it: a JPEG goes in, the batch is one image, and each node says the shapes that follow of it."""
    kernel, matrix, bias = weights(seed)
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        contents = tf.constant(b"", name="DecodeJpeg/contents")
        image = tf.cast(tf.io.decode_jpeg(contents, 3, name="DecodeJpeg"), tf.float32, name="Cast")
        x = tf.expand_dims(image, 0, name="ExpandDims")
        x = v1.image.resize_bilinear(x, [SIDE, SIDE], name="ResizeBilinear")
        x = tf.multiply(tf.subtract(x, 128.0, name="Sub"), 1 / 128.0, name="Mul")
        x = tf.nn.conv2d(x, kernel, STRIDE, "VALID", name="mixed_6/conv/Conv2D")
        x = tf.nn.relu(x, name="mixed_6/conv")
        x = tf.nn.avg_pool2d(x, 17, 1, "VALID", name="pool_3")
        x = tf.reshape(x, [1, CHANNELS], name="pool_3/_reshape")
        x = tf.matmul(x, tf.constant(matrix, name="softmax/weights"), name="softmax/logits/MatMul")
        tf.nn.softmax(tf.nn.bias_add(x, bias, name="softmax/logits"), name="softmax")
    saved = graph.as_graph_def(add_shapes=True)
    _normalise(saved)
    path.write_bytes(saved.SerializeToString())


def _normalise(graph: tf.compat.v1.GraphDef) -> None:
    """Puts the batch normalisation of 2015 between convolution and ReLU; newer graphs refuse it."""
    graph.versions.producer = 8
    node = graph.node.add(name="mixed_6/conv/batchnorm", op="BatchNormWithGlobalNormalization")
    node.input.append("mixed_6/conv/Conv2D")
    for name, value in zip(("mean", "variance", "beta", "gamma"), NORM):
        constant = graph.node.add(name=f"mixed_6/conv/{name}", op="Const")
        constant.attr["dtype"].type = tf.float32.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.full(CHANNELS, value, np.float32)))
        node.input.append(constant.name)
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["variance_epsilon"].f = 0.001
    node.attr["scale_after_normalization"].b = False
    (relu,) = (node for node in graph.node if node.name == "mixed_6/conv")
    relu.input[0] = "mixed_6/conv/batchnorm"


def legacy_resize(images: np.ndarray, side: int) -> np.ndarray:
    """TF1's ResizeBilinear: source = i * in / out, no half-pixel centres; the last row and column repeat."""
    x = images.astype(np.float64)
    for axis in (1, 2):
        size = x.shape[axis]
        source = np.arange(side) * (size / side)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, size - 1)
        part = (source - low).reshape([-1 if a == axis else 1 for a in range(4)])
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def expected(images: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pooled, spatial and probabilities as ADM's evaluator takes them, in NumPy."""
    kernel, matrix, _ = weights(seed)
    x = (legacy_resize(images, SIDE) - 128.0) / 128.0
    mixed = np.zeros((len(images), 17, 17, CHANNELS))
    for i in range(17):
        for j in range(17):
            patch = x[:, STRIDE * i : STRIDE * i + KERNEL, STRIDE * j : STRIDE * j + KERNEL]
            mixed[:, i, j] = np.tensordot(patch, kernel, 3)
    mixed = np.maximum((mixed - NORM[0]) / np.sqrt(NORM[1] + 0.001) + NORM[2], 0)
    pooled = mixed.mean(axis=(1, 2))
    powers = np.exp(pooled @ matrix)
    return pooled, mixed[..., :7].reshape(len(images), -1), powers / powers.sum(axis=1, keepdims=True)
