"""The U-Net: the paper's parameter counts, what depends on what, precision."""

import numpy as np
import pytest
import tensorflow as tf

from flags.presets import preset
from pdm_tf.denoiser import build_network
from pdm_tf.describe import count_parameters, describe_network, forward_flops
from pdm_tf.networks.unet import UNet

SMALL = {
    "image_shape": (16, 16, 3),
    "patch_size": 2,
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_resolutions": (4,),
}


def small(randomized=True, **changes):
    network = UNet(**{**SMALL, **changes})
    if randomized:
        rng = np.random.default_rng(0)
        for variable in network.trainable_variables:
            variable.assign(rng.normal(0, 0.1, variable.shape).astype(np.float32))
    return network


def batch(shape=(16, 16, 3), count=2):
    z = tf.constant(np.random.default_rng(1).normal(size=(count, *shape)), tf.float32)
    return z, tf.constant([3, 700][:count]), tf.constant([0, 1][:count])


PAPER = [
    ("lsun_church", {"patch_size": 2}, 122_916_120),
    ("lsun_church", {"patch_size": 4}, 121_416_544),
    ("lsun_church", {}, 121_416_544),
    ("lsun_church", {"patch_size": 8}, 121_011_584),
    ("ffhq1024", {}, 162_645_344),
    ("imagenet256", {"split": "low"}, 202_148_704),
    ("imagenet256", {"split": "high"}, 202_148_704),
]


@pytest.mark.parametrize(("dataset", "choice", "parameters"), PAPER)
def test_presets_have_the_papers_parameter_counts(dataset, choice, parameters):
    assert count_parameters(build_network(preset(dataset, **choice))) == parameters


def test_the_measured_network_of_the_design_has_its_count():
    network = UNet((64, 64, 3), patch_size=2, base_channels=64, channel_multipliers=(1, 2, 2))
    assert count_parameters(network) == 6_946_200


def test_outputs_have_the_images_shape_and_u_lies_in_0_1():
    prediction, u = small()(*batch())
    assert prediction.shape == u.shape == (2, 16, 16, 3)
    assert prediction.dtype == u.dtype == tf.float32
    assert float(tf.reduce_min(u)) >= 0 and float(tf.reduce_max(u)) <= 1


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts_and_non_square_images(channels):
    prediction, u = small(image_shape=(16, 32, channels))(*batch((16, 32, channels)))
    assert prediction.shape == u.shape == (2, 16, 32, channels)


def test_a_new_network_predicts_zero():
    np.testing.assert_array_equal(small(randomized=False)(*batch())[0], 0.0)


def test_images_of_a_batch_do_not_mix_and_the_batch_may_be_unknown():
    network = small(class_conditioning="gate", num_classes=2)
    z, t, labels = batch()
    function = tf.function(network.__call__, input_signature=[
        tf.TensorSpec((None, 16, 16, 3)), tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.int32),
    ])  # fmt: skip
    together = function(z, t, labels)
    for i in range(2):
        alone = function(z[i : i + 1], t[i : i + 1], labels[i : i + 1])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditioning", ["gate", "embedding"])
def test_labels_matter_when_conditional_and_the_null_label_is_one_more(conditioning):
    network = small(class_conditioning=conditioning, num_classes=2)
    z, t, _ = batch()
    first, second, null = (network(z, t, tf.fill([2], label))[0] for label in (0, 1, 2))
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - null).max() > 1e-3


def test_labels_do_not_matter_without_conditioning():
    network = small(num_classes=2)
    z, t, _ = batch()
    np.testing.assert_array_equal(network(z, t, tf.fill([2], 0))[0], network(z, t, tf.fill([2], 1))[0])


def test_timesteps_matter():
    z, t, labels = batch()
    network = small()
    assert np.abs(network(z, t, labels)[0] - network(z, t + 1, labels)[0]).max() > 1e-4


@pytest.mark.parametrize("conditioning", ["none", "gate", "embedding"])
def test_u_gives_its_gradient_to_the_variance_head_alone(conditioning):
    network = small(class_conditioning=conditioning, num_classes=2)
    with tf.GradientTape() as tape:
        _, u = network(*batch())
        loss = tf.reduce_sum(tf.square(u))
    gradients = tape.gradient(loss, network.trainable_variables)
    for variable, gradient in zip(network.trainable_variables, gradients):
        if "/variance_" in variable.name:
            assert float(tf.reduce_max(tf.abs(gradient))) > 0, variable.name
        else:
            assert gradient is None, variable.name


def test_mixed_bfloat16_keeps_the_float32_parts_and_stays_close():
    exact, mixed = small(), small(precision="mixed_bfloat16")
    for variable, other in zip(mixed.trainable_variables, exact.trainable_variables):
        assert variable.dtype == tf.float32 and variable.name == other.name
    for name in (
        "conv_in",
        "norm_out",
        "conv_out",
        "variance_out",
        "embed_t_in",
        "embed_t_out",
        "variance_t",
    ):
        assert getattr(mixed, name).compute_dtype == "float32", name
    assert mixed.middle_in.conv_in.compute_dtype == "bfloat16"
    for a, b in zip(exact(*batch()), mixed(*batch())):
        assert b.dtype == tf.float32
        assert 0 < float(tf.norm(a - b) / tf.norm(a)) < 0.03


def test_mixed_bfloat16_graph_convolves_first_and_last_in_float32():
    """Read from the traced graph, not from the layers' own word."""
    network = small(precision="mixed_bfloat16")
    number = tf.TensorSpec((2,), tf.int32)
    traced = tf.function(network.__call__).get_concrete_function(
        tf.TensorSpec((2, 16, 16, 3)), number, number
    )
    kinds = {"float32": [], "bfloat16": []}
    for op in traced.graph.get_operations():
        if op.type == "Conv2D":
            kinds[op.get_attr("T").name].append(op.name)
        if op.type in ("Mean", "SquaredDifference", "Rsqrt"):
            assert op.get_attr("T") == tf.float32, op.name
    assert {name.split("/")[1] for name in kinds["float32"]} == {"conv_in", "conv_out", "variance_out"}
    assert len(kinds["bfloat16"]) > 10


def test_variable_names_are_the_same_in_every_instance():
    names = [[variable.name for variable in small(False).trainable_variables] for _ in range(2)]
    assert names[0] == names[1] and len(set(names[0])) == len(names[0])


def test_network_is_serialisable():
    network = small(class_conditioning="gate", num_classes=2)
    again = tf.keras.utils.deserialize_keras_object(tf.keras.utils.serialize_keras_object(network))
    again.set_weights(network.get_weights())
    for a, b in zip(network(*batch()), again(*batch())):
        np.testing.assert_array_equal(a, b)


def test_flops_equal_a_count_by_hand():
    """Convolutions, dense layers and attention of a tiny network, counted layer by layer."""
    network = UNet((16, 16, 3), 2, 32, (1,), blocks_per_level=1, attention_resolutions=(8,), head_channels=32)
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


def test_description_of_the_default():
    text = describe_network(preset("emoji64"))
    assert "patches (16, 16, 48)" in text and "level 2: (4, 4, 128)" in text
    assert "trainable parameters: 5,792,672" in text
