"""The patched network: what depends on what, precision, names, and what it leaves to its trunk."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.networks import patched
from pdm_tf.networks.layers import Head, position_encoding, timestep_features
from pdm_tf.networks.norms import normalization
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.stack import keras
from pdm_tf.weights import assign_arrays, variable_names
from tests.networks.tiny_networks import KINDS, batch, small_of
from tests.tiny_runs import randomized

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_outputs_have_the_images_shape_and_u_lies_in_0_1(kind):
    """A new one predicts zero."""
    network = PatchedNetwork(**{**KINDS[kind], "image_shape": (16, 32, 1)})
    np.testing.assert_array_equal(network(*batch((16, 32, 1)))[0], 0.0)
    prediction, u = randomized(network)(*batch((16, 32, 1)))
    assert np.std(prediction) > 0.01
    assert prediction.shape == u.shape == (2, 16, 32, 1)
    assert prediction.dtype == u.dtype == tf.float32
    assert float(tf.reduce_min(u)) >= 0 and float(tf.reduce_max(u)) <= 1


class Doubling:
    """A trunk that keeps what it was given, and gives it back twice side by side."""

    kernel_size = 1

    def __init__(self, grid, config, dtype, gradient_checkpointing):
        self.layers, self.base_channels = [], config.base_channels
        self.width, self.embedding_width = 2 * config.base_channels, config.depth

    def make_stem(self, prefix=""):
        return [keras.layers.Dense(self.base_channels, name=prefix + name) for name in ("first", "second")]

    def make_head(self, values, prefix=""):
        return Head(
            normalization("group", True, "norm_out"), keras.layers.Dense(values, kernel_initializer="zeros")
        )

    def __call__(self, h, embeddings, dropout_key=None, large=False):
        self.given = h, embeddings, dropout_key
        return tf.concat([h, h], axis=-1)


@pytest.mark.parametrize(
    ("conditioning", "widths"),
    [("none", [12]), ("embedding", [12]), ("gate", [12, 32]), ("tokens", [12, 12])],
)
def test_a_trunk_of_another_kind_is_one_row(monkeypatch, conditioning, widths):
    """It gets the projected patches with their positions, and the embeddings in its own width."""
    monkeypatch.setitem(patched.NETWORKS, "doubling", Doubling)
    settings = {"image_shape": (16, 32, 3), "patch_size": 4, "base_channels": 32, "depth": 12}
    network = PatchedNetwork(**settings, kind="doubling", num_classes=2, class_conditioning=conditioning)
    z, t, labels = batch((16, 32, 3))
    output, u = network(z, t, labels, tf.constant([1, 2]))
    assert output.shape == u.shape == z.shape
    h, embeddings, key = network.trunk.given
    np.testing.assert_array_equal(key, [1, 2])
    first, second = map(network.get_layer, ("first", "second"))
    expected = second(first(network.ends.to_patches(z))) + position_encoding(4, 8, 32)
    np.testing.assert_array_equal(h, expected)
    assert [embedding.shape for embedding in embeddings] == [(2, width) for width in widths]
    # The variance head sees the timestep alone, as in the authors' code.
    np.testing.assert_array_equal(u, network(z, t, 1 - labels, tf.constant([1, 2]))[1])
    if conditioning == "none":
        swish, (first, last) = tf.nn.silu, (network.embed_t_in, network.embed_t_out)
        hidden = swish(timestep_features(t, 32) @ first.kernel + first.bias)
        np.testing.assert_allclose(embeddings[0], swish(hidden @ last.kernel + last.bias), rtol=1e-5)
    assert all(variable.name.startswith("doubling/") for variable in network.trainable_variables)


def test_a_refiner_adds_what_its_patches_beside_z_tell_to_the_same_prediction_and_leaves_u():
    network = small_of("vit", refiner_channels=32)
    z, t, labels = batch()
    refined, u = network(z, t, labels)
    without = small_of("vit")
    arrays = dict(zip(variable_names(network.trainable_variables), network.trainable_variables))
    own = {name: array for name, array in arrays.items() if "/refiner" not in name}
    assign_arrays(without.trainable_variables, {n: v.numpy() for n, v in own.items()}, "the other's")
    prediction, same = without(z, t, labels)
    np.testing.assert_array_equal(u, same)
    added = network.refiner(prediction, z, network.embed_t_out(network.embed_t_in(timestep_features(t, 32))))
    np.testing.assert_allclose(refined, added, rtol=1e-4, atol=1e-4)
    assert np.abs(refined - prediction).max() > 0.1
    network.get_layer("refiner_out").kernel.assign(tf.zeros_like(network.get_layer("refiner_out").kernel))
    network.get_layer("refiner_out").bias.assign(tf.zeros(48))
    np.testing.assert_allclose(network(z, t, labels)[0], prediction, atol=1e-6)  # as at the start


@pytest.mark.parametrize("kind", ["unet", "vit"])
def test_images_of_a_batch_do_not_mix_and_the_batch_may_be_unknown(kind):
    network = small_of(kind, class_conditioning="gate", num_classes=2)
    z, t, labels = batch()
    function = tf.function(network.__call__, input_signature=[
        tf.TensorSpec((None, 16, 16, 3)), tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.int32),
    ])  # fmt: skip
    together = function(z, t, labels)
    for i in range(2):
        alone = function(z[i : i + 1], t[i : i + 1], labels[i : i + 1])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "conditioning"), [
    ("unet", "gate"), ("unet", "embedding"), ("vit", "gate"), ("vit", "tokens"),
])  # fmt: skip
def test_labels_matter_when_conditional_and_the_null_label_is_one_more(kind, conditioning):
    network = small_of(kind, class_conditioning=conditioning, num_classes=2)
    z, t, _ = batch()
    first, second, null = (network(z, t, tf.fill([2], label))[0] for label in (0, 1, network.null_label))
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - null).max() > 1e-3


@pytest.mark.parametrize(("kind", "conditioning"), [("unet", "gate"), ("vit", "tokens")])
def test_u_gives_its_gradient_to_the_variance_head_alone(kind, conditioning):
    network = small_of(kind, class_conditioning=conditioning, num_classes=2)
    with tf.GradientTape() as tape:
        _, u = network(*batch())
        loss = tf.reduce_sum(tf.square(u))
    gradients = tape.gradient(loss, network.trainable_variables)
    for variable, gradient in zip(network.trainable_variables, gradients):
        if "/variance_" in variable.name:
            assert float(tf.reduce_max(tf.abs(gradient))) > 0, variable.name
        else:
            assert gradient is None, variable.name


@pytest.mark.parametrize("kind", ["unet", "vit"])
def test_mixed_bfloat16_keeps_the_float32_parts_and_stays_close(kind):
    labels = {"num_classes": 2, "class_conditioning": "gate" if kind == "unet" else "tokens"}
    exact, mixed = (small_of(kind, precision=p, **labels) for p in ("float32", "mixed_bfloat16"))
    for variable, other in zip(mixed.trainable_variables, exact.trainable_variables):
        assert variable.dtype == tf.float32 and variable.name == other.name
    float32 = ["variance_out", "embed_t_in", "embed_t_out", "variance_t"]
    for layer in (*mixed.ends.stem, *mixed.ends.head.layers, *map(mixed.get_layer, float32)):
        assert layer.compute_dtype == "float32", layer.name
    assert {layer.compute_dtype for layer in mixed.trunk.layers} == {"bfloat16"}
    for a, b in zip(exact(*batch()), mixed(*batch())):
        assert b.dtype == tf.float32
        assert 0 < float(tf.norm(a - b) / tf.norm(a)) < 0.03


@pytest.mark.parametrize(("kind", "changes"), [
    ("unet", {"channel_multipliers": (1, 1.5)}), ("vit_appendix_d", {})
])  # fmt: skip
def test_a_network_comes_back_from_its_config_and_from_a_checkpoint(kind, changes, tmp_path):
    changes = {**changes, "image_shape": (16, 32, 3), "base_channels": 64}
    network = small_of(kind, **changes, class_conditioning="gate", num_classes=2)
    again = keras.utils.deserialize_keras_object(keras.utils.serialize_keras_object(network))
    names = [variable.name for variable in network.trainable_variables]
    assert names == [variable.name for variable in again.trainable_variables]
    assert len(set(names)) == len(names)
    path = tf.train.Checkpoint(network=network).write(str(tmp_path / "state"))
    tf.train.Checkpoint(network=again).read(path).assert_consumed()
    for a, b in zip(network(*batch((16, 32, 3))), again(*batch((16, 32, 3)))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("kind", "changes", "message"), [
    ("unet", {"image_shape": (16, 15, 3)}, r"image width 15 does not divide by patch_size \* 2"),
    ("unet", {"class_conditioning": "tokens"}, "class_conditioning=tokens is for network.kind=vit"),
    ("vit", {"refiner_channels": 48}, "refiner_channels=48 must divide by 32"),
    ("vit", {"head_channels": 24}, "base_channels=32 must divide by network.head_channels=24"),
])  # fmt: skip
def test_a_network_that_cannot_be_built_is_refused(kind, changes, message):
    with pytest.raises(UserError, match=message):
        PatchedNetwork(**{**KINDS[kind], **changes})
