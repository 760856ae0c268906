"""One network with two patch sizes: each side by itself, what they share, and how one becomes two."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.denoiser import SplitDenoiser, build_denoiser, build_network
from pdm_tf.describe import describe_network, forward_flops, gflop, passes_of_sampling
from pdm_tf.networks import patched, vit
from pdm_tf.networks.patched import LARGE
from pdm_tf.networks.warm_start import for_other_images, with_large_patches
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.weights import assign_arrays, variable_names
from tests.tiny_runs import VIT, arrays_of, randomized, tiny_config, tiny_denoiser

TWO = {"network__patch_size": 2, "network__patch_switch_t": 400}
KINDS = {"unet": {**TWO, "network__channel_multipliers": (2, 2)}, "vit": {**TWO, **VIT}}


@pytest.fixture(scope="module", params=[pytest.param("unet", marks=pytest.mark.slow), "vit"])
def config(request):
    return tiny_config(**KINDS[request.param])


def inputs(t):
    z = tf.random.stateless_normal((len(t), 16, 16, 3), [1, 2])
    return z, tf.constant(t), tf.range(len(t)) % 3


def test_below_the_boundary_it_is_the_network_of_the_small_patches(config):
    """But for rotary positions, which are those of the network of the large patches (below)."""
    config = config.replace({"network.rope": False})
    denoiser = tiny_denoiser(config)
    one = build_network(config.replace({"network.patch_switch_t": 0}))
    two = arrays_of(denoiser.parts[0].denoiser.network)
    assert [n for n in two if LARGE not in n] == variable_names(one.trainable_variables)
    assign_arrays(one.trainable_variables, {n: v for n, v in two.items() if LARGE not in n}, "two")
    alone = build_denoiser(config.diffusion, one)
    small, large = inputs([0, 399]), inputs([400, 999])
    for answer, expected in zip(denoiser(*small), alone(*small)):
        np.testing.assert_array_equal(answer, expected)
    for answer, expected in zip(denoiser(*large), denoiser.parts[0].denoiser.network(*large, large=True)):
        np.testing.assert_array_equal(answer, expected)
    assert np.abs(denoiser(*large)[0] - alone(*large)[0]).max() > 0.1


def separate(config, arrays):
    """Two networks of one size each with a ViT's weights for two, as experts."""
    networks = []
    for name, factor in (("small", 1), ("large", 2)):
        patch_size = factor * config.network.patch_size
        settings = {"network.patch_size": patch_size, "network.patch_switch_t": 0}
        one = build_network(config.replace(settings))
        names, prefix = variable_names(one.trainable_variables), LARGE if factor == 2 else ""
        own = {n: arrays.get(n.replace("/", f"/{prefix}", 1), arrays.get(n)) for n in names}
        assign_arrays(one.trainable_variables, own, name)
        networks.append(one)
    d, boundary = config.diffusion, config.network.patch_switch_t
    parts = [(0, boundary), (boundary, d.num_timesteps)]
    return SplitDenoiser([
        build_denoiser(dataclasses.replace(d, t_start=start, t_stop=stop), network)
        for network, (start, stop) in zip(networks, parts)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def two_ways():
    """A ViT of two sizes, and two ViTs with its weights; rotary positions differ, and are left out."""
    config = tiny_config(**KINDS["vit"], network__rope=False)
    denoiser = tiny_denoiser(config)
    arrays = arrays_of(denoiser.parts[0].denoiser.network)
    level = next(n for n in arrays if f"/{LARGE}level/" in n)
    arrays[level] = np.zeros_like(arrays[level])
    assign_arrays(denoiser.variables, arrays, "no level")
    yield denoiser, separate(config, arrays)


def test_each_side_is_a_network_of_its_own_size(two_ways):
    (x, u), (expected_x, expected_u) = (one(*inputs([0, 399, 400, 999])) for one in two_ways)
    np.testing.assert_allclose(x, expected_x, atol=1e-5)
    np.testing.assert_allclose(u, expected_u, atol=1e-5)


def test_the_level_tells_a_trunk_which_size_it_sees(two_ways):
    denoiser, _ = two_ways
    level = denoiser.parts[0].denoiser.network.large_level.embeddings
    before = [denoiser(*inputs([t]))[0] for t in (399, 400)]
    level.assign_add(tf.ones_like(level))
    after = [denoiser(*inputs([t]))[0] for t in (399, 400)]
    level.assign(tf.zeros_like(level))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-2


class Counted:
    """A denoiser that counts the images that it is run on."""

    def __init__(self, part):
        self.denoiser, self.images = part.denoiser, tf.Variable(0)
        self.parts = [part._replace(denoiser=self)]

    def __getattr__(self, name):
        return getattr(self.denoiser, name)

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        with tf.control_dependencies([self.images.assign_add(tf.shape(z)[0])]):
            return self.denoiser(tf.identity(z), t, labels, dropout_key)


def test_a_step_runs_one_size_and_describe_counts_the_passes(two_ways):
    denoiser, _ = two_ways
    sampling = SamplingConfig("ancestral", (6, 3), guidance=1.5)
    counted = [Counted(part) for part in denoiser.parts]
    Sampler(SplitDenoiser(counted), sampling)(0, [0], [1])
    config = dataclasses.replace(tiny_config(**KINDS["vit"], network__rope=False), sampling=sampling)
    passes = passes_of_sampling(config, denoiser.parts[0].denoiser.network)
    assert [int(one.images) for one in counted] == passes and min(passes) > 1


def test_describe_tells_the_cost_of_each_interval_and_of_a_sample(config):
    config = dataclasses.replace(config, sampling=SamplingConfig("dpm_solver", (20,), "logsnr"))
    text = describe_network(config)
    network = build_network(config)
    small, large = forward_flops(network), forward_flops(network, large=True)
    assert large < 0.7 * small
    assert f"t 0..399: {gflop(small)} an image\n" in text and f"{gflop(large)} an image\n" in text
    assert "t 400..999 (SNR 0.2" in text
    batch = config.training.batch_size
    share = config.diffusion.large_share
    step = 3 * batch * ((1 - share) * small + share * large)
    assert f"training: {gflop(step)} a step of {batch}, " in text
    few, many = passes_of_sampling(config, network)
    cost = gflop(few * small + many * large)
    assert few + many == 20 and text.endswith(f"{few} + {many} passes, {cost} an image")


def test_large_patches_pass_a_unet_s_first_level_by_its_shortcuts():
    denoiser = tiny_denoiser(tiny_config(**KINDS["unet"]))
    trunk = denoiser.parts[0].denoiser.network.trunk
    layers = {layer.name: layer for layer in trunk.layers}
    x, t, label = (tf.random.stateless_normal(shape, [1, 2]) for shape in ((2, 4, 4, 32), (2, 64), (2, 32)))

    def block(name, *h):
        return layers[name](tf.concat(h, -1), t, label)

    def shortcut(name, *h):
        return layers[name].shortcut(tf.concat(h, -1))

    def conv(name, h):
        return tf.nn.conv2d(h, layers[name].kernel, 1, "SAME") + layers[name].bias

    fine = shortcut("encoder0_0", x)
    down = conv("down0", fine)
    coarse = block("encoder1_0", down)
    h = block("middle_out", layers["middle_attention"](block("middle_in", coarse)))
    h = conv("up1", block("decoder1_1", block("decoder1_0", h, coarse), down))
    h = shortcut("decoder0_1", shortcut("decoder0_0", h, fine), x)
    np.testing.assert_allclose(trunk(x, [t, label], large=True), h, atol=1e-4)


def test_ends_learn_from_their_own_interval_alone_and_the_trunk_from_both(config):
    denoiser = tiny_denoiser(config)
    variables, names = denoiser.variables, variable_names(denoiser.variables)
    reached = []
    for part, t in zip(denoiser.parts, ([0, 399], [400, 999])):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(tf.square(a)) for a in part.denoiser(*inputs(t)))
        gradients = tape.gradient(loss, variables)
        reached.append({n for n, g in zip(names, gradients) if g is not None})
    small, large = reached
    ends = ("unet/conv_in", "vit/embed/", "t/variance_out", "encoder0_", "decoder0_", "t/norm_out")
    large = {n for n in large if "/shortcut/" not in n}
    assert small | large == set(names) and len(small & large) > 10
    assert not any(LARGE in n for n in small) and {n for n in names if LARGE in n} <= large
    assert not any(part in n for n in large for part in ends)


def begun(config):
    """A network of one size with wild weights, and one of two sizes that begins with them."""
    one = randomized(build_network(config.replace({"network.patch_switch_t": 0})), 3)
    two = build_network(config)
    names = variable_names(two.trainable_variables)
    arrays = with_large_patches(
        arrays_of(one), {n: v.shape for n, v in zip(names, two.trainable_variables)}, 2
    )
    assign_arrays(two.trainable_variables, arrays, "two")
    return one, two


def test_a_trained_network_begins_the_stem_and_heads_of_large_patches(config):
    one, two = begun(config)
    # Where all patches that a layer sees are alike, the large stem sees what the small one does.
    tiled = tf.tile(inputs([0, 1])[0][:, :2, :2], [1, 8, 8, 1])
    h, expected = two.large_ends.to_patches(tiled), one.ends.to_patches(tiled)
    for layer, other in zip(two.large_ends.stem, one.ends.stem):
        h, expected = layer(h), other(expected)
    np.testing.assert_allclose(h[:, 1:-1, 1:-1], expected[:, 2:-2:2, 2:-2:2], atol=1e-5)
    # And its heads give four times what the small ones give.
    h = tf.random.stateless_normal((2, 4, 4, two.trunk.width), [3, 4])
    features = tf.random.stateless_normal((2, 4, 4, 32), [5, 6])
    t = tf.random.stateless_normal((2, two.trunk.embedding_width), [7, 8])
    large, small = two.large_ends, two.ends
    for four, single in (
        (large.head(h, t), small.head(h, t)),
        (large.u(features, h, t), small.u(features, h, t)),
    ):
        tiles = tf.tile(tf.reshape(single, [-1, 2, 2, 3]), [1, 2, 2, 1])
        np.testing.assert_allclose(tf.reshape(four, tiles.shape), tiles, atol=1e-5)


def test_a_trained_vit_of_large_patches_goes_on_as_it_was_from_the_boundary_on():
    """And its small patches begin as those of a network that was taken to them."""
    config = tiny_config(**KINDS["vit"])
    one = randomized(build_network(config.replace({"network.patch_switch_t": 0, "network.patch_size": 4})), 3)
    two = build_network(config)
    shapes = {n: array.shape for n, array in arrays_of(two).items()}
    arrays = with_large_patches(for_other_images(arrays_of(one), shapes, (2, 3), (4, 3)), shapes, 2)
    assign_arrays(two.trainable_variables, arrays, "two")
    for own, expected in zip(two(*inputs([400, 999]), large=True), one(*inputs([400, 999]))):
        np.testing.assert_array_equal(own, expected)
        assert np.std(expected) > 0.05
    shapes = {n: shape for n, shape in shapes.items() if LARGE not in n}
    small = for_other_images(arrays_of(one), shapes, (2, 3), (4, 3))
    for name, array in small.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("patch_size, colours", [(1, 3), (2, 1), (4, 1), (8, 3)])
def test_both_sizes_begin_with_weights_of_any_patches_and_colours(config, patch_size, colours):
    one_size = {"network.patch_switch_t": 0, "network.patch_size": patch_size}
    image = {"data.image_shape": (16, 16, colours)}
    one = arrays_of(build_network(config.replace({**one_size, **image})))
    shapes = {n: array.shape for n, array in arrays_of(build_network(config)).items()}
    begun = for_other_images(one, shapes, (2, 3), (patch_size, colours))
    begun = with_large_patches(begun, shapes, 2)
    assert {n: array.shape for n, array in begun.items()} == shapes


def test_large_patches_lie_at_the_place_of_the_first_of_their_four():
    fine = tf.reshape(vit.rotation((8, 8), 0, 32, 0.5), [8, 8, -1])
    np.testing.assert_array_equal(tf.reshape(vit.rotation((4, 4), 0, 32), [4, 4, -1]), fine[::2, ::2])
    fine = patched.position_encoding(8, 8, 32)
    np.testing.assert_allclose(patched.position_encoding(4, 4, 32), fine[::2, ::2], atol=1e-5)


@pytest.mark.parametrize("method, teacher", [("progressive", 4), ("consistency", 2)])
def test_describe_counts_the_passes_of_a_student_s_teacher(method, teacher):
    """Of `factor` steps, or of one and the target's."""
    student = {"teacher": ("a",), "steps": 2, "first": 8, "factor": 4, "method": method}
    sampled = {"sampler": "ddim", "steps": (2,), "spacing": "logsnr_trailing"}
    config = tiny_config(
        **{f"distillation__{name}": value for name, value in student.items()},
        **{f"sampling__{name}": value for name, value in sampled.items()},
    )
    step = (3 + teacher) * config.training.batch_size * forward_flops(build_network(config))
    assert f"training: {gflop(step)} a step" in describe_network(config)
