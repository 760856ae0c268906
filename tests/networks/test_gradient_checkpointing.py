"""Recomputed activations: the same gradients, and a second computation that compilers leave in place."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.networks.tiny_networks import small, small_of


def network_of(gradient_checkpointing, **changes):
    settings = {"channel_multipliers": (1,), "attention_resolutions": (), "dropout": 0.3}
    labels = {"num_classes": 2, "class_conditioning": "gate"}
    return small(**{**settings, **labels, **changes}, gradient_checkpointing=gradient_checkpointing)


def vit_of(gradient_checkpointing):
    settings = {"num_classes": 2, "class_conditioning": "tokens", "dropout": 0.3}
    return small_of("vit", **settings, gradient_checkpointing=gradient_checkpointing)


def gradients_of(network, jit_compile=False):
    """A function of no arguments: gradients of a loss on both outputs, to weights and to the image."""
    rng = np.random.default_rng(1)
    z, target = (tf.constant(rng.normal(size=(2, 16, 16, 3)), tf.float32) for _ in range(2))
    t, labels, key = tf.constant([3, 700]), tf.constant([0, 2]), tf.constant([5, 6])

    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(z)
            output, u = network(z, t, labels, key)
            loss = tf.reduce_sum(output * target) + tf.reduce_sum(u * target)
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, [*network.trainable_variables, z])]

    return gradients


def relative_difference(a, b):
    return float(tf.linalg.global_norm([x - y for x, y in zip(a, b)]) / tf.linalg.global_norm(b))


@pytest.mark.parametrize("make", [network_of, vit_of])
def test_gradients_are_the_same_with_dropout_and_labels(make):
    kept, again = (gradients_of(make(r))() for r in (False, True))
    assert all(a.shape == b.shape for a, b in zip(kept, again))
    assert float(tf.linalg.global_norm(kept)) > 1
    assert relative_difference(again, kept) < 1e-5


@pytest.mark.heavy
def test_xla_gives_the_same_gradients_and_leaves_the_second_computation_in_place():
    """Common subexpressions are not merged: each block's first convolution is there once more."""
    functions = [gradients_of(network_of(r, dropout=0.0), jit_compile=True) for r in (False, True)]
    kept, again = (function() for function in functions)
    assert relative_difference(again, kept) < 1e-4
    counts = [
        len(re.findall(r" convolution\(", f.experimental_get_compiler_ir()(stage="optimized_hlo")))
        for f in functions
    ]
    blocks = 1 + 2 + 2  # encoder, middle, decoder
    assert counts[1] >= counts[0] + blocks
