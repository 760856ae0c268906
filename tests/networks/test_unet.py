"""The U-Net: the paper's parameter counts, the weights that ship, its trunk against its own formula."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.presets import preset
from pdm_tf.denoiser import build_network
from pdm_tf.describe import forward_flops
from pdm_tf.run import PRETRAINED
from pdm_tf.weights import variable_names
from tests.networks.tiny_networks import small

SLOW = pytest.mark.slow


@pytest.mark.parametrize(("dataset", "choice", "parameters"), [
    ("lsun_church", {}, 121_416_544),
    pytest.param("ffhq1024", {}, 162_645_344, marks=SLOW),
    pytest.param("imagenet256", {"split": "high"}, 202_148_704, marks=SLOW),
])  # fmt: skip
def test_presets_have_the_papers_parameter_counts(dataset, choice, parameters):
    assert build_network(preset(dataset, **choice)).count_params() == parameters


def test_names_and_shapes_are_those_of_the_weights_that_ship():
    variables = build_network(preset("emoji64")).trainable_variables
    with np.load(next((PRETRAINED / "emoji64" / "ema").glob("*.npz"))) as file:
        shapes = {name: file[name].shape for name in file.files}
    # The order too: an optimizer's state and a checkpoint's averages follow it.
    assert list(shapes.items()) == [(n, tuple(v.shape)) for n, v in zip(variable_names(variables), variables)]


def test_trunk_equals_its_formula_written_out():
    """method.md's U-Net of two levels with one block each, line by line, dropout and gate included."""
    network = small(dropout=0.3, num_classes=2, class_conditioning="gate")
    rng = np.random.default_rng(2)
    x, t, label = (
        tf.constant(rng.normal(size=shape), tf.float32) for shape in ((2, 8, 8, 32), (2, 64), (2, 32))
    )
    key = tf.constant([5, 6])

    def block(name, number, h, skip=None):
        h = h if skip is None else tf.concat([h, skip], -1)
        block_key = tf.random.experimental.stateless_fold_in(key, number)
        return network.get_layer(name)(h, t, label, dropout_key=block_key)

    def attention(name, h):
        return network.get_layer(name)(h)

    def conv(name, h, stride=1):
        layer = network.get_layer(name)
        return tf.nn.conv2d(h, layer.kernel, stride, "SAME") + layer.bias

    fine = block("encoder0_0", 0, x)
    down = conv("down0", fine, stride=2)
    coarse = attention("encoder1_0_attention", block("encoder1_0", 1, down))
    h = attention("middle_attention", block("middle_in", 2, coarse))
    h = block("middle_out", 3, h)
    h = attention("decoder1_0_attention", block("decoder1_0", 4, h, coarse))
    h = attention("decoder1_1_attention", block("decoder1_1", 5, h, down))
    h = conv("up1", tf.image.resize(h, (8, 8), "nearest"))
    h = block("decoder0_0", 6, h, fine)
    h = block("decoder0_1", 7, h, x)
    np.testing.assert_allclose(network.trunk(x, [t, label], key), h, rtol=1e-4, atol=1e-5)
    # All layers of the trunk had their part.
    assert len(network.trunk.layers) == 8 + 4 + 2


def test_a_local_network_gives_the_same_within_a_crop_as_within_the_image():
    network = small(image_shape=(256, 256, 3), local=True, attention_resolutions=())
    z = tf.constant(np.random.default_rng(1).normal(size=(1, 256, 256, 3)), tf.float32)
    t = tf.constant([300])
    whole = network(z, t)
    # What lies further away than 72 pixels reaches no place: 12 convolutions of 2, 10 of 4, and one patch.
    crop = network(z[:, 16:176, 64:224], t)
    for a, b in zip(whole, crop):
        np.testing.assert_allclose(a[:, 88:104, 136:152], b[:, 72:88, 72:88], rtol=1e-4, atol=1e-5)
    assert np.abs(whole[0][:, 16:20, 64:68] - crop[0][:, :4, :4]).max() > 0.01  # the crop's edge is one


def test_flops_equal_a_count_by_hand():
    """Convolutions, dense layers and attention of a tiny network, counted layer by layer."""
    network = small(channel_multipliers=(1,), attention_resolutions=(8,))
    area, c, values = 64, 32, 12

    def conv(a, b, kernel=3):
        return 2 * area * kernel * kernel * a * b

    block = 2 * conv(c, c) + 2 * c * 2 * c
    up_block = conv(2 * c, c) + conv(c, c) + conv(2 * c, c, 1) + 2 * c * 2 * c
    attention = conv(c, 3 * c, 1) + conv(c, c, 1) + 2 * 2 * area * area * c
    embedding = 2 * c * 4 * c + 2 * 4 * c * c
    variance = 2 * c * 2 * c + conv(2 * c, c) + conv(c, values)
    by_hand = (
        conv(values, c) + 3 * block + 2 * up_block + 4 * attention + embedding + conv(c, values) + variance
    )
    counted = forward_flops(network)
    # The rest is what the profiler counts of biases, norms and other elementwise work.
    assert by_hand <= counted <= 1.1 * by_hand
