"""The Vision Transformer: each of its options against the formula that it stands for."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import NetworkConfig
from pdm_tf.config.presets import network_settings, preset
from pdm_tf.denoiser import build_network
from pdm_tf.describe import forward_flops
from pdm_tf.networks.layers import with_blurred
from pdm_tf.networks.vit import ViT
from pdm_tf.networks.vit_layers import Attention, FeedForward, ResidualBranch, rotate, rotation
from tests.tiny_runs import randomized

RNG = np.random.default_rng(0)


def normal(*shape):
    return tf.constant(RNG.normal(size=shape), tf.float32)


def linear(layer, x):
    return x @ layer.kernel + layer.bias


def trunk_of(grid=(4, 4), **changes):
    settings = {"kind": "vit", "base_channels": 32, "depth": 4, "head_channels": 16, **changes}
    return ViT(grid, NetworkConfig(**settings))


def test_turned_queries_and_keys_meet_by_their_distance_alone():
    query, key = normal(16), normal(16)
    angles = rotation((6, 5), 2, 16)
    places = tf.broadcast_to(query, [1, 1, 32, 16]), tf.broadcast_to(key, [1, 1, 32, 16])
    turned = [rotate(x, angles)[0, 0].numpy() for x in places]
    # Tokens beside the grid have no place.
    np.testing.assert_array_equal(turned[0][:2], np.stack([query, query]))
    products = (turned[0][2:] @ turned[1][2:].T).reshape(6, 5, 6, 5)
    np.testing.assert_allclose(products[1, 1, 3, 4], products[2, 0, 4, 3], rtol=1e-4)
    np.testing.assert_allclose(products[0, 0, 0, 0], np.dot(query, key), rtol=1e-4)
    assert abs(products[1, 1, 3, 4] - products[1, 1, 4, 3]) > 1e-2  # rows and columns differ


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_its_formula_head_by_head(qk_norm):
    x, angles = normal(2, 6, 32), rotation((2, 3), 0, 16)
    attention = Attention(16, qk_norm)
    attention(x)
    randomized(attention)
    projected, parts = linear(attention.query_key_value, x).numpy().reshape(2, 6, 3, 2, 16), []
    for head in range(2):
        query, key, value = (projected[:, :, part, head] for part in range(3))
        if qk_norm:
            query, key = (
                part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6) * norm.gain
                for part, norm in zip((query, key), attention.norms)
            )
        query, key = (rotate(tf.constant(part)[:, None], angles)[:, 0].numpy() for part in (query, key))
        weights = tf.nn.softmax(query @ key.transpose(0, 2, 1) / 4).numpy()
        parts.append(weights @ value)
    expected = linear(attention.project, tf.concat(parts, -1))
    np.testing.assert_allclose(attention(x, angles=angles), expected, rtol=1e-3, atol=1e-5)
    assert len(attention.weights) == 4 + 2 * qk_norm


def test_both_feed_forwards_equal_their_formulas_with_as_many_weights():
    x, counts = normal(2, 5, 96), []
    for name in ("gelu", "swiglu"):
        layer = FeedForward(name)
        layer(x)
        randomized(layer)
        h = linear(layer.expand, x)
        h = tf.nn.gelu(h) if name == "gelu" else tf.nn.silu(h[..., :256]) * h[..., 256:]
        np.testing.assert_allclose(layer(x), linear(layer.project, h), rtol=1e-4, atol=1e-5)
        counts.append(sum(int(np.prod(w.shape)) for w in layer.weights if w.shape.rank == 2))
    assert counts[0] == counts[1] == 8 * 96 * 96


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("gates", [True, False])
def test_a_residual_branch_equals_its_formula(place, gates):
    x, t, label = normal(2, 5, 32), normal(2, 12), normal(2, 8)
    config = NetworkConfig(
        kind="vit", norm="layer", norm_place=place, t_gates=gates, residual_scaling="branch", depth=4,
        class_conditioning="gate" if gates else "none",
    )  # fmt: skip
    layer = ResidualBranch(FeedForward("gelu"), config, t_conditional=True)
    layer(x, t, label)
    randomized(layer)
    parts = linear(layer.modulation, t)
    scale, shift = parts[:, None, :32], parts[:, None, 32:64]
    gate = 0.5
    if gates:
        gate = 0.5 * parts[:, None, 64:] * tf.sigmoid(linear(layer.gate, label) + 2)[:, None]

    def norm(h):
        mean, variance = tf.nn.moments(h, [-1], keepdims=True)
        return (h - mean) / tf.sqrt(variance + 1e-6) * (1 + scale) + shift

    before = place == "before"
    expected = x + gate * layer.branch(norm(x)) if before else norm(x + gate * layer.branch(x))
    np.testing.assert_allclose(layer(x, t, label), expected, rtol=1e-3, atol=1e-5)


def test_new_gates_leave_the_input_as_it_is():
    """adaLN-Zero: whatever the depth, a new network is the identity."""
    h, t = normal(2, 4, 4, 32), normal(2, 32)
    np.testing.assert_array_equal(trunk_of()(h, [t]), h)
    assert np.abs(trunk_of(t_gates=False)(h, [t]) - h).max() > 0.1


def test_one_over_root_depth_of_the_initial_weights_or_of_the_branch():
    trunks = {name: trunk_of(residual_scaling=name) for name in ("none", "initial_weights", "branch")}
    for trunk in trunks.values():
        trunk(normal(2, 4, 4, 32), [normal(2, 32)])
    spread = {
        name: np.std([b.branch.project.kernel for block in trunk.blocks for b in [block[1]]])
        for name, trunk in trunks.items()
    }
    assert spread["initial_weights"] / spread["none"] == pytest.approx(0.5, rel=0.05)
    assert spread["branch"] / spread["none"] == pytest.approx(1.0, rel=0.05)
    assert [trunk.blocks[0][0].factor for trunk in trunks.values()] == [1.0, 1.0, 0.5]
    kernels = [block[1].branch.project.kernel.numpy() for block in trunks["none"].blocks]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # blocks do not start alike


def test_injections_come_before_their_block_and_reach_the_patches_alone():
    """With branches that give nothing, what is left is the sum of the injections."""
    h, t, label = normal(2, 4, 4, 32), normal(2, 32), normal(2, 32)
    trunk = trunk_of(
        input_injections=(2, 4), class_conditioning="tokens", class_tokens=3, class_tokens_from=2
    )
    result = trunk(h, [t, label])  # new gates are zero
    expected = h + sum(linear(trunk._inject[k], h) for k in (2, 4))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_class_tokens_are_seen_from_their_block_on():
    """What the label says in tokens alone reaches the patches through attention, and not without a block."""
    h, t, labels = normal(2, 4, 4, 32), normal(2, 32), (normal(2, 32), normal(2, 32))
    for first, reaches in ((4, True), (5, False)):
        trunk = trunk_of(class_conditioning="tokens", class_tokens=3, class_tokens_from=first)
        trunk(h, [t, labels[0]])
        for layer in trunk.layers:
            randomized(layer)
        one, other = (trunk(h, [t, label]) for label in labels)
        assert one.shape == h.shape
        assert (np.abs(one - other).max() > 1e-4) == reaches


def test_blurred_copies():
    z = np.zeros((1, 33, 40, 2), np.float32)
    z[0, 16, 20] = [1, 2]
    blurred = with_blurred(tf.constant(z), (1.0, 2.0)).numpy()
    np.testing.assert_array_equal(blurred[..., :2], z)
    rows, columns = np.arange(33) - 16, np.arange(40) - 20
    for copy, sigma in ((blurred[0, ..., 2:4], 1), (blurred[0, ..., 4:], 2)):
        gaussian = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        np.testing.assert_allclose(copy, gaussian[..., None] * [1, 2], atol=1e-5)
    # A constant stays one, to the edge.
    np.testing.assert_allclose(with_blurred(tf.ones((1, 9, 7, 1)), (8.0,)), 1.0, rtol=1e-5)


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(("dataset", "parameters"), [
    pytest.param("emoji64", 2_329_670, marks=pytest.mark.slow),
    pytest.param("imagenet256", 158_272_128, marks=HEAVY),
])  # fmt: skip
def test_presets_cost_about_what_the_u_net_costs(dataset, parameters):
    config = preset(dataset)
    vit = build_network(config.replace(network_settings("vit", config)))
    assert vit.count_params() == parameters
    assert forward_flops(vit) == pytest.approx(forward_flops(build_network(config)), rel=0.1)
