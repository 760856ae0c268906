"""Changes of training images: against Pillow's affine maps, and their labels."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pdm_tf.networks.patched import AUGMENTATION_LABELS
from pdm_tf.networks.warm_start import with_augmentation
from pdm_tf.randomness import stream
from pdm_tf.training.augmentation import Changes, apply_changes, draw_changes
from pdm_tf.training.model import PatchedDiffusion
from pdm_tf.weights import assign_arrays, variable_names
from tests.training.conftest import assert_accumulation_equals_the_whole_batch

NOTHING = dict.fromkeys(Changes._fields, 0.0)


def changes(**own):
    return Changes(*(tf.constant([float(v)]) for v in {**NOTHING, **own}.values()))


def changed(image, **own):
    return apply_changes(tf.constant(image[None]), changes(**own)).numpy()[0]


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(-1, 1, (12, 20, 3)).astype(np.float32)


def test_swaps_and_shifts_by_whole_pixels_copy_pixels(image):
    np.testing.assert_array_equal(changed(image), image)
    np.testing.assert_array_equal(changed(image, mirror=1), image[:, ::-1])
    np.testing.assert_array_equal(changed(image, flip=1), image[::-1])
    moved = changed(image, right=0.25, down=-0.5)  # 5 and 6 pixels
    np.testing.assert_array_equal(moved[:6, 5:], image[6:, :15])
    # What comes in from outside is the image mirrored at its edge.
    np.testing.assert_array_equal(moved[:6, :5], image[6:, 4::-1])
    np.testing.assert_array_equal(moved[6:, 5:], image[:5:-1, :15])


def matrix_of(c, height, width):
    """What is done, as one homogeneous matrix on (right, down, 1) from the centre."""

    def turn(angle):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])

    shift = np.eye(3)
    shift[:2, 2] = c["right"] * width, c["down"] * height
    longer = np.diag([2.0 ** c["log_stretch"], 2.0 ** -c["log_stretch"], 1])
    larger = np.diag([2.0 ** c["log_scale"]] * 2 + [1])
    swap = np.diag([1 - 2 * c["mirror"], 1 - 2 * c["flip"], 1])
    return shift @ turn(c["axis"]) @ longer @ turn(-c["axis"]) @ turn(c["angle"]) @ larger @ swap


def test_all_changes_at_once_are_one_affine_map_resampled_by_pillow(image):
    drawn = draw_changes(stream(0, "changes"), tf.range(20), 1.0)
    found = apply_changes(tf.constant(np.stack([image] * 20)), drawn).numpy()
    height, width, channels = image.shape
    down, right = np.mgrid[:height, :width]
    pixels = np.stack([right, down, np.ones_like(right)]).reshape(3, -1)
    to_centre, compared = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]]), 0
    for k, one in enumerate(found):
        c = {name: float(value[k]) for name, value in zip(Changes._fields, drawn)}
        source = to_centre @ np.linalg.inv(matrix_of(c, height, width)) @ np.linalg.inv(to_centre)
        right, down, _ = source @ (pixels + np.array([[0.5], [0.5], [0]]))
        # Pillow has nothing beyond edges.
        inside = (abs(right - width / 2) < width / 2 - 0.5) & (abs(down - height / 2) < height / 2 - 0.5)
        compared += inside.sum()
        for channel in range(channels):
            expected = Image.fromarray(image[..., channel]).transform(
                (width, height), Image.Transform.AFFINE, source[:2].ravel(), Image.Resampling.BILINEAR
            )
            given = one[..., channel].ravel()[inside]
            np.testing.assert_allclose(given, np.ravel(expected)[inside], atol=1e-3)
    assert compared > 20 * height * width / 2


def test_each_change_comes_as_often_as_it_should_and_labels_are_zero_where_nothing_is_done():
    count, probability = 4000, 0.2
    drawn = tf.function(draw_changes)(stream(0, "changes"), tf.range(count), probability)
    shares = {name: float(np.mean(value.numpy() != 0)) for name, value in zip(Changes._fields, drawn)}
    expected = dict.fromkeys(Changes._fields, probability)
    # Half of the stretches are along an axis of the image.
    expected |= {"mirror": 0.5, "flip": probability / 2, "axis": probability / 2}
    for name, share in expected.items():
        assert abs(shares[name] - share) < 5 * np.sqrt(share * (1 - share) / count), name
    labels = drawn.labels.numpy()
    assert labels.shape == (count, AUGMENTATION_LABELS)
    done = np.any([value.numpy() != 0 for value in drawn], axis=0)
    assert np.array_equal(np.any(labels != 0, axis=1), done) and 0.15 < 1 - done.mean() < 0.25
    np.testing.assert_array_equal(changes().labels, np.zeros((1, AUGMENTATION_LABELS)))
    for column in range(2, AUGMENTATION_LABELS):  # of a size that layers learn from
        assert 0.5 < np.sqrt(np.mean(labels[:, column][labels[:, column] != 0] ** 2)) < 1.5


def test_what_gives_the_same_image_has_the_same_labels_and_its_opposite_has_others(image):
    def seen(log_stretch, axis):
        c = changes(log_stretch=log_stretch, axis=axis)
        return apply_changes(tf.constant(image[None]), c).numpy(), c.labels.numpy()

    pixels, labels = seen(0.3, 0.5)
    for other in (seen(0.3, 0.5 - np.pi), seen(-0.3, 0.5 + np.pi / 2)):
        np.testing.assert_allclose(other[0], pixels, atol=1e-4)
        np.testing.assert_allclose(other[1], labels, atol=1e-5)
    opposite = seen(-0.3, 0.5)
    assert np.abs(opposite[0] - pixels).mean() > 0.1 and np.abs(opposite[1] - labels).max() > 1


def test_xla_changes_images_in_the_same_way(image):
    drawn = draw_changes(stream(0, "changes"), tf.range(4), 1.0)
    images = tf.constant(np.stack([image] * 4))
    compiled = tf.function(apply_changes, jit_compile=True)(images, drawn)
    np.testing.assert_allclose(compiled, apply_changes(images, drawn), atol=1e-5)


@pytest.fixture
def augmented(make_model):
    return lambda **how: make_model(**{"network": {"augmented": True}, "augmentation": 0.5, **how})


def test_a_model_trains_on_changed_images_and_is_measured_on_those_of_the_data(augmented, images):
    model = augmented()
    plain = model._batch(images)
    batch = model._augmented(plain, tf.constant(0))
    assert batch["augmentation"].shape == plain["augmentation"].shape == (16, AUGMENTATION_LABELS)
    assert not np.any(plain["augmentation"])
    np.testing.assert_array_equal(plain["image"], images)
    changed = np.any(batch["augmentation"].numpy() != 0, axis=1)
    same = np.all(batch["image"].numpy() == images, axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~changed)
    again = PatchedDiffusion.from_config(model.get_config())
    assert again.augmentation == 0.5 and again.network.augmented
    # The noise and the timesteps are those of a model without.
    key = stream(0, "x")
    (one,), (other,) = (model.objective.training_examples(key, b) for b in (batch, plain))
    for name in ("t", "eps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_labels_of_augmentation_reach_the_network_and_parts_of_a_batch_keep_theirs(augmented, images):
    model = augmented()
    batch = model._augmented(model._batch(images), tf.constant(0))
    assert "unet/embed_augmentation/kernel:0" in {v.name for v in model.network.trainable_variables}
    (examples,) = model.objective.training_examples(stream(0, "x"), batch)
    labelled, unlabelled = (
        model.objective.losses(e)["simple_loss"].numpy()
        for e in (examples, examples._replace(augmentation=None))
    )
    np.testing.assert_array_equal(labelled != unlabelled, np.any(batch["augmentation"].numpy() != 0, axis=1))
    assert_accumulation_equals_the_whole_batch(model, images, 4)


@pytest.mark.parametrize("here_augmented", [True, False])
def test_weights_begin_a_network_with_another_choice_of_augmentation(make_model, here_augmented, images):
    """What is predicted of unchanged images is the same."""
    there, here = (make_model(network={"augmented": a}).network for a in (not here_augmented, here_augmented))
    shapes = dict(zip(variable_names(here.trainable_variables), [v.shape for v in here.trainable_variables]))
    names = variable_names(there.trainable_variables)
    arrays = {n: v.numpy() + 0.1 for n, v in zip(names, there.trainable_variables)}
    assign_arrays(there.trainable_variables, arrays, "there")
    assign_arrays(here.trainable_variables, with_augmentation(arrays, shapes), "here")
    t = tf.range(16)
    np.testing.assert_array_equal(there(images, t)[0], here(images, t)[0])
