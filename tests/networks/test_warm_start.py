"""Weights of a network, taken to other patches and colours."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.denoiser import build_network
from pdm_tf.networks.warm_start import for_other_images
from pdm_tf.weights import assign_arrays
from tests.tiny_runs import VIT, arrays_of, randomized, tiny_config

KINDS = {
    "unet": {}, "vit": VIT, "bottleneck": {**VIT, "network__bottleneck": 4},
    "blurred": {"network__blurred_inputs": (0.01,)},
}  # fmt: skip


def magnified(image, times):
    return tf.repeat(tf.repeat(image, times, 1), times, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_larger_images_begins_as_the_smaller_one(kind):
    """Of an image whose pixels are squares it gives what the smaller one gives, in squares."""
    config, times = tiny_config(**KINDS[kind]), 3
    side, patch_size = config.data.image_shape[0], config.network.patch_size
    small = randomized(build_network(config), 3)
    larger = {"data.image_shape": (times * side, times * side, 3), "network.patch_size": times * patch_size}
    large = build_network(config.replace(larger))
    shapes = {name: array.shape for name, array in arrays_of(large).items()}
    begun = for_other_images(arrays_of(small), shapes, (times * patch_size, 3), (patch_size, 3))
    assign_arrays(large.trainable_variables, begun, "the smaller one")
    z = tf.random.stateless_normal((2, side, side, 3), [1, 2])
    t, labels = tf.constant([3, 700]), tf.constant([0, 2])
    for own, expected in zip(large(magnified(z, times), t, labels), small(z, t, labels)):
        np.testing.assert_allclose(own, magnified(expected, times), atol=1e-5)
        assert np.std(expected) > 0.05
    # And the way back is the way back.
    shapes = {name: array.shape for name, array in arrays_of(small).items()}
    back = for_other_images(begun, shapes, (patch_size, 3), (times * patch_size, 3))
    for name, array in arrays_of(small).items():
        np.testing.assert_allclose(back[name], array, rtol=1e-5)


def means_of(image, size):
    """The means of `size` x `size` pixels."""
    return tf.nn.avg_pool2d(image, size, size, "VALID")


@pytest.mark.parametrize("kind", ["unet", "vit", "bottleneck"])
def test_patches_may_be_one_and_a_half_times_as_large(kind):
    """The larger network is the smaller one between an image averaged down and its predictions spread."""
    config = tiny_config(**KINDS[kind])
    side = config.data.image_shape[0]
    small = randomized(build_network(config), 3)
    larger = {"data.image_shape": (side * 3 // 2, side * 3 // 2, 3), "network.patch_size": 6}
    large = build_network(config.replace(larger))
    shapes = {name: array.shape for name, array in arrays_of(large).items()}
    assert config.network.patch_size == 4
    assign_arrays(large.trainable_variables, for_other_images(arrays_of(small), shapes, (6, 3), (4, 3)), "it")
    z = tf.random.stateless_normal((2, *large.image_shape), [1, 2])
    t, labels = tf.constant([3, 700]), tf.constant([0, 2])
    x, u = large(z, t, labels)
    small_x, small_u = small(means_of(magnified(z, 2), 3), t, labels)
    logit = tf.math.log(u / (1 - u)), tf.math.log(small_u / (1 - small_u))
    for own, there in ((x, small_x), logit):
        np.testing.assert_allclose(own, means_of(magnified(there, 3), 2), atol=1e-5)
        assert np.std(there) > 0.05


@pytest.mark.parametrize("kind", ["unet", "bottleneck"])
def test_a_network_of_another_width_leaves_all_but_stem_and_heads_as_they_are(kind):
    """Though its width, or its bottleneck, differs by the patches' ratio, too."""
    config = tiny_config(**KINDS[kind])
    wider = {"network.patch_size": 8, "network.base_channels": 128, "network.bottleneck": 16}
    shapes = {name: array.shape for name, array in arrays_of(build_network(config.replace(wider))).items()}
    arrays = arrays_of(build_network(config))
    begun = for_other_images(arrays, shapes, (8, 3), (4, 3))
    changed = {
        name.partition("/")[2].rpartition("/")[0]
        for name, array in begun.items()
        if array is not arrays[name]
    }
    ends = {"unet": {"conv_in", "conv_out"}, "bottleneck": {"embed_narrow", "project_out"}}
    assert changed == {*ends[kind], "variance_out"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_grey_images_begins_as_that_of_colours(kind):
    """Of a grey image it predicts the mean of the colours that the other one predicts of it."""
    config = tiny_config(**KINDS[kind])
    patch_size = config.network.patch_size
    colours = randomized(build_network(config), 3)
    grey = build_network(config.replace({"data.image_shape": (*config.data.image_shape[:2], 1)}))
    shapes = {name: array.shape for name, array in arrays_of(grey).items()}
    begun = for_other_images(arrays_of(colours), shapes, (patch_size, 1), (patch_size, 3))
    assign_arrays(grey.trainable_variables, begun, "that of colours")
    z = tf.random.stateless_normal((2, *grey.image_shape), [1, 2])
    t, labels = tf.constant([3, 700]), tf.constant([0, 2])
    expected = colours(tf.repeat(z, 3, -1), t, labels)[0]
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(grey(z, t, labels)[0], tf.reduce_mean(expected, -1, keepdims=True), atol=1e-5)


def test_a_refiner_keeps_its_patches_and_takes_other_colours():
    config = tiny_config(**VIT, network__refiner_channels=32)
    arrays = arrays_of(randomized(build_network(config), 3))
    grey = {"data.image_shape": (*config.data.image_shape[:2], 1), "network.patch_size": 8}
    shapes = {name: array.shape for name, array in arrays_of(build_network(config.replace(grey))).items()}
    begun = for_other_images(arrays, shapes, (8, 1), (4, 3))
    found = {name: array for name, array in begun.items() if "/refiner" in name}
    assert {name: array.shape for name, array in found.items()} == {n: shapes[n] for n in found}
    ends = {name.split("/")[-2]: (arrays[name], array) for name, array in found.items() if "kernel" in name}
    old, new = ends["refiner_in"]
    np.testing.assert_allclose(new, old.reshape(*old.shape[:2], -1, 3, old.shape[-1]).sum(3), atol=1e-6)
    old, new = ends["refiner_out"]
    np.testing.assert_allclose(new, old.reshape(*old.shape[:3], -1, 3).mean(4), atol=1e-6)
