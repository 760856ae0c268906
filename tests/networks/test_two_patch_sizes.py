"""One network with two patch sizes: each side by itself, what they share, and how one becomes two."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.denoiser import build_denoiser, build_network
from pdm_tf.networks.patched import LARGE, with_large_patches
from pdm_tf.weights import arrays_for, assign_arrays, variable_names
from tests.tiny_runs import VIT, random_arrays, randomized, tiny_config, tiny_denoiser

TWO = {"network__patch_size": 2, "network__patch_boundary": 400}
KINDS = {"unet": {**TWO, "network__channel_multipliers": (1, 2)}, "vit": {**TWO, **VIT}}


@pytest.fixture(scope="module", params=KINDS)
def config(request):
    return tiny_config(**KINDS[request.param])


def arrays_of(network):
    return {
        n: v.numpy() for n, v in zip(variable_names(network.trainable_variables), network.trainable_variables)
    }


def inputs(t):
    z = tf.random.stateless_normal((len(t), 16, 16, 3), [1, 2])
    return z, tf.constant(t), tf.range(len(t)) % 3


def test_below_the_boundary_it_is_the_network_of_the_small_patches(config):
    denoiser = tiny_denoiser(config)
    one = build_network(config.replace({"network.patch_boundary": 0}))
    two = arrays_of(denoiser.experts[0].network)
    assert [n for n in two if LARGE not in n] == variable_names(one.trainable_variables)
    assign_arrays(one.trainable_variables, {n: v for n, v in two.items() if LARGE not in n}, "two")
    alone = build_denoiser(config.diffusion, one)
    small, large = inputs([0, 399]), inputs([400, 999])
    for answer, expected in zip(denoiser(*small), alone(*small)):
        np.testing.assert_array_equal(answer, expected)
    for answer, expected in zip(denoiser(*large), denoiser.experts[0].network(*large, large=True)):
        np.testing.assert_array_equal(answer, expected)
    assert np.abs(denoiser(*large)[0] - alone(*large)[0]).max() > 0.1


def test_above_the_boundary_a_vit_is_the_network_of_the_large_patches():
    config = tiny_config(**KINDS["vit"])
    denoiser = tiny_denoiser(config)
    network = denoiser.experts[0].network
    arrays = arrays_of(network)
    level = arrays.pop(next(n for n in arrays if "large_level" in n))
    one = build_network(config.replace({"network.patch_size": 4, "network.patch_boundary": 0}))
    names = variable_names(one.trainable_variables)
    found = {n: arrays.get(n.replace("/", f"/{LARGE}", 1), arrays.get(n)) for n in names}
    assign_arrays(one.trainable_variables, found, "large")
    told = one._embed
    one._embed = lambda t, labels: [told(t, labels)[0] + level[0], *told(t, labels)[1:]]
    for answer, expected in zip(denoiser(*inputs([400, 999])), one(*inputs([400, 999]))):
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_ends_learn_from_their_own_interval_alone_and_the_trunk_from_both(config):
    denoiser = tiny_denoiser(config)
    variables, names = denoiser.variables, variable_names(denoiser.variables)
    reached = []
    for size, t in zip(denoiser.experts, ([0, 399], [400, 999])):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(tf.square(a)) for a in size(*inputs(t)))
        gradients = tape.gradient(loss, variables)
        reached.append({n for n, g in zip(names, gradients) if g is not None})
    small, large = reached
    ends = ("unet/conv_in", "vit/embed/", "t/variance_out", "encoder0_", "decoder0_", "t/norm_out")
    assert small | large == set(names) and len(small & large) > 10
    assert not any(LARGE in n for n in small) and {n for n in names if LARGE in n} <= large
    assert not any(part in n for n in large for part in ends)


def test_a_trained_network_begins_two(config):
    one = randomized(build_network(config.replace({"network.patch_boundary": 0})), 3)
    network, small = build_network(config), arrays_of(one)
    shapes = {n: v.shape for n, v in arrays_of(network).items()}
    arrays = with_large_patches(small, shapes, 2)
    arrays_for(network.trainable_variables, arrays, "two")
    assign_arrays(network.trainable_variables, arrays, "two")
    z = inputs([0, 1])[0]
    # A patch that is four times the same: the large stem sees what each small one sees.
    tiled = tf.tile(z[:, :2, :2], [1, 8, 8, 1])
    to_patches, stem, head, _, _ = network._large_side()
    h, expected = to_patches(tiled), network.to_patches(tiled)
    for layer, other in zip(stem, network.stem):
        h, expected = layer(h), other(expected)
    np.testing.assert_allclose(h[:, 1:-1, 1:-1], expected[:, 2:-2:2, 2:-2:2], atol=1e-5)
    # And its head gives four times what the small one gives.
    h = tf.random.stateless_normal((2, 4, 4, network.trunk.width), [3, 4])
    t = tf.random.stateless_normal((2, network.trunk.embedding_width), [5, 6])
    four, single = head(h, t), network.head(h, t)
    tiles = tf.tile(tf.reshape(single, [-1, 2, 2, 3]), [1, 2, 2, 1])
    np.testing.assert_allclose(tf.reshape(four, tiles.shape), tiles, atol=1e-5)


def test_what_is_there_of_large_patches_stays(config):
    network = build_network(config)
    arrays = random_arrays(network, 4)
    same = with_large_patches(arrays, {n: v.shape for n, v in arrays.items()}, 2)
    assert all(same[n] is v for n, v in arrays.items()) and same.keys() == arrays.keys()
